"""From logits to the next token: one function for the distribution, one for the draw, which can be repeated.

Target or drafter, naive or batched, all sample by the same two functions:

    p = probabilities(logits, params)              the distribution, after temperature, top-k, top-p and min-p
    token = Noise(seed, position).choose(p, 0)     the token, by noise that depends on seed and position only

Greedy decoding is the limit of temperature 0: all of p on the largest logit. The noise is a function of the request's
seed and the token's position in its text (a counter-based generator: Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"). So a request's text does not depend on the rest of its batch, nor on how often it was interrupted.
"""

import secrets

import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.sampling.noise import Noise
from inference_opt.sampling.params import SamplingParams

BROKEN = "the logits hold NaN or infinity: the model's output is broken, there is nothing to sample from"


# [probabilities]
def probabilities(logits: Float[Tensor, "*rows vocab"], params: SamplingParams) -> Float[Tensor, "*rows vocab"]:
    """The distribution that the next token is drawn from, in float64, row by row; each row sums to one.

    ValueError where a row holds NaN or +∞, or nothing above −∞: the model's output is broken.
    """
    x = logits.double()
    top = x.amax(dim=-1, keepdim=True)
    check_top(top)
    if params.temperature == 0:
        # Ties go to the lowest token id, so that greedy decoding is a function.
        return torch.zeros_like(x).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Subtracting the maximum first keeps any positive temperature from overflowing.
    p = torch.softmax((x - top) / params.temperature, dim=-1)
    if 0 < params.top_k < p.shape[-1]:
        kth = p.topk(params.top_k, dim=-1).values[..., -1:]
        p = _keep(p, p >= kth)  # ties with the k-th are kept
    if params.top_p < 1:
        # Nucleus (Holtzman et al. 2019): the fewest most probable tokens that hold at least top_p of the mass. A token
        # belongs to them if the mass of those before it is still below top_p.
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        p = _keep(p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < params.top_p))
    if params.min_p > 0:
        p = _keep(p, p >= params.min_p * p.amax(dim=-1, keepdim=True))
    return p


def check_top(top: Float[Tensor, "*rows"]) -> None:
    """ValueError unless every row's largest logit is finite: it is NaN or +∞ if any logit is, and −∞ if all are."""
    if not torch.isfinite(top).all():
        raise ValueError(BROKEN)


def _keep(p: Float[Tensor, "*rows vocab"], mask: Tensor) -> Float[Tensor, "*rows vocab"]:
    """The distribution, given that the token is one of the mask's."""
    p = p * mask
    return p / p.sum(dim=-1, keepdim=True)


# [/probabilities]


# [draw]
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
    return Noise(seed, position).choose(probabilities(logits, params).cpu().numpy(), 0)


# [/draw]
