"""`inference-opt bench mla`: the explicit and the absorbed form of latent attention, by context and by new tokens.

Two limits, measured in the same run, predict the time of each form. It is at least

    max(operations / rate of the matrix product,  bytes / read bandwidth)

    explicit   2 [n · n_k (d_h + d_v) d_c + m n · n_h (d_h + d_R + d_v)] operations for m new tokens over n
               bytes: the latents, W_UK and W_UV, and every key and value, written and read once
    absorbed   2 [m · n_h (d_h + d_v) d_c + m n · n_h (2 d_c + d_R)]
               bytes: the latents, W_UK and W_UV

The absorbed form is faster for few new tokens, the explicit one for many. The crossing is where a system should change
from one to the other.
"""

import time
from collections.abc import Callable
from functools import partial
from math import exp, log
from statistics import median
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from inference_opt import kernels
from inference_opt.cache.explicit import first_explicit
from inference_opt.environment import command_line, describe, elapsed
from inference_opt.lab.bench.machine import graph_seconds, measured
from inference_opt.lab.bench.work import Limits
from inference_opt.loading.load import parse_device, parse_dtype
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.mla import LatentAttention, multiplications

FORMS = ("explicit", "absorbed")


def shapes() -> dict[str, ModelConfig]:
    """The shapes by name: DeepSeek's, and SmolLM2 converted at rank 96 + 32."""

    def of(heads: int, kv_heads: int, latent: LatentShape) -> ModelConfig:
        width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        sizes = (2, 2, 1, heads, kv_heads, width, 2, 1)  # what surrounds the attention is not measured
        return ModelConfig(*sizes, latent=latent)

    deepseek = LatentShape(512, 64, 128, 128)
    return {
        "DeepSeek-V2": of(128, 128, deepseek),
        "DeepSeek-V2-Lite": of(16, 16, deepseek),
        "SmolLM2 96+32": of(9, 3, LatentShape(96, 32, 64, 64, normed=False)),
    }


def cost(config: ModelConfig, form: str, m: int, n: int, element: int) -> tuple[int, int]:
    """Operations, and the least bytes read and written, for m new tokens over n."""
    s = config.latent
    k = config.kv_heads
    assert s is not None
    moved = n * config.kv_shape["head_dim"] + k * (s.qk_nope_head_dim + s.v_head_dim) * s.kv_lora_rank
    if form == "explicit":  # every key and value, written and read
        moved += 2 * n * k * (config.head_dim + s.v_head_dim)
    return 2 * multiplications(config, form, m, n), element * moved


def predicted(config: ModelConfig, form: str, m: int, n: int, element: int, limits: Limits) -> float:
    """Seconds that the two limits allow at best."""
    operations, moved = cost(config, form, m, n, element)
    return limits.seconds(moved, operations)


def crossing(times: dict[str, list[float]], new: list[int]) -> float | None:
    """The number of new tokens from which the explicit form is faster, interpolated in logarithms; None if never."""
    gap = [log(a / e) for a, e in zip(times["absorbed"], times["explicit"])]  # positive: explicit is faster
    for i, g in enumerate(gap):
        if g > 0:
            if i == 0:
                return float(new[0])
            share = -gap[i - 1] / (g - gap[i - 1])
            return exp(log(new[i - 1]) + share * (log(new[i]) - log(new[i - 1])))
    return None


