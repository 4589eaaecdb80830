"""From grouped-query attention to latent attention: `convert_to_mla`.

A grouped-query layer keeps G keys and G values of width d for each token. Latent attention keeps one latent and one
rotated key. RoPE stands in the way of a plain factorisation: it turns each pair i of a key, read as one complex number
k_{g,i}, by e^{jmω_i}. But mixing the G heads *at one frequency* commutes with the rotation, so for each frequency

    z_i = A_i⁻¹ k_i  ∈ ℂ^G,       conj(q_{h,i}) k_{g,i} = Σ_j conj(conj(A_i[g,j]) q_{h,i}) z_{i,j}

for any invertible A_i. With all G · d/2 components rotated, side by side in the shared key, nothing is lost. A_i comes
from the keys that the model makes on real text, weighted by the queries that meet them, so that the first components
matter most. (The idea is that of TransMLA 2502.07864, which uses real rotations of equal frequencies.)

Of all components (i, j), those whose loss would hurt most stay in the rotated key. The others lose their position and
join the values in the latent. A component that turns slowly changes little without its rotation. One that turns fast
averages out over distances, so it is scaled by its mean, ρ_i = |mean over distances Δ of e^{jω_iΔ}|. The latent and its
up-projections are then the best factorisation [W_K'; W_V] ≈ W_U W_D of the given rank, for the inputs that the layer
sees on real text. Errors of keys are weighted by the queries, errors of values by the output projection.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from inference_opt.model.attention import NoCache
from inference_opt.model.config import LatentShape, ModelConfig, RopeScaling
from inference_opt.model.linear import dense
from inference_opt.model.rope import frequencies
from inference_opt.model.transformer import Transformer

DISTANCE = 64  # tokens: the scale of the distances that the mean ρ is taken over
RIDGE = 1e-6  # smallest eigenvalue of a metric, as a share of their mean: makes the metric invertible


@dataclass(frozen=True)
class _Heads:
    """One layer's projections by head, in float64, and the second moment of the layer's inputs."""

    q: Float[Tensor, "groups heads head_dim dim"]
    k: Float[Tensor, "groups head_dim dim"]
    v: Float[Tensor, "groups head_dim dim"]
    out: Float[Tensor, "groups heads dim head_dim"]
    moment: Float[Tensor, "dim dim"]  # E[x xᵀ]


@dataclass(frozen=True)
class Factors:
    """All that is new in the latent-attention model, for each layer of a grouped-query model.

    rotated: the number of components that stay rotated at each frequency, the same in every layer. For each layer:
    `mixing`, the complex factors that turn a query into one that meets the rotated key; `kv_down`, the rows of W_DKV,
    then of W_KR; `kv_up`, for each key head the rows of W_UK, then of W_UV.
    """

    rotated: tuple[int, ...]
    mixing: list[Complex[Tensor, "groups pairs"]]
    kv_down: list[Float[Tensor, "kept dim"]]
    kv_up: list[Float[Tensor, "made rank"]]


def convert_to_mla(
    model: Transformer, kv_lora_rank: int, qk_rope_head_dim: int, texts: Sequence[Sequence[int]]
) -> Transformer:
    """A latent-attention model that computes nearly what `model` does, and caches d_c + d_R numbers a layer.

    texts: token ids on which activations are observed; a few thousand tokens like those that the model will see. The
    result has the model's dtype and device and shares the weights outside of attention with it. At full width and rank
    (qk_rope_head_dim = kv_lora_rank = kv_heads · head_dim) it is exact up to rounding. ValueError for ranks larger than
    the source, for an odd rotated width, and for models that no linear map converts (norms on keys, biases).
    """
    return assemble(model, factorise(model, kv_lora_rank, qk_rope_head_dim, texts))


def factorise(model: Transformer, kv_lora_rank: int, qk_rope_head_dim: int, texts: Sequence[Sequence[int]]) -> Factors:
    """The best factors of these ranks for what the model computes on the texts. Errors as in `convert_to_mla`."""
    c = model.config
    _check(c, kv_lora_rank, qk_rope_head_dim)
    layers = _observe(model, [c.check_prompt(text) for text in texts])
    omega = frequencies(c).double().to(model.device)
    # All layers rotate the same number of components at each frequency, because they share one table of angles.
    components = [_components(heads) for heads in layers]
    rotated = _choose(torch.stack([strength for _, strength in components]), omega, qk_rope_head_dim // 2)
    factors = Factors(rotated, [], [], [])
    for heads, (basis, _) in zip(layers, components):
        _factorise(heads, basis, omega, kv_lora_rank, factors, _rope_factor(c))
    return factors


def assemble(model: Transformer, factors: Factors) -> Transformer:
    """The latent-attention model: its queries are the model's own, followed by the same, mixed, for the rotated key."""
    c = model.config
    d = model.config.head_dim
    frequency = [float(w) for w, count in zip(frequencies(c), factors.rotated) for _ in range(count)]
    width = 2 * len(frequency)
    rank = factors.kv_up[0].shape[1]
    config = dataclasses.replace(
        c,
        head_dim=d + width,
        latent=LatentShape(rank, width, qk_nope_head_dim=d, v_head_dim=d, normed=False),
        rope_scaling=RopeScaling("frequencies", _rope_factor(c), factors=tuple(frequency)),
    )

    # Everything but the projections of q, k and v is taken over as it is.
    with torch.device("meta"):
        converted = Transformer(config)
    for name, p in model.named_parameters():
        if ".attention." not in name or name.endswith("attention.out.weight"):
            _put(converted, name, dense(p))
    if c.tied_embeddings:
        converted.head.weight = converted.embed.weight

    # For each rotated component: the frequency, and with it the pair of the query, that it belongs to.
    index = torch.tensor([i for i, count in enumerate(factors.rotated) for _ in range(count)], device=model.device)
    for layer, mixing in enumerate(factors.mixing):
        q = _projections(model, layer)[0]  # [groups, heads, d, dim]
        mixed = mixing.to(model.device)[:, None, :, None] * _as_complex(q)[:, :, index]
        q = torch.cat((q, mixed.real, mixed.imag), dim=2).flatten(0, 2)
        q = q * (1 + width / d) ** 0.5  # scores are divided by √(d + d_R), those of the model by √d
        weights = {"q": q, "kv_down": factors.kv_down[layer], "kv_up": factors.kv_up[layer]}
        for name, weight in weights.items():
            _put(converted, f"layers.{layer}.attention.{name}.weight", weight.to(model.device, model.dtype))
    return converted.pack().eval()


