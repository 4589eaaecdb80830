"""From grouped-query attention to latent attention: `convert_to_mla`.

A grouped-query layer keeps G keys and G values of width d a token. Latent attention keeps one latent and one rotated
key. What stands in the way of a plain factorisation is RoPE: each pair i of a key, read as one complex number k_{g,i},
is turned by e^{jmω_i}. But mixing the G heads *at one frequency* commutes with the turn, so per frequency

    z_i = A_i⁻¹ k_i  ∈ ℂ^G,       conj(q_{h,i}) k_{g,i} = Σ_j conj(conj(A_i[g,j]) q_{h,i}) z_{i,j}

for any invertible A_i: with all G · d/2 components rotated, side by side in the shared key, nothing is lost. A_i comes
from the keys that the model really makes, weighted by the queries that meet them, so that the first components matter
most (the idea of TransMLA 2502.07864, there for real rotations of equal frequencies).

Of the (i, j) those stay in the rotated key whose loss would hurt most; the others lose their position and join the
values in the latent. A component that turns slowly hardly misses it; one that turns fast averages out, and is scaled by
what is left on average, ρ_i = |mean over distances Δ of e^{jω_iΔ}|. Latent and up-projections are then the best
factorisation [W_K'; W_V] ≈ W_U W_D of the given rank for the inputs that the layer really sees, errors of keys weighed
by the queries and errors of values by the output projection.
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

DISTANCE = 64  # tokens: how far attention looks, for the mean over distances
RIDGE = 1e-6  # of a metric's mean: its eigenvalues are taken as no smaller, so that it can be inverted


@dataclass(frozen=True)
class _Heads:
    """One layer's projections in float64, by head, and the second moment of what they read."""

    q: Float[Tensor, "groups heads head_dim dim"]
    k: Float[Tensor, "groups head_dim dim"]
    v: Float[Tensor, "groups head_dim dim"]
    out: Float[Tensor, "groups heads dim head_dim"]
    moment: Float[Tensor, "dim dim"]  # E[x xᵀ]


@dataclass(frozen=True)
class Factors:
    """What a grouped-query model's layers become: all that is new about the latent-attention model.

    rotated: how many components stay rotated at each frequency, in every layer. Per layer: `mixing`, what a query's
    complex numbers are multiplied by to meet each of these; `kv_down`, rows W_DKV, then W_KR; `kv_up`, rows of a key
    head's W_UK, then of its W_UV.
    """

    rotated: tuple[int, ...]
    mixing: list[Complex[Tensor, "groups pairs"]]
    kv_down: list[Float[Tensor, "kept dim"]]
    kv_up: list[Float[Tensor, "made rank"]]


def convert_to_mla(
    model: Transformer, kv_lora_rank: int, qk_rope_head_dim: int, texts: Sequence[Sequence[int]]
) -> Transformer:
    """A latent-attention model that computes nearly what `model` does, with a cache of d_c + d_R numbers a layer.

    texts: token ids to observe activations on; a few thousand tokens like those the model will see. The result has the
    model's dtype and device, and shares with it the weights outside of attention. Exact, but for rounding, at full
    width and rank: qk_rope_head_dim = kv_heads · head_dim and kv_lora_rank as much. ValueError for ranks larger than
    the source, an odd rotated width, and models that no linear map converts (norms on keys, biases).
    """
    return assemble(model, factorise(model, kv_lora_rank, qk_rope_head_dim, texts))