def _seconds(run: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    run()
    if device.type == "cpu":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(elapsed(began))
        return median(times)
    return median(graph_seconds(run, repeats))


def by_kernel(layer: LatentAttention, q: Tensor, kept: Tensor, page: int = 64) -> Callable[[], Tensor]:
    """The absorbed form as an engine on CUDA runs it: by the kernel, over pages, planned beforehand."""
    n = len(kept)
    d_c = layer.shape.kv_lora_rank
    pages = nn.functional.pad(kept, (0, 0, 0, 0, 0, -n % page)).unflatten(0, (-1, page))
    table = torch.arange(len(pages), dtype=torch.int32)[None]
    batch = kernels.plan_batch(table, [n], [len(q)], pages, layer.heads, d_c)
    return lambda: layer.values(
        kernels.paged_attention(layer.absorb(q), pages, None, batch, layer.scale, d_c, pdl=True)[0]
    )


def expanded_by_kernel(layer: LatentAttention, q: Tensor, kept: Tensor, page: int = 64) -> Callable[[], Tensor]:
    """The explicit form as an engine on CUDA runs it: keys and values made of pages, and attended by the kernel."""
    from inference_opt.kernels.latents import expand  # needs Triton

    n, shape = len(kept), layer.shape
    pages = nn.functional.pad(kept, (0, 0, 0, 0, 0, -n % page)).unflatten(0, (-1, page))
    table = torch.arange(len(pages), dtype=torch.int32)[None]
    like = pages.new_empty(1).expand(len(pages), page, layer.kv_heads, layer.config.head_dim)
    batch = kernels.plan_batch(table, [n], [len(q)], like, layer.heads)
    up = layer.kv_up.weight.unflatten(0, (layer.kv_heads, -1))
    return lambda: kernels.paged_attention(q, *expand(pages, up, shape.qk_nope_head_dim), batch, layer.scale, pdl=True)[
        0
    ]


@torch.inference_mode()
def bench_prompts(
    names: list[str],
    device_name: str,
    dtype_name: str,
    prefixes: list[int],
    prompts: list[int],
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """Both forms of one layer by our kernels, for new tokens behind a cached prefix, and which an engine on CUDA takes.

    ValueError for an unknown shape.
    """
    device, dtype = parse_device(device_name), parse_dtype(dtype_name)
    _check(names)
    results = []
    task = progress.add_task("bench mla", total=len(names) * len(prefixes) * len(prompts))
    for name in names:
        config = shapes()[name]
        layer = _layer(config, device, dtype)
        for prefix in prefixes:
            for m in prompts:
                kept = torch.randn(prefix + m, 1, config.kv_shape["head_dim"], device=device, dtype=dtype)
                q = torch.randn(m, config.heads, config.head_dim, device=device, dtype=dtype)
                runs = {"explicit": expanded_by_kernel(layer, q, kept), "absorbed": by_kernel(layer, q, kept)}
                a, b = (run().double() for run in runs.values())
                row: dict[str, Any] = {"shape": name, "prefix": prefix, "new_tokens": m}
                row |= {form: _seconds(run, device, repeats) for form, run in runs.items()}
                row["chosen"] = FORMS[first_explicit(config, [prefix], [m])]
                results.append(row | {"difference": float((a - b).norm() / b.norm())})
                progress.advance(task)
    gpu = {"device": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    head = {"command": command_line(), "machine": describe() | gpu, "dtype": dtype_name, "repeats": repeats}
    return head | {"results": results}


def _check(names: list[str]) -> None:
    if unknown := set(names) - shapes().keys():
        raise ValueError(f"unknown shape {min(unknown)!r}: expected one of {', '.join(shapes())}")


def _layer(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> LatentAttention:
    torch.manual_seed(0)
    layer = LatentAttention(config).to(device=device, dtype=dtype).eval()
    torch.nn.init.normal_(layer.kv_up.weight, std=0.02)
    return layer


@torch.inference_mode()
def bench_mla(
    names: list[str], device_name: str, dtype_name: str, contexts: list[int], repeats: int, progress: Progress
) -> dict[str, Any]:
    """Time both forms of one layer's attention over one sequence. ValueError for an unknown shape."""
    device = parse_device(device_name)
    dtype = parse_dtype(dtype_name)
    _check(names)
    machine = measured(dtype, device)
    results = []
    task = progress.add_task("bench mla", total=len(names) * len(contexts))
    for name in names:
        config = shapes()[name]
        layer = _layer(config, device, dtype)
        element = layer.kv_up.weight.element_size()
        for n in contexts:
            kept = torch.randn(n, 1, config.kv_shape["head_dim"], device=device, dtype=dtype)
            new = [2**i for i in range(n.bit_length()) if 2**i <= min(n, 1024)]
            times: dict[str, list[float]] = {form: [] for form in FORMS}
            limits: dict[str, list[float]] = {form: [] for form in FORMS}
            error = 0.0
            for m in new:
                q = torch.randn(m, config.heads, config.head_dim, device=device, dtype=dtype)
                outputs = {}
                for form in FORMS:
                    layer.form = form
                    run: Callable[[], Tensor] = partial(layer.over, q, kept)
                    if form == "absorbed" and kept.is_cuda:
                        run = by_kernel(layer, q, kept)
                    outputs[form] = run()
                    times[form].append(_seconds(run, device, repeats))
                    limits[form].append(predicted(config, form, m, n, element, machine))
                a, b = (outputs[form].double() for form in FORMS)
                error = max(error, float((a - b).norm() / a.norm()))
            results.append(
                {
                    "shape": name,
                    "context": n,
                    "new_tokens": new,
                    **{form: {"seconds": times[form], "limit": limits[form]} for form in FORMS},
                    "decode_speedup": times["explicit"][0] / times["absorbed"][0],
                    "predicted_decode_speedup": limits["explicit"][0] / limits["absorbed"][0],
                    "crossing": crossing(times, new),
                    "predicted_crossing": crossing(limits, new),
                    "difference": error,
                }
            )
            progress.advance(task)
    gpu = {"device": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    ceilings = {"product_flops": machine.rate, "read_bandwidth": machine.bandwidth}
    head = {"command": command_line(), "machine": describe() | gpu, "dtype": dtype_name, "repeats": repeats}
    return head | {"ceilings": ceilings, "results": results}