def _check(c: ModelConfig, rank: int, width: int) -> None:
    full = c.kv_heads * c.head_dim
    if c.latent is not None:
        raise ValueError("the model has latent attention already")
    if c.qk_norm or c.qkv_bias or c.out_bias:
        raise ValueError("a model with norms on its keys or biases in its attention cannot be converted exactly")
    if not 2 <= width <= full or width % 2:
        raise ValueError(f"qk_rope_head_dim must be even and in [2, kv_heads · head_dim = {full}], got {width}")
    max_rank = min(2 * full - width, c.dim)
    if not 1 <= rank <= max_rank:
        raise ValueError(
            f"kv_lora_rank must lie in [1, {max_rank}]: the latent replaces {full} numbers of values and "
            f"{full - width} of keys that are not rotated, computed from {c.dim} inputs; got {rank}"
        )


def _put(model: Transformer, name: str, tensor: Tensor) -> None:
    module, _, parameter = name.rpartition(".")
    setattr(model.get_submodule(module), parameter, nn.Parameter(tensor, requires_grad=False))


def _projections(model: Transformer, layer: int) -> tuple[Float[Tensor, "groups heads head_dim dim"], Tensor, Tensor]:
    """A layer's queries by group and head, and its keys and values by group, in float64."""
    c = model.config
    weight = dense(model.get_parameter(f"layers.{layer}.attention.qkv.weight")).double()
    rows = weight.split((c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim))
    q, k, v = (part.unflatten(0, (-1, c.head_dim)) for part in rows)
    return q.unflatten(0, (c.kv_heads, -1)), k, v


@torch.inference_mode()
def _observe(model: Transformer, texts: Sequence[Sequence[int]]) -> list[_Heads]:
    """Every layer's projections, and the second moment of its attention's inputs over the texts."""
    c = model.config
    tokens = sum(map(len, texts))
    if not tokens:
        raise ValueError("conversion observes the model on texts: it needs at least one text")
    moments = [torch.zeros(c.dim, c.dim, dtype=torch.float64, device=model.device) for _ in model.layers]

    # A hook on each attention norm adds x xᵀ of every token while the model reads the texts.
    def watch(_module: nn.Module, _inputs: object, x: Tensor, moment: Tensor) -> None:
        moment.add_(x.double().T @ x.double())

    hooks = [
        model.get_submodule(f"layers.{i}.attention_norm").register_forward_hook(partial(watch, moment=moment))
        for i, moment in enumerate(moments)
    ]
    try:
        for text in texts:
            ids = torch.tensor(text, device=model.device)
            model.hidden_states(ids, torch.arange(len(text), device=model.device), NoCache([len(text)]))
    finally:
        for hook in hooks:
            hook.remove()

    result = []
    for index, moment in enumerate(moments):
        out = dense(model.get_parameter(f"layers.{index}.attention.out.weight")).double()
        by_head = out.unflatten(1, (c.kv_heads, -1, c.head_dim)).permute(1, 2, 0, 3)
        result.append(_Heads(*_projections(model, index), by_head, moment / tokens))
    return result


def _as_complex(rows: Float[Tensor, "... head_dim dim"]) -> Complex[Tensor, "... half dim"]:
    """Rows i and i + d/2 of a projection form the complex number that RoPE turns."""
    return torch.complex(*rows.chunk(2, dim=-2))


