"""From logits to the next token: parameters, the distribution, the noise that draws from it, where a text ends."""

from inference_opt.sampling.distribution import BROKEN, check_top, greedy, probabilities, sample
from inference_opt.sampling.noise import CommonNoise, Noise
from inference_opt.sampling.params import SamplingParams, requests_of, sampling_params, seeded
from inference_opt.sampling.stopping import Detokenizer, FinishReason, StopCheck, cut_at_stop

__all__ = [
    "BROKEN",
    "CommonNoise",
    "Detokenizer",
    "FinishReason",
    "Noise",
    "SamplingParams",
    "StopCheck",
    "check_top",
    "cut_at_stop",
    "greedy",
    "probabilities",
    "requests_of",
    "sample",
    "sampling_params",
    "seeded",
]
