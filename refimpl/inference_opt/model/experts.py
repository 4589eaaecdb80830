"""The feed-forward: SwiGLU, and the mixture of experts of DeepSeek-V2 (2405.04434, §2.2) and V3 (2412.19437, §2.1.2).

    h' = Σ_shared FFN(u) + Σ_i g_i FFN_i(u),     g_i = 0 except for the few experts that the token is sent to  (Eq. 20)
    s = softmax(E u)            V2: the affinity of a token to each expert                                     (Eq. 22)
    s = sigmoid(E u)            V3                                                                       (V3, Eq. 15)

Experts are divided into groups (in training, one group for each machine), and a token is sent to `topk_group` of them.
V2 takes the groups whose best expert scores highest (§2.2.2), V3 those whose two best experts have the highest sum.
Within these groups the top k experts are chosen; V3 chooses by s + b, where b is a learnt correction that balances the
load (V3, Eq. 16). The weights g are computed from s, without b.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.model.config import ExpertsShape, ModelConfig
from inference_opt.model.linear import Linear, stacked


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ⊙ W_up x) (Shazeer 2020, 2002.05202); gate and up are one product."""

    def __init__(self, config: ModelConfig, width: int, bias: bool | None = None) -> None:
        super().__init__()
        bias = config.mlp_bias if bias is None else bias
        self.gate_up = Linear(config.dim, 2 * width, bias=bias)
        self.down = Linear(width, config.dim, bias=bias)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """The feed-forward of each token."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)


class Router(nn.Module):
    """Chooses the experts of each token, and their weights."""

    correction: nn.Parameter | None  # b

    def __init__(self, dim: int, shape: ExpertsShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.empty(shape.n_routed_experts, dim))  # E: one row, a centroid, for each expert
        self.correction = nn.Parameter(torch.zeros(shape.n_routed_experts)) if shape.corrected else None

    def forward(
        self, u: Float[Tensor, "tokens dim"]
    ) -> tuple[Float[Tensor, "tokens chosen"], Int[Tensor, "tokens chosen"]]:
        """Weights g and indices of the chosen experts, computed at least in float32: rounding may change the choice."""
        shape = self.shape
        exact = torch.promote_types(u.dtype, torch.float32)

        # Scores s of all experts, and what the choice is made by: s, or s + b.
        affinity = nn.functional.linear(u.to(exact), self.weight.to(exact))  # [tokens, experts]
        score = affinity.sigmoid() if shape.corrected else affinity.softmax(dim=-1)
        choice = score if self.correction is None else score + self.correction.to(exact)

        # Experts outside the best groups get −∞.
        if shape.n_group > 1:
            grouped = choice.unflatten(-1, (shape.n_group, -1))  # [tokens, groups, experts of a group]
            worth = grouped.topk(2, dim=-1).values.sum(-1) if shape.corrected else grouped.amax(-1)
            best = worth.topk(shape.topk_group, dim=-1).indices
            excluded = torch.ones_like(worth, dtype=torch.bool).scatter(1, best, False)
            choice = grouped.masked_fill(excluded.unsqueeze(-1), -torch.inf).flatten(1)

        # The top k; their weights are their scores, without the correction.
        chosen = choice.topk(shape.num_experts_per_tok, dim=-1).indices
        weights = score.gather(1, chosen)
        if shape.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * shape.routed_scaling_factor, chosen


class MixtureOfExperts(nn.Module):
    """A few routed experts for each token, and the shared experts (one wide SwiGLU) for every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = config.experts
        assert shape is not None
        self.router = Router(config.dim, shape)
        width = shape.moe_intermediate_size
        self.experts = nn.ModuleList(SwiGLU(config, width, bias=False) for _ in range(shape.n_routed_experts))
        self.shared = SwiGLU(config, width * shape.n_shared_experts) if shape.n_shared_experts else None
        if self.router.weight.is_cuda:
            self.stacked()  # now, layer by layer, what is freed serves the next layer

    def stacked(self) -> tuple[Float[Tensor, "experts both dim"], Float[Tensor, "experts dim width"]]:
        """`gate_up` and `down` of all routed experts, one tensor each: the experts' weights are views of it.

        Kernels find an expert by its number.
        """
        gate_up, down = (
            stacked([getattr(expert, name).weight for expert in self.experts]) for name in ("gate_up", "down")
        )
        return gate_up.unflatten(0, (len(self.experts), -1)), down.unflatten(0, (len(self.experts), -1))

    def forward(self, u: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """The shared experts' output, plus each routed expert's on the tokens that were sent to it."""
        weights, chosen = self.router(u)
        out = torch.zeros_like(u) if self.shared is None else self.shared(u)
        for index in chosen.unique().tolist():
            token, rank = torch.where(chosen == index)
            out.index_add_(0, token, self.experts[index](u[token]) * weights[token, rank, None].to(u.dtype))
        return out
