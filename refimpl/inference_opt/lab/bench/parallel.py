"""Generation by a model that is sharded across ranks (`model/parallel.py`), beside the whole model on one rank.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m inference_opt.lab.bench.parallel --json FILE

Weights are random unless `--model` names some. `--repeats` times, the first rank generates alone, then all generate
together: with steps captured on the device (`engine/graph_runner.py`) and step by step. The tokens must be the same.
Each rank has a card of its own, and ranks communicate through NCCL. If there are fewer cards than ranks, they share the
cards and communicate through gloo. Then nothing is captured, and the times mean nothing, but the tokens must agree.
"""

import argparse
import contextlib
import os
import shlex
import sys
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh

from inference_opt.engine.engine import Engine
from inference_opt.engine.graph_runner import GraphRunner
from inference_opt.environment import describe, elapsed
from inference_opt.files import writable, write_json
from inference_opt.lab.agreement import compare
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.loading.load import DTYPES, load_model
from inference_opt.model.config import ModelConfig
from inference_opt.model.parallel import local_config, parallelize
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import SamplingParams

ALL = SHAPES | {"tiny": ModelConfig(256, 64, 2, 8, 4, 8, 128, 512)}


def make(shape: str, source: str | None, dtype: torch.dtype, device: torch.device, seed: int) -> Transformer:
    """A model from a file, or with random weights of a shape. The same seed and device give the same weights."""
    if source:
        return load_model(source, dtype, device)[0]
    return random_model(ALL[shape], dtype, device, seed)


