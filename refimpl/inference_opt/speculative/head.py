"""The trained drafter's network: one decoder layer over the target's states (EAGLE 2401.15077, EAGLE-3 2503.01840).

    g_t = W_fuse [h_t^(a); h_t^(b); h_t^(c)]                       the target's residual stream behind three layers
    x_t = W_join [RMSNorm(embed(token t + 1)); RMSNorm(g_t)]       what came next, and what the target knew before
    s_t = Layer(x_t)                                               attends to x_0 … x_t
    guess of token t + 2 = softmax(W_head RMSNorm(s_t))            over the frequent tokens only

s_t stands in for g_{t+1} when it drafts further than the target has read: same width, trained to be read the same way.
W_head is cut from the target's own head: rows of the tokens in `token_ids`. It is not trained and not stored.
"""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from inference_opt.loading.checkpoint import save_whole
from inference_opt.model.attention import KV
from inference_opt.model.config import ModelConfig
from inference_opt.model.linear import Linear, can_pack, dense
from inference_opt.model.rope import RopeTable
from inference_opt.model.transformer import Layer, Transformer

PACKAGED = "eagle-smollm2-135m.safetensors"


class DraftHead(nn.Module):
    """The network. `config` is the target's, `taps` are the layers it listens to, `reduced` tokens are scored."""

    token_ids: Int[Tensor, "reduced"]

    def __init__(self, config: ModelConfig, taps: Sequence[int], reduced: int) -> None:
        super().__init__()
        self.config = config
        self.taps = tuple(taps)
        self.register_buffer("token_ids", torch.zeros(reduced, dtype=torch.long))
        self.fuse_taps = Linear(len(self.taps) * config.dim, config.dim)
        self.embed_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feature_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.join = Linear(2 * config.dim, config.dim)
        self.layer = Layer(config)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = Linear(config.dim, reduced)
        self._rope: RopeTable | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations: need not be the target's."""
        return self.norm.weight.dtype

    def rope(self, states: Tensor) -> RopeTable:
        """The rotary angles in the dtype and on the device of these states, built at first use."""
        if self._rope is None or (self._rope.cos.dtype, self._rope.cos.device) != (states.dtype, states.device):
            self._rope = RopeTable(self.config, states.dtype, states.device)
        return self._rope

    def fuse(self, tapped: Sequence[Float[Tensor, "slots dim"]]) -> Float[Tensor, "slots dim"]:
        """One feature a token from the target's residual stream behind each layer of `taps`."""
        return self.fuse_taps(torch.cat(list(tapped), dim=-1).to(self.dtype))

    def joined(
        self, features: Float[Tensor, "slots dim"], embeds: Float[Tensor, "slots dim"]
    ) -> Float[Tensor, "slots dim"]:
        """What the layer reads: of each slot the feature of token t, and the embedding of token t + 1."""
        return self.join(torch.cat((self.embed_norm(embeds.to(self.dtype)), self.feature_norm(features)), dim=-1))

    def forward(
        self,
        features: Float[Tensor, "slots dim"],
        embeds: Float[Tensor, "slots dim"],
        positions: Int[Tensor, "slots"],
        kv: KV,
    ) -> Float[Tensor, "slots dim"]:
        """The state of each slot: feature of token t, embedding of token t + 1, position t."""
        return self.layer(self.joined(features, embeds), self.rope(features).at(positions), 0, kv)

    def logits(self, states: Float[Tensor, "slots dim"]) -> Float[Tensor, "slots reduced"]:
        """Scores of the tokens in `token_ids`."""
        return self.head(self.norm(states))

    def use_head_of(self, target: Transformer, token_ids: Int[Tensor, "reduced"]) -> None:
        """Score these tokens, by the target's own rows for them."""
        table = target.embed.weight if target.config.tied_embeddings else target.head.weight
        self.token_ids = token_ids.to(table.device)
        self.head.weight = nn.Parameter(dense(table)[self.token_ids].clone(), requires_grad=False)

    def save(self, path: Path, **notes: str) -> None:
        """Write what was trained, in bfloat16, whole or not at all; `notes` go into the file's metadata."""
        tensors = {
            name: tensor.detach().cpu().bfloat16().contiguous()
            for name, tensor in self.named_parameters()
            if name != "head.weight"
        }
        tensors["token_ids"] = self.token_ids.to(device="cpu", dtype=torch.int32)
        save_whole(tensors, path, {"taps": json.dumps(self.taps), "dim": str(self.config.dim)} | notes)

    @classmethod
    def load(cls, target: Transformer, path: Path | None = None) -> "DraftHead":
        """The head from a file (by default the one that comes with the package), on the target's device.

        It is stored in bfloat16, and beside a float32 target it runs in it where the processor can: half the bytes
        to read, and no rule asks how exact a guess is.

        ValueError for a file that is no such head, or one that was made for a target of another shape.
        """
        path = path or Path(str(resources.files("inference_opt") / "data" / PACKAGED))
        try:
            with safe_open(path, "pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            taps, ids = json.loads(notes["taps"]), tensors.pop("token_ids").long()
        except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name} is not a draft head: {type(error).__name__}: {error}") from error
        config = target.config
        fits = notes.get("dim") == str(config.dim) and taps and max(taps) < config.depth
        if not fits or not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
            raise ValueError(
                f"{path.name} was made for another target: its width is {notes.get('dim')}, it reads layers {taps} and "
                f"scores tokens up to {int(ids.max())}; this one has width {config.dim}, {config.depth} layers and "
                f"{config.vocab_size} tokens"
            )
        head = cls(config, taps, len(ids))
        wanted = {name for name, _ in head.named_parameters()} - {"head.weight"}
        shapes = {name: head.get_parameter(name).shape for name in wanted}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise ValueError(f"{path.name} is not a draft head for this target: its tensors are not the expected ones")
        head.load_state_dict(tensors, strict=False)
        half = target.dtype == torch.float32 and can_pack(torch.bfloat16, target.device)
        head.use_head_of(target, ids)
        head = head.to(dtype=torch.bfloat16 if half else target.dtype, device=target.device).eval()
        for module in head.modules():
            if isinstance(module, Linear):
                module.pack()
        return head
