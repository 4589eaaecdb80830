"""What a step of a model reads and computes at least, and the seconds that this takes at best: the roofline.

    bytes       every weight that the step uses, once, and the keys and values of every sequence, once
    operations  2 · (weights that a row is multiplied with) · rows, and attention's products: a row with its keys, and
                their weights with its values. A multiplication and an addition are two operations

    seconds ≥ max(bytes / read bandwidth, operations / rate of the matrix product)

Either may be the longer time. Operations divided by bytes is the *arithmetic intensity* of a step, the rate divided by
the bandwidth is the *ridge* of a machine: below the ridge, memory binds; above it, arithmetic (Williams, Waterman and
Patterson 2009, https://doi.org/10.1145/1498765.1498785). What else a step does is left out: activations, writing new
keys and values, norms, starting kernels. So the time is a lower bound.
"""

from bisect import bisect_left
from dataclasses import dataclass

from inference_opt.model.config import ModelConfig
from inference_opt.model.mla import multiplications
from inference_opt.model.transformer import count_weights

MOST = 2**20  # rows of a step


@dataclass(frozen=True)
class Limits:
    """What a machine can do in a second."""

    bandwidth: float  # bytes read
    rate: float = float("inf")  # operations of a matrix product; infinite where only memory is asked about

    @property
    def ridge(self) -> float:
        """The arithmetic intensity, in operations a byte, from which arithmetic takes longer than reading."""
        return self.rate / self.bandwidth

    def seconds(self, moved: int | float, operations: int | float = 0) -> float:
        """The least time for so many bytes and operations."""
        return max(moved / self.bandwidth, operations / self.rate)


@dataclass(frozen=True)
class Work:
    """Bytes read and operations computed."""

    moved: int | float
    operations: int | float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.moved

    def bound(self, limits: Limits) -> str:
        """Which of the two limits binds: "memory" or "arithmetic"."""
        return "memory" if self.intensity < limits.ridge else "arithmetic"

    def seconds(self, limits: Limits) -> float:
        """The least time that it takes."""
        return limits.seconds(self.moved, self.operations)


# [work]
def work(config: ModelConfig, itemsize: int, sequences: int, rows: int, context: int | float, logits: int = 1) -> Work:
    """What a step of so many sequences reads and computes: `rows` new tokens of each; the last sees `context` keys.

    A prefill of n tokens has rows = context = n; in decode, rows is 1. `itemsize`: bytes of a weight, and of a number
    in the cache. Logits are computed for `logits` rows of each sequence.
    """
    head = config.vocab_size * config.dim
    body = count_weights(config) - head * (1 if config.tied_embeddings else 2)
    unread, unused = _idle_experts(config, sequences * rows)
    read = body - unread + head + sequences * context * config.kv_elements_per_token
    a_sequence = (
        rows * (body - unused - _latent_weights(config))
        + logits * head
        + config.depth * _attention(config, rows, context)
    )
    return Work(itemsize * read, 2 * sequences * a_sequence)


# [/work]


def free_rows(config: ModelConfig, itemsize: int, context: int, limits: Limits) -> dict[str, int]:
    """The rows of a decoding step from which one more is no longer nearly free, for two reasons.

    `arithmetic`: multiplying them with the weights takes as long as reading the weights; from here on it is longer.
    `caches`: reading their caches, of `context` tokens each, takes as long as reading the weights.
    """

    def computes(rows: int) -> bool:
        return work(config, itemsize, rows, 1, 1).bound(limits) == "arithmetic"

    def caches(rows: int) -> bool:
        return work(config, itemsize, rows, 1, context).moved >= 2 * work(config, itemsize, rows, 1, 0).moved

    ways = {"arithmetic": computes, "caches": caches}
    return {name: 1 + bisect_left(range(1, MOST), True, key=reached) for name, reached in ways.items()}


def _idle_experts(config: ModelConfig, rows: int) -> tuple[int | float, int]:
    """Weights of routed experts that a step does not read, and that a row is not multiplied with.

    Each row takes k of E experts. If they are equally likely, an expert is taken by none of n rows with probability
    (1 − k/E)ⁿ.
    """
    if (shape := config.experts) is None:
        return 0, 0
    k, total = shape.num_experts_per_tok, shape.n_routed_experts
    expert = shape.layers(config.depth) * 3 * config.dim * shape.moe_intermediate_size
    return expert * total * (1 - k / total) ** rows, expert * (total - k)


def _latent_weights(config: ModelConfig) -> int:
    """The weights that compute heads from latents: `multiplications` counts them in the form that attention takes."""
    if (s := config.latent) is None:
        return 0
    return config.depth * config.kv_heads * (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank


def _attention(config: ModelConfig, rows: int, context: int | float) -> int | float:
    """Multiplications of one layer's attention for the last `rows` of `context` tokens. A row sees no later key."""
    hidden = rows * (rows - 1) // 2  # pairs of a row and a later key
    if config.latent is None:
        return (rows * context - hidden) * config.heads * 2 * config.head_dim

    def form(name: str) -> int | float:
        def cost(queries: int, keys: int | float) -> int | float:
            return multiplications(config, name, queries, keys)  # type: ignore[arg-type]

        return cost(rows, context) - hidden * (cost(1, 1) - cost(1, 0) - cost(0, 1))  # that of one pair

    return min(form("explicit"), form("absorbed"))
