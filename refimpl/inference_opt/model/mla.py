"""Multi-head Latent Attention (DeepSeek-V2, 2405.04434, §2.1): a cache of one small vector a token.

    c_KV = RMSNorm(W_DKV h)                        the latent                  Eq. 9  (the norm: §3.1.2)
    k_C  = W_UK c_KV,    v_C = W_UV c_KV           keys and values of a head   Eqs. 10, 11
    c_Q  = RMSNorm(W_DQ h),    q_C = W_UQ c_Q      a head's query              Eqs. 12, 13 (or q_C = W_Q h)
    q_R  = RoPE(W_QR c_Q)                          a head's rotated query      Eq. 14
    k_R  = RoPE(W_KR h)                            one rotated key, all heads  Eq. 15
    o    = Σ_j softmax_j([q_C; q_R]·[k_C; k_R]_j / √(d_h + d_R)) v_C,j         Eqs. 16 to 18
    u    = W_O o                                                               Eq. 19

Only [c_KV; k_R] is kept, d_c + d_R numbers a token. Two ways lead from there to o:

    explicit   make every key and value, then attend:        q_C · (W_UK c)       heads · (d_h + d_R + d_v) a pair
    absorbed   bring the query to the latent, attend there:  (W_UKᵀ q_C) · c      heads · (2 d_c + d_R) a pair
               and only the mixture of latents is made a value:  W_UV Σ_j a_j c_j

The same sums in another order, because W_UK and W_UV are linear and stand at no position. A rotation of the key would
stand between q_C and W_UK and depend on the pair, so the position gets a separate part, k_R.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inference_opt.model.attention import KV, causal_attention
from inference_opt.model.config import ModelConfig
from inference_opt.model.linear import Linear, stacked
from inference_opt.model.rope import rotate

LATENT_EPS = 1e-6  # of the latents' norms, in DeepSeek's code and checkpoints, whatever the model's own is


class LatentAttention(nn.Module):
    """One layer's latent attention.

    `form`: "explicit", "absorbed", or None for whichever is cheaper, where the cache leaves the choice (kernels attend
    to latents as they are: absorbed).

    `kv_heads` keys and values are made of a latent: as many as heads in DeepSeek's models, fewer where a grouped-query
    model was converted.
    """

    form: str | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = config.latent
        assert shape is not None
        self.config, self.shape, self.scale = config, shape, config.attention_scale
        self.heads, self.kv_heads = config.heads, config.kv_heads
        width = config.heads * config.head_dim
        if shape.q_lora_rank is None:
            self.q = Linear(config.dim, width)
        else:
            self.q_down = Linear(config.dim, shape.q_lora_rank, bias=config.qkv_bias)  # W_DQ
            self.q_latent_norm = nn.RMSNorm(shape.q_lora_rank, eps=LATENT_EPS)
            self.q = Linear(shape.q_lora_rank, width)  # rows: a head's W_UQ, then its W_QR
        kept = shape.kv_lora_rank + shape.qk_rope_head_dim
        self.kv_down = Linear(config.dim, kept, bias=config.qkv_bias)  # rows: W_DKV, then W_KR
        self.kv_latent_norm = nn.RMSNorm(shape.kv_lora_rank, eps=LATENT_EPS) if shape.normed else None
        # A plain nn.Linear: absorption reads its weight directly. Rows: a head's W_UK, then its W_UV.
        rows = config.kv_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
        self.kv_up = nn.Linear(shape.kv_lora_rank, rows, bias=False)
        self.out = Linear(config.heads * shape.v_head_dim, config.dim, bias=config.out_bias)

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        rope: tuple[Float[Tensor, "tokens 1 rope_dim"], Float[Tensor, "tokens 1 rope_dim"]],
        layer: int,
        kv: KV,
    ) -> Float[Tensor, "tokens dim"]:
        """One layer's attention of the flat batch."""
        shape = self.shape
        # [layer]
        q = self.q(x if shape.q_lora_rank is None else self.q_latent_norm(self.q_down(x)))
        q_plain, q_rope = q.view(len(x), self.heads, -1).split((shape.qk_nope_head_dim, shape.qk_rope_head_dim), dim=-1)
        latent, k_rope = self.kv_down(x).unsqueeze(1).split((shape.kv_lora_rank, shape.qk_rope_head_dim), dim=-1)
        if self.kv_latent_norm is not None:
            latent = self.kv_latent_norm(latent)
        q = torch.cat((q_plain, rotate(q_rope, *rope)), dim=-1)  # [tokens, heads, d_h + d_R]
        kept = torch.cat((latent, rotate(k_rope, *rope)), dim=-1)  # [tokens, 1, d_c + d_R]
        return self.out(kv.attend_latents(layer, q, kept, self).flatten(1))
        # [/layer]

    def stacked(self) -> Float[Tensor, "rows dim"]:
        """What is multiplied with the layer's input, in one tensor: the query's rows or W_DQ, then W_DKV and W_KR."""
        first = self.q if self.shape.q_lora_rank is None else self.q_down
        return stacked([first.weight, self.kv_down.weight])

    def over(
        self, q: Float[Tensor, "queries heads query_dim"], kept: Float[Tensor, "keys 1 kept_dim"]
    ) -> Float[Tensor, "queries heads value_dim"]:
        """One sequence's attention over what is kept of it, in `form`, or the cheaper one."""
        if self.form == "absorbed" or (self.form is None and self.absorbs(len(q), len(kept))):
            absorbed = self.absorb(q)
            latents = causal_attention(absorbed, kept, kept[..., : self.shape.kv_lora_rank], self.scale)
            return self.values(latents)
        k, v = self.expand(kept)
        return causal_attention(q, k, v, self.scale)

    @property
    def up(self) -> tuple[Float[Tensor, "kv_heads key_dim latent_dim"], Float[Tensor, "kv_heads value_dim latent_dim"]]:
        """W_UK and W_UV of every key head, views of `kv_up`."""
        by_head = self.kv_up.weight.unflatten(0, (self.kv_heads, -1))
        return by_head.split((self.shape.qk_nope_head_dim, self.shape.v_head_dim), dim=1)

    def expand(
        self, kept: Float[Tensor, "keys 1 kept_dim"]
    ) -> tuple[Float[Tensor, "keys kv_heads query_dim"], Float[Tensor, "keys kv_heads value_dim"]]:
        """The keys and values of every head: [W_UK c; k_R] and W_UV c."""
        shape = self.shape
        latent, k_rope = kept.split((shape.kv_lora_rank, shape.qk_rope_head_dim), dim=-1)
        made = self.kv_up(latent.squeeze(1)).view(len(kept), self.kv_heads, -1)
        k_plain, v = made.split((shape.qk_nope_head_dim, shape.v_head_dim), dim=-1)
        return torch.cat((k_plain, k_rope.expand(-1, self.kv_heads, -1)), dim=-1), v

    def absorb(self, q: Float[Tensor, "queries heads query_dim"]) -> Float[Tensor, "queries heads kept_dim"]:
        """[W_UKᵀ q_C; q_R]: a query that meets what is kept as it is."""
        shape = self.shape
        q_plain, q_rope = q.split((shape.qk_nope_head_dim, shape.qk_rope_head_dim), dim=-1)
        grouped = q_plain.unflatten(1, (self.kv_heads, -1))  # [queries, kv_heads, group, d_h]
        absorbed = torch.einsum("qkgd,kdc->qkgc", grouped, self.up[0]).flatten(1, 2)
        return torch.cat((absorbed, q_rope), dim=-1)

    def values(self, mixed: Float[Tensor, "queries heads latent_dim"]) -> Float[Tensor, "queries heads value_dim"]:
        """W_UV Σ_j a_j c_j: values of mixtures of latents."""
        return torch.einsum("qkgc,kvc->qkgv", mixed.unflatten(1, (self.kv_heads, -1)), self.up[1]).flatten(1, 2)

    def absorbs(self, queries: int, keys: int) -> bool:
        """Whether absorption takes no more multiplications, for new queries over all keys of one sequence."""
        explicit, absorbed = (multiplications(self.config, form, queries, keys) for form in ("explicit", "absorbed"))
        return absorbed <= explicit


def multiplications(config: ModelConfig, form: str, queries: int, keys: int) -> int:
    """What a form costs for new queries over all keys of one sequence.

    explicit   keys · n_k (d_h + d_v) d_c                 + queries · keys · n_h (d_h + d_R + d_v)
    absorbed   queries · n_h (d_h + d_v) d_c              + queries · keys · n_h (2 d_c + d_R)
    """
    s, pairs = config.latent, queries * keys * config.heads
    assert s is not None
    made = (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank
    if form == "explicit":
        return keys * config.kv_heads * made + pairs * (s.qk_nope_head_dim + s.qk_rope_head_dim + s.v_head_dim)
    return queries * config.heads * made + pairs * (2 * s.kv_lora_rank + s.qk_rope_head_dim)


def use_form(model: nn.Module, form: str | None) -> None:
    """Set every latent attention's `form`; ValueError for an unknown one."""
    if form not in (None, "explicit", "absorbed"):
        raise ValueError(f'form must be "explicit", "absorbed" or None, got {form!r}')
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.form = form
