"""`inference-opt bench engine`: the whole engine on CUDA, beside `transformers` and what the card's memory allows.

A decoding step reads every weight, and every key and value of every request, once:

    tokens a second ≤ batch · read bandwidth / (bytes of weights + bytes of the requests' keys and values)

The weights are random, of a real model's shape: how long a step takes does not depend on them. Prompts are random, so
no prefix is shared. Prefill is timed apart, and taken off.
"""

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from inference_opt.bench.machine import command_line, describe, read_bandwidth
from inference_opt.engine.engine import Engine
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

PROMPT, PAGE = 128, 16
SHAPES = {
    "SmolLM2-135M": ModelConfig(49_152, 576, 30, 9, 3, 64, 1_536, 8_192, tied_embeddings=True, rope_theta=100_000.0),
    "Llama-3.2-1B": ModelConfig(
        128_256, 2_048, 16, 32, 8, 64, 8_192, 8_192, tied_embeddings=True, rope_theta=500_000.0
    ),
}
Decoder = Callable[[list[list[int]], int], Any]  # prompts, new tokens


def _ours(config: ModelConfig, batch: int, longest: int, ahead: int) -> Decoder:
    with torch.device("cuda"):
        model = Transformer(config).to(torch.bfloat16).init_weights()
    num_pages = (batch + 1) * -(-longest // PAGE)
    engine = Engine(model, False, None, PAGE, num_pages, token_budget=8_192, max_running=batch, ahead=ahead)

    def decode(prompts: list[list[int]], new: int) -> Any:
        return engine.generate(prompts, SamplingParams(max_new_tokens=new, ignore_eos=True))

    return decode


def transformers_model(config: ModelConfig) -> Any:
    """The same shape in `transformers`, random weights. ValueError where it is not installed."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ValueError("--peer needs transformers: pip install 'inference-opt[test]', or say --no-peer") from error
    shape = AutoConfig.for_model(
        "llama", vocab_size=config.vocab_size, hidden_size=config.dim, num_hidden_layers=config.depth,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, intermediate_size=config.ffn_dim,
        max_position_embeddings=config.max_context, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape).bfloat16().eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def _transformers(config: ModelConfig) -> Decoder:
    model = transformers_model(config)

    def decode(prompts: list[list[int]], new: int) -> Any:
        ids = torch.tensor(prompts, device="cuda")
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert out.shape[1] == PROMPT + new
        return out

    return decode


def _seconds(decode: Decoder, prompts: list[list[int]], new: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    decode(prompts, new)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def bench_engine(
    shapes: Iterable[str], batches: list[int], new: int, ahead: int, repeats: int, peer: bool, progress: Progress
) -> dict[str, Any]:
    """Tokens a second in decode, prefill apart, by shape and batch; ours, the peer's, and the limit.

    ValueError for a shape that is not known, and without CUDA.
    """
    shapes = list(shapes)
    if unknown := set(shapes) - set(SHAPES):
        raise ValueError(f"unknown shapes {sorted(unknown)}: expected some of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise ValueError(
            "the engine is timed on CUDA here; for the processor there are `bench decode` and `bench radix`"
        )
    bandwidth = read_bandwidth(4096, device="cuda")
    task = progress.add_task("bench engine", total=len(shapes) * len(batches) * (1 + peer))
    results = []
    for shape in shapes:
        config = SHAPES[shape]
        for batch in batches:
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(config.vocab_size, (batch, PROMPT), generator=generator).tolist()
            row: dict[str, Any] = {"shape": shape, "batch": batch}
            for name in ("inference-opt", "transformers")[: 1 + peer]:
                ours = name == "inference-opt"
                decode = _ours(config, batch, PROMPT + new + 1, ahead) if ours else _transformers(config)
                for n in (1, new + 1):  # warm up: compile, capture
                    decode(prompts, n)
                times = [[_seconds(decode, prompts, n) for n in (1, new + 1)] for _ in range(repeats)]
                rates = [batch * new / (whole - first) for first, whole in times]
                figures = {"decode": median(rates), "spread": [min(rates), max(rates)]}
                figures["prefill_seconds"] = median(first for first, _ in times)
                figures["with_prefill"] = batch * (new + 1) / median(whole for _, whole in times)
                row[name] = figures
                del decode
                torch.cuda.empty_cache()
                progress.advance(task)
            moved = _bytes(config, batch * (PROMPT + new / 2))
            row |= {"bytes": moved, "limit": batch * bandwidth / moved}
            row["of_limit"] = row["inference-opt"]["decode"] / row["limit"]
            results.append(row)
    machine = {**describe(), "device": torch.cuda.get_device_name()}
    sizes = {
        "prompt": PROMPT,
        "new_tokens": new,
        "ahead": ahead,
        "repeats": repeats,
        "page_size": PAGE,
        "dtype": "bfloat16",
    }
    head = {"command": command_line(), "machine": machine, "read_bandwidth": bandwidth}
    return head | sizes | {"results": results}


def _bytes(config: ModelConfig, tokens: float) -> float:
    """What a step reads, in bfloat16: the weights, the table as the head only, and so many tokens' keys and values."""
    with torch.device("meta"):
        weights = Transformer(config).to(torch.bfloat16).weight_bytes()
    return weights + tokens * 2 * config.kv_elements_per_token
