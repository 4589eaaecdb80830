"""Speculative decoding: acceptance rules, drafters, how long to draft."""

from inference_opt.speculative.drafter import Drafter
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import NGram, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel

__all__ = ["DRAFTERS", "Drafter", "Eagle", "FirstLayers", "NGram", "PromptLookup", "SmallerModel"]

DRAFTERS: dict[str, type[Drafter]] = {  # those that need nothing but the target
    "prompt-lookup": PromptLookup,
    "n-gram": NGram,
    "first-layers": FirstLayers,
    "trained": Eagle,
}