def factorise(model: Transformer, kv_lora_rank: int, qk_rope_head_dim: int, texts: Sequence[Sequence[int]]) -> Factors:
    """The best factors of these ranks for what the model computes on the texts. Errors as `convert_to_mla`."""
    c = model.config
    _check(c, kv_lora_rank, qk_rope_head_dim)
    layers = _observe(model, [c.check_prompt(text) for text in texts])
    omega = frequencies(c).double().to(model.device)
    components = [_components(heads) for heads in layers]
    rotated = _choose(torch.stack([strength for _, strength in components]), omega, qk_rope_head_dim // 2)
    factors = Factors(rotated, [], [], [])
    for heads, (basis, _) in zip(layers, components):
        _factorise(heads, basis, omega, kv_lora_rank, factors, _sharpness(c))
    return factors


# [assemble]
def assemble(model: Transformer, factors: Factors) -> Transformer:
    """The latent-attention model: its queries are the model's own, and those again, mixed, for the rotated key."""
    c, d = model.config, model.config.head_dim
    frequency = [float(w) for w, count in zip(frequencies(c), factors.rotated) for _ in range(count)]
    width, rank = 2 * len(frequency), factors.kv_up[0].shape[1]
    config = dataclasses.replace(
        c,
        head_dim=d + width,
        latent=LatentShape(rank, width, qk_nope_head_dim=d, v_head_dim=d, normed=False),
        rope_scaling=RopeScaling("frequencies", _sharpness(c), factors=tuple(frequency)),
    )
    with torch.device("meta"):
        converted = Transformer(config)
    for name, p in model.named_parameters():
        if ".attention." not in name or name.endswith("attention.out.weight"):
            _put(converted, name, dense(p))
    if c.tied_embeddings:
        converted.head.weight = converted.embed.weight
    index = torch.tensor([i for i, count in enumerate(factors.rotated) for _ in range(count)], device=model.device)
    for layer, mixing in enumerate(factors.mixing):
        q = _projections(model, layer)[0]  # [groups, heads, d, dim]
        mixed = mixing.to(model.device)[:, None, :, None] * _as_complex(q)[:, :, index]
        q = torch.cat((q, mixed.real, mixed.imag), dim=2).flatten(0, 2)
        q = q * (1 + width / d) ** 0.5  # scores will be divided by √(d + d_R)
        weights = {"q": q, "kv_down": factors.kv_down[layer], "kv_up": factors.kv_up[layer]}
        for name, weight in weights.items():
            _put(converted, f"layers.{layer}.attention.{name}.weight", weight.to(model.device, model.dtype))
    return converted.pack().eval()


# [/assemble]


def _check(c: ModelConfig, rank: int, width: int) -> None:
    full = c.kv_heads * c.head_dim
    if c.latent is not None:
        raise ValueError("the model has latent attention already")
    if c.qk_norm or c.qkv_bias or c.out_bias:
        raise ValueError("a model with norms on its keys or biases in its attention cannot be converted exactly")
    if not 2 <= width <= full or width % 2:
        raise ValueError(f"qk_rope_head_dim must be even and in [2, kv_heads · head_dim = {full}], got {width}")
    most = min(2 * full - width, c.dim)
    if not 1 <= rank <= most:
        raise ValueError(
            f"kv_lora_rank must lie in [1, {most}]: there are {full} numbers of values and {full - width} of keys that "
            f"are not rotated, made of {c.dim}; got {rank}"
        )


def _put(model: Transformer, name: str, tensor: Tensor) -> None:
    module, _, parameter = name.rpartition(".")
    setattr(model.get_submodule(module), parameter, nn.Parameter(tensor, requires_grad=False))


def _projections(model: Transformer, layer: int) -> tuple[Float[Tensor, "groups heads head_dim dim"], Tensor, Tensor]:
    """A layer's queries by group and head, its keys and its values by group, in float64."""
    c, weight = model.config, dense(model.get_parameter(f"layers.{layer}.attention.qkv.weight")).double()
    rows = weight.split((c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim))
    q, k, v = (part.unflatten(0, (-1, c.head_dim)) for part in rows)
    return q.unflatten(0, (c.kv_heads, -1)), k, v


@torch.inference_mode()
def _observe(model: Transformer, texts: Sequence[Sequence[int]]) -> list[_Heads]:
    """Every layer's projections, and the second moment of its attention's inputs over the texts."""
    c = model.config
    tokens = sum(map(len, texts))
    if not tokens:
        raise ValueError("conversion observes the model at work: it needs at least one text")
    moments = [torch.zeros(c.dim, c.dim, dtype=torch.float64, device=model.device) for _ in model.layers]

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
    """Rows i and i + d/2 of a projection make the complex number that RoPE turns."""
    return torch.complex(*rows.chunk(2, dim=-2))


# [components]
def _components(heads: _Heads) -> tuple[Complex[Tensor, "half groups groups"], Float[Tensor, "half groups"]]:
    """A_i of every frequency, and how much each component z_{i,j} moves the scores (mean square), largest first."""
    k, q = _as_complex(heads.k), _as_complex(heads.q)
    moment = heads.moment.to(k.dtype)
    keys = torch.einsum("gid,de,hie->igh", k, moment, k.conj())  # E[k_g conj(k_h)] of each frequency
    met = torch.einsum("ghid,de,ghie->ig", q, moment, q.conj()).real.sqrt()  # by how much query
    met = met.clamp_min(met.max() * 1e-9)
    strength, basis = torch.linalg.eigh(met[:, :, None] * keys * met[:, None, :])  # ascending
    return (basis / met[:, :, None]).flip(-1), strength.flip(-1)


# [/components]


def _left(omega: Float[Tensor, "half"]) -> Float[Tensor, "half"]:
    """ρ_i: what is left of e^{jωΔ} on average over distances, nearer ones counting more."""
    distance = torch.arange(8 * DISTANCE, dtype=torch.float64, device=omega.device)
    weight = torch.exp(-distance / DISTANCE)
    return (torch.polar(torch.ones_like(distance), omega[:, None] * distance) * weight).sum(-1).abs() / weight.sum()


def _choose(strength: Float[Tensor, "layers half groups"], omega: Float[Tensor, "half"], pairs: int) -> tuple[int, ...]:
    """How many components stay rotated at each frequency, in every layer: those whose rotation carries most."""
    share = strength / strength.sum(dim=(1, 2), keepdim=True)
    loss = (share * (1 - _left(omega).square())[:, None]).sum(0)  # [half, groups], falling along groups
    chosen = loss.flatten().topk(pairs).indices // loss.shape[1]
    return tuple(torch.bincount(chosen, minlength=len(omega)).tolist())


def _sharpness(c: ModelConfig) -> float:
    """What a rotation multiplies queries and keys by: YaRN's attention factor."""
    return c.rope_scaling.attention_factor if c.rope_scaling else 1.0


# [factorise]
def _factorise(
    heads: _Heads,
    basis: Complex[Tensor, "half groups groups"],
    omega: Float[Tensor, "half"],
    rank: int,
    into: Factors,
    sharpness: float = 1.0,
) -> None:
    """Append one layer's factors."""
    d, k = heads.k.shape[1], _as_complex(heads.k)  # k: [groups, half, dim]
    inverse = torch.linalg.inv(basis)
    pairs = [(i, j) for i, count in enumerate(into.rotated) for j in range(count)]
    i, j = torch.tensor(pairs, device=k.device).T
    rotated = torch.einsum("pg,gpx->px", inverse[i, j], k[:, i])
    # What of the keys is not rotated: A with the columns of the rotated components struck out, times A⁻¹.
    # They lose the rotation's factor too, the query's and their own.
    struck = sharpness**2 * basis * _left(omega)[:, None, None]
    struck[i, :, j] = 0
    rest = torch.einsum("igj,ijh,hix->gix", struck, inverse, k)
    wanted = torch.cat((rest.real, rest.imag, heads.v), dim=1).flatten(0, 1)  # [groups · 2d, dim]
    # Metrics: an error δk of a key moves scores by q · δk / √d, an error δv of a value moves the stream by W_O δv.
    # A score that is off moves the stream by as much of a value: hence `spread`, a head's mean square of W_O v.
    met = torch.einsum("ghax,xy,ghby->gab", heads.q, heads.moment, heads.q) / d
    moved = torch.einsum("ghxa,ghxb->gab", heads.out, heads.out)
    spread = torch.einsum("gab,gax,xy,gby->", moved, heads.v, heads.moment, heads.v) / heads.q[:, :, 0, 0].numel()
    metric = torch.block_diag(*(m for pair in zip(spread * met, moved) for m in pair))
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp_min(RIDGE * values.mean()).sqrt()
    weighted = root[:, None] * (vectors.T @ wanted)  # in the metric's own axes, stretched by it
    # The rank-d_c matrix nearest to W for inputs of this second moment: W projected on these leading directions.
    energy, directions = torch.linalg.eigh(weighted @ heads.moment @ weighted.T)
    energy, keep = energy[-rank:].clamp_min(RIDGE**2 * energy[-1]).sqrt(), directions[:, -rank:]
    into.mixing.append(basis[i, :, j].conj().resolve_conj().T)
    # Numbered so that each of the latent's numbers has a mean square of one: what trains further, and rounds, best.
    into.kv_down.append(torch.cat((keep.T @ weighted / energy[:, None], rotated.real, rotated.imag)))
    into.kv_up.append(vectors / root @ keep * energy)


# [/factorise]
