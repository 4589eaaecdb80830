"""From logits to the next token: one function for the distribution, one for the draw, which can be repeated.

Target or drafter, naive or batched, all sample by the same two functions:

    p = probabilities(logits, params)              the distribution, after temperature, top-k, top-p and min-p
    token = Noise(seed, position).choose(p, 0)     the token, by noise that depends on seed and position only

Greedy decoding is the limit of temperature 0: all of p on the largest logit. The noise is a function of the request's
seed and the token's position in its text. So a request's text does not depend on the rest of its batch, nor on how
often it was interrupted. On CUDA `kernels/steps.py` draws the same tokens, many rows at once.
"""

import math
import secrets

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.sampling.noise import ARRIVAL, LIGHT, Noise, contenders, exponential, uniforms
from inference_opt.sampling.params import SamplingParams

BROKEN = "the logits hold NaN or infinity: the model's output is broken, there is nothing to sample from"


def probabilities(logits: Float[Tensor, "*rows vocab"], params: SamplingParams) -> Float[Tensor, "*rows vocab"]:
    """The distribution that the next token is drawn from, in float64, row by row; each row sums to one.

    ValueError where a row holds NaN or +∞, or nothing above −∞: the model's output is broken.
    """
    w = weights(logits, params)
    return w.div_(w.sum(dim=-1, keepdim=True))


def weights(logits: Float[Tensor, "*rows vocab"], params: SamplingParams) -> Float[Tensor, "*rows vocab"]:
    """Each token's probability divided by that of the most probable one; in float64.

    ValueError as `probabilities`.
    """
    top = logits.amax(dim=-1, keepdim=True)
    check_top(top)
    if params.temperature == 0:
        # Ties go to the lowest token id, so that greedy decoding has only one result.
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # The largest exponent is 0, so no positive temperature overflows.
    w = logits.to(torch.float64, copy=True).sub_(top).div_(params.temperature).exp_()
    if 0 < params.top_k < w.shape[-1]:
        kth = logits.topk(params.top_k, dim=-1).values[..., -1:]
        w.mul_(logits >= kth)  # ties with the k-th are kept
    if params.top_p < 1:
        for row in w.view(-1, w.shape[-1]):
            _keep_nucleus(row, params.top_p)
    if params.min_p > 0:
        _drop_below(w, params.min_p)
    return w


def _keep_nucleus(w: Float[Tensor, "vocab"], top_p: float) -> None:
    """Keep the fewest heaviest tokens that hold at least top_p of the mass (Holtzman et al. 2019); ties by lowest id.

    A token belongs to them if the mass of those before it is still below top_p. Tokens lighter than the others' share
    by the number of tokens hold less than the others' share all together, so they are behind, and are not sorted.
    """
    whole, every = float(w.sum()), w.numpy(force=True)  # NumPy selects in a fifth of the time
    heavy = w.new_tensor(every[every >= (1 - top_p) * whole / len(w)]).sort(descending=True).values
    kept = heavy[: int((heavy.cumsum(0) - heavy < top_p * whole).sum())]
    _drop_below(w, float(kept[-1]))
    if extra := int((heavy >= kept[-1]).sum()) - len(kept):
        w[(w == kept[-1]).nonzero().flatten()[-extra:]] = 0


def _drop_below(w: Float[Tensor, "*rows vocab"], least: float) -> None:
    torch.threshold_(w, math.nextafter(least, 0), 0)  # keeps what is above its second argument


def check_top(top: Float[Tensor, "*rows"]) -> None:
    """ValueError unless every row's largest logit is finite: it is NaN or +∞ if any logit is, and −∞ if all are."""
    if not torch.isfinite(top).all():
        raise ValueError(BROKEN)


def greedy(logits: Float[Tensor, "rows vocab"]) -> list[int]:
    """Each row's token at temperature 0, which is the largest logit's: no need to compute the distribution."""
    tops, tokens = logits.max(dim=-1)  # ties go to the lowest id
    check_top(tops)
    return tokens.tolist()


def sample(logits: Float[Tensor, "vocab"], params: SamplingParams, position: int) -> int:
    """The token at `position` (counted from the start of the prompt) of a request with these parameters."""
    if params.temperature == 0:
        return greedy(logits[None])[0]
    seed = secrets.randbits(63) if params.seed is None else params.seed
    return _draw(logits, params, Noise(seed, position))


@np.errstate(divide="ignore", over="ignore")
def _draw(logits: Float[Tensor, "vocab"], params: SamplingParams, noise: Noise) -> int:
    """The token of `noise.choose(weights(logits, params), 0)`. Only tokens that can win are weighed."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32)).numpy(force=True)  # NumPy has no bfloat16
    top = float(x.max())
    if not math.isfinite(top):
        raise ValueError(BROKEN)
    if params.top_k or params.top_p < 1 or params.min_p:
        near, w = _kept(x, params)
        words = noise.words(0, ARRIVAL, int(near[-1]) + 1)
    else:
        T = params.temperature
        # A logit below `least` has a weight of `light` at most: that is LIGHT, but for the rounding of `least`.
        least = x.dtype.type(top + T * math.log(LIGHT))
        light = math.exp((float(least) - top) / T)
        heavy, words = np.flatnonzero(x >= least), noise.words(0, ARRIVAL, len(x))
        near = contenders(words, heavy, _weigh(x[heavy], top, T), light)
        w = _weigh(x[near], top, T)
    return int(near[np.argmin(exponential(uniforms(words[near])) / w)])


def _weigh(x: Float[np.ndarray, "tokens"], top: float, temperature: float) -> Float[np.ndarray, "tokens"]:
    w: np.ndarray = np.exp((x.astype(np.float64) - top) / temperature)
    return w


def _kept(
    x: Float[np.ndarray, "vocab"], params: SamplingParams
) -> tuple[Int[np.ndarray, "kept"], Float[np.ndarray, "kept"]]:
    """The tokens that the filters keep, and their weights."""
    tokens = None
    if 0 < params.top_k < len(x):  # so that few are weighed
        tokens = np.flatnonzero(x >= np.partition(x, -params.top_k)[-params.top_k])
        x = x[tokens]
    w = weights(torch.from_numpy(x), params).numpy()
    kept = np.flatnonzero(w > 0)
    return kept if tokens is None else tokens[kept], w[kept]