def model_bytes(model: Transformer) -> int:
    """Bytes of all parameters, each counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def ways(model: Transformer, pages: int) -> dict[str, Engine]:
    """An engine that runs step by step and, if steps can be captured, one that captures them."""
    plain, captured = (Engine(model, radix=False, num_pages=pages) for _ in range(2))
    if not isinstance(plain.runner, GraphRunner):
        return {"step by step": plain}
    plain.runner = plain.runner.eager
    plain.scheduler.choose = plain.runner.choose
    return {"step by step": plain, "captured": captured}


def bench_parallel(options: argparse.Namespace) -> dict[str, Any]:
    """Run on every rank. The first rank returns all figures. ValueError if the model cannot be sharded so."""
    rank = dist.get_rank()
    ranks = dist.get_world_size()
    device = options.on
    dtype = DTYPES[options.dtype]

    # The whole model on the first rank, and each rank's part on every rank.
    if not options.model:
        local_config(ALL[options.shape], ranks)  # refuse before anything is made
    whole = make(options.shape, options.model, dtype, device, options.seed) if rank == 0 else None
    part = make(options.shape, options.model, dtype, device, options.seed)
    part = parallelize(part, init_device_mesh(device.type, (ranks,)))

    generator = torch.Generator().manual_seed(options.seed)
    size = (options.prompts, options.prompt_tokens)
    prompts = torch.randint(part.config.vocab_size, size, generator=generator).tolist()
    greedy = [SamplingParams(options.new_tokens, ignore_eos=True, seed=i) for i in range(len(prompts))]
    seeded = [SamplingParams(options.new_tokens, 0.8, ignore_eos=True, seed=i) for i in range(len(prompts))]
    console = Console(stderr=True, quiet=rank > 0)

    # Who generates ("one" rank or "all") and how, in turn. A barrier keeps waiting ranks from slowing the one.
    pages = options.prompts * -(-(options.prompt_tokens + options.new_tokens) // 16)
    engines = {who: ways(model, pages) if model else {} for who, model in (("one", whole), ("all", part))}
    rates: dict[str, list[float]] = {f"{who}, {how}": [] for who in engines for how in engines[who]}
    found: dict[str, dict[str, list[list[int]]]] = {name: {} for name in rates}
    for repeat in range(options.repeats + 1):  # the first warms up
        for who in engines:
            dist.barrier()
            for how, engine in engines[who].items():
                name = f"{who}, {how}"
                found[name]["seeded"] = [c.tokens for c in engine.generate(prompts, seeded)]
                began = time.perf_counter()
                found[name]["greedy"] = [c.tokens for c in engine.generate(prompts, greedy)]
                rates[name].append(sum(map(len, found[name]["greedy"])) / elapsed(began))
                console.print(f"{repeat} of {options.repeats}: {name}: {rates[name][-1]:.1f} tokens/s")
    dist.barrier()

    # Every rank's texts and sizes, on every rank.
    mine = {name: texts for name, texts in found.items() if name.startswith("all")}
    everyones: list[Any] = [None] * ranks
    dist.all_gather_object(everyones, (mine, model_bytes(part), part.config.kv_elements_per_token))
    run = f"python -m torch.distributed.run --standalone --nproc-per-node {ranks} -m inference_opt.lab.bench.parallel"
    figures: dict[str, Any] = {"command": shlex.join([*run.split(), *sys.argv[1:]])}
    card = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cards": torch.cuda.device_count(),
    }
    figures |= {"machine": describe() | card, "backend": dist.get_backend(), "ranks": ranks, "dtype": options.dtype}
    figures |= {"model": options.model or f"random, {options.shape}", "seed": options.seed}
    figures |= {"prompts": options.prompts, "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
    if whole is not None:
        one = found.pop("one, step by step")
        size_of = dtype.itemsize
        figures["ranks_agree"] = all(texts == mine for texts, _, _ in everyones)
        figures["greedy"] = {}
        figures["seeded_identical"] = {}
        for name, texts in found.items():
            pairs = zip(prompts, one["greedy"], texts["greedy"])
            figures["greedy"][name] = [str(compare(whole, *each)) for each in pairs]
            figures["seeded_identical"][name] = sum(a == b for a, b in zip(one["seeded"], texts["seeded"]))
        figures["weight_bytes"] = {"one": model_bytes(whole), "ranks": [n for _, n, _ in everyones]}
        elements = whole.config.kv_elements_per_token
        figures["kv_bytes_per_token"] = {"one": elements * size_of, "ranks": [n * size_of for _, _, n in everyones]}
        figures["tokens_per_second"] = {
            name: {"median": median(r[1:]), "spread": [min(r[1:]), max(r[1:])]} for name, r in rates.items()
        }
    return figures


def main(arguments: list[str] | None = None) -> None:
    """The program of each of torchrun's processes."""
    parser = argparse.ArgumentParser(prog="inference_opt.lab.bench.parallel", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=ALL, default="Llama-3.2-1B")
    parser.add_argument("--model", help="weights to load instead: as load_model takes them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    for name, default in {"prompts": 8, "prompt-tokens": 64, "new-tokens": 64, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=writable)
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("run it under torch: python -m torch.distributed.run --standalone --nproc-per-node 2 -m ...")
    if min(options.prompts, options.prompt_tokens, options.new_tokens, options.repeats) < 1:
        parser.error("--prompts, --prompt-tokens, --new-tokens and --repeats must be at least 1")
    local = int(os.environ["LOCAL_RANK"])
    cards = torch.cuda.device_count()
    options.on = torch.device(f"cuda:{local % max(cards, 1)}" if options.device == "cuda" else "cpu")
    if options.device == "cuda":
        if not cards:
            parser.error("--device cuda was asked for, but torch finds no CUDA device here")
        torch.cuda.set_device(options.on)
    own_card = options.device == "cuda" and cards >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if own_card else "gloo")
    try:
        figures = bench_parallel(options)
        dist.barrier()  # no rank leaves while another still communicates
    except ValueError as error:
        sys.exit(f"error: {error}")
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
    if "greedy" in figures:
        write_json(options.json, figures)
        Console().print_json(data=figures)
        verdicts = [verdict for each in figures["greedy"].values() for verdict in each]
        if not figures["ranks_agree"] or any("DIFFERENT" in verdict for verdict in verdicts):
            sys.exit("error: the tokens differ")


if __name__ == "__main__":
    main()