def _components(heads: _Heads) -> tuple[Complex[Tensor, "half groups groups"], Float[Tensor, "half groups"]]:
    """A_i of every frequency, and how much each component z_{i,j} moves the scores (mean square), largest first."""
    k, q = _as_complex(heads.k), _as_complex(heads.q)
    moment = heads.moment.to(k.dtype)
    # How the keys of two groups vary together, E[k_g conj(k_h)], and how large the queries are that meet each group.
    keys = torch.einsum("gid,de,hie->igh", k, moment, k.conj())
    met = torch.einsum("ghid,de,ghie->ig", q, moment, q.conj()).real.sqrt()
    met = met.clamp_min(met.max() * 1e-9)
    # Principal axes of the keys, each group scaled by the size of its queries; A_i undoes the scaling.
    strength, basis = torch.linalg.eigh(met[:, :, None] * keys * met[:, None, :])  # ascending
    return (basis / met[:, :, None]).flip(-1), strength.flip(-1)


def _mean_rotation(omega: Float[Tensor, "half"]) -> Float[Tensor, "half"]:
    """ρ_i = |mean of e^{jωΔ}| over distances Δ, where near ones weigh more: e^(−Δ / DISTANCE)."""
    distance = torch.arange(8 * DISTANCE, dtype=torch.float64, device=omega.device)
    weight = torch.exp(-distance / DISTANCE)
    return (torch.polar(torch.ones_like(distance), omega[:, None] * distance) * weight).sum(-1).abs() / weight.sum()


def _choose(strength: Float[Tensor, "layers half groups"], omega: Float[Tensor, "half"], pairs: int) -> tuple[int, ...]:
    """How many components stay rotated at each frequency: the `pairs` whose rotation carries most, over all layers."""
    # A component without its rotation loses the share 1 − ρ² of its strength.
    share = strength / strength.sum(dim=(1, 2), keepdim=True)
    loss = (share * (1 - _mean_rotation(omega).square())[:, None]).sum(0)  # [half, groups], falling along groups
    # Along a frequency the losses fall, so the chosen ones are its first components: their number says which.
    chosen = loss.flatten().topk(pairs).indices // loss.shape[1]
    return tuple(torch.bincount(chosen, minlength=len(omega)).tolist())


def _rope_factor(c: ModelConfig) -> float:
    """The factor by which a rotation multiplies queries and keys: YaRN's attention factor."""
    return c.rope_scaling.attention_factor if c.rope_scaling else 1.0


def _factorise(
    heads: _Heads,
    basis: Complex[Tensor, "half groups groups"],
    omega: Float[Tensor, "half"],
    rank: int,
    into: Factors,
    rope_factor: float = 1.0,
) -> None:
    """Append one layer's factors."""
    d = heads.k.shape[1]
    k = _as_complex(heads.k)  # [groups, half, dim]
    inverse = torch.linalg.inv(basis)

    # [factorise]
    # The rotated components z_{i,j}, one for each chosen pair (i, j): the rows of W_KR.
    pairs = [(i, j) for i, count in enumerate(into.rotated) for j in range(count)]
    i, j = torch.tensor(pairs, device=k.device).T
    rotated = torch.einsum("pg,gpx->px", inverse[i, j], k[:, i])

    # The rest of the keys: A without the columns of the rotated components, times A⁻¹, times the keys. These lose the
    # rotation, so they are scaled by its mean ρ, and by `rope_factor` twice: for the query and for the key.
    without = rope_factor**2 * basis * _mean_rotation(omega)[:, None, None]
    without[i, :, j] = 0
    rest = torch.einsum("igj,ijh,hix->gix", without, inverse, k)
    wanted = torch.cat((rest.real, rest.imag, heads.v), dim=1).flatten(0, 1)  # [groups · 2d, dim]
    # [/factorise]

    # What an error costs. An error δk of a key changes scores by q · δk / √d. An error δv of a value changes the
    # residual stream by W_O δv. A wrong score adds that much of a value to the stream: hence the factor `spread`, the
    # mean square of W_O v over the heads.
    met = torch.einsum("ghax,xy,ghby->gab", heads.q, heads.moment, heads.q) / d
    moved = torch.einsum("ghxa,ghxb->gab", heads.out, heads.out)
    spread = torch.einsum("gab,gax,xy,gby->", moved, heads.v, heads.moment, heads.v) / heads.q[:, :, 0, 0].numel()
    metric = torch.block_diag(*(m for pair in zip(spread * met, moved) for m in pair))

    # [factorise]
    # Scale along each axis of the metric by the root of its value: then the cost of an error is its squared length.
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp_min(RIDGE * values.mean()).sqrt()
    weighted = root[:, None] * (vectors.T @ wanted)

    # Let W be `weighted`, and E `heads.moment`. The best matrix of rank d_c for such inputs is W projected on the
    # leading directions of W E Wᵀ.
    energy, directions = torch.linalg.eigh(weighted @ heads.moment @ weighted.T)
    energy = energy[-rank:].clamp_min(RIDGE**2 * energy[-1]).sqrt()
    leading = directions[:, -rank:]

    # Each number of the latent is scaled to a mean square of 1: the best scale for further training, and for rounding.
    into.mixing.append(basis[i, :, j].conj().resolve_conj().T)
    into.kv_down.append(torch.cat((leading.T @ weighted / energy[:, None], rotated.real, rotated.imag)))
    into.kv_up.append(vectors / root @ leading * energy)
    # [/factorise]
