"""vLLM beside our drafts: the same weights and prompts, plainly and with its n-gram speculation.

Its n-grams are as long as those of our prompt lookup. It does not say when a request has its first token, so the time
of a run with one token each is subtracted.
"""

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from inference_opt.environment import elapsed
from inference_opt.lab.bench.engine_peers import vllm_engine
from inference_opt.lab.bench.peers import transformers_model
from inference_opt.loading.load import parse_dtype
from inference_opt.speculative.lookup import PromptLookup

VLLM = "vLLM"
KEPT = 4 << 30  # bytes for keys and values, for each engine
SHARE = 0.15  # of the card's memory, which must be free when an engine is made

# Prompts, new tokens of each, temperature → the texts, and seconds of decoding.
Decoder = Callable[[list[list[int]], list[int], float], tuple[list[list[int]], float]]


def vllm_decoders(source: str, lengths: Sequence[int], most: int) -> dict[str, Decoder]:
    """By name: plain, and with each number of drafts, for `most` requests at once. ValueError if vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("--peer needs vLLM, which is not installed: pip install vllm, or leave --peer out")
    ours = PromptLookup()
    ngrams = {"method": "ngram", "prompt_lookup_max": ours.max_ngram, "prompt_lookup_min": ours.min_ngram}
    with tempfile.TemporaryDirectory() as folder:
        model = transformers_model(source, parse_dtype("bfloat16"))
        # It refuses to save what was read from GGUF. Where the weights are dense by now, nothing of that is left.
        if all(each.is_floating_point() for each in model.state_dict().values()):
            model.hf_quantizer = None
            vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        # Where an engine is to find out by itself how many bytes there are, it drops the graphs of those made before.
        sizes = {"max_num_seqs": most, "kv_cache_memory_bytes": KEPT, "gpu_memory_utilization": SHARE}
        decoders = {VLLM: _decoder(folder, **sizes)}
        for gamma in lengths:
            drafts = ngrams | {"num_speculative_tokens": gamma}
            decoders[f"{VLLM}, γ = {gamma}"] = _decoder(folder, speculative_config=drafts, **sizes)
    return decoders


def _decoder(folder: str, **options: Any) -> Decoder:
    library, llm = vllm_engine(folder, **options)

    def run(prompts: list[list[int]], new: list[int], temperature: float) -> tuple[list[list[int]], float]:
        fixed = {"temperature": temperature, "ignore_eos": True, "detokenize": False}
        params = [library.SamplingParams(max_tokens=n, min_tokens=n, seed=i, **fixed) for i, n in enumerate(new)]
        began = time.perf_counter()
        out = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in out], elapsed(began)

    def decode(prompts: list[list[int]], new: list[int], temperature: float) -> tuple[list[list[int]], float]:
        texts, whole = run(prompts, new, temperature)
        _, first = run(prompts, [1] * len(new), temperature)
        return texts, whole - first if whole > first else whole  # never shorter than it was

    return decode
