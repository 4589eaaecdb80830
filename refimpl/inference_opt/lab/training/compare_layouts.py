"""A controlled experiment, on an accelerator: attention layouts with equal parameters, trained on the same tokens.

    python -m inference_opt.lab.training.compare_layouts corpus.safetensors --device cuda --json control.json

Every layout has the same width, depth, heads and vocabulary. The parameters that a layout saves in its attention go to
its feed-forward. Each seed gives every layout the same rows in the same order. The question is the held-out loss of a
layout beside the bytes that it caches for a token. The spread over seeds says which differences are meaningful.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor, nn

from inference_opt.files import writable, write_json
from inference_opt.lab.training.block_diagonal import BlockDiagonalAttention
from inference_opt.lab.training.loop import ran_on, set_rate
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.model.transformer import count_weights as parameters

DIM = 384
DEPTH = 6
HEADS = 6
HEAD = 64
VOCAB = 8192
FFN = 1024


def layout(name: str, length: int) -> ModelConfig:
    """The model of a layout: MHA, GQA-2, MQA, or MLA-c-r with a latent of width c and a rotated key of width r."""
    kv_heads = {"MHA": HEADS, "MQA": 1}.get(name) or int(name.split("-")[1])
    latent = None
    head_dim = HEAD
    if name.startswith("MLA"):
        rank, width = map(int, name.split("-")[1:])
        latent = LatentShape(rank, width, qk_nope_head_dim=HEAD, v_head_dim=HEAD)
        kv_heads = HEADS
        head_dim = HEAD + width

    def of(ffn: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=VOCAB,
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_dim=ffn,
            max_context=length,
            tied_embeddings=True,
            latent=latent,
        )

    if name == "MHA":
        return of(FFN)
    spare = parameters(layout("MHA", length)) - parameters(of(FFN))
    return of(FFN + round(spare / (3 * DIM * DEPTH)))  # a column of the feed-forward has 3 · dim weights in each layer


def losses(model: Transformer, ids: Int[Tensor, "rows length"], ended: Int[Tensor, "rows"]) -> Tensor:
    """−ln p of every token but each row's first, up to the row's end."""
    rows, length = ids.shape
    positions = torch.arange(length, device=ids.device)
    with torch.autocast(ids.device.type, torch.bfloat16):
        h, _ = model.hidden_states(ids.flatten(), positions.repeat(rows), BlockDiagonalAttention(rows))
        asked = (positions < ended[:, None] - 1).flatten().nonzero().squeeze(1)
        logits = model.logits(h[asked])
    return nn.functional.cross_entropy(logits.float(), ids.roll(-1, 1).flatten()[asked], reduction="none")


def train(config: ModelConfig, data: dict[str, Tensor], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one model from scratch; its held-out loss, and the run's figures."""
    device = data["tokens"].device
    model = Transformer(config).init_weights(seed).to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    held = {name: tensor[: options.held_out] for name, tensor in data.items()}
    rest = {name: tensor[options.held_out :] for name, tensor in data.items()}
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(rest["tokens"]), generator=generator) for _ in range(options.epochs)])
    batches = order[: len(order) // options.batch * options.batch].view(-1, options.batch).to(device)
    began = time.perf_counter()
    for step, pick in enumerate(batches):
        set_rate([optimizer], options.lr, 10 * (step + 1) / len(batches), step / len(batches))
        loss = losses(model, rest["tokens"][pick], rest["ended"][pick]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        parts = zip(held["tokens"].split(options.batch), held["ended"].split(options.batch))
        out = torch.cat([losses(model, *part) for part in parts])
    return {"seed": seed, "loss": float(out.mean()), "train_loss": loss.item(), "seconds": time.perf_counter() - began}


def reduce_vocabulary(tokens: Int[Tensor, "rows length"]) -> tuple[Int[Tensor, "rows length"], float]:
    """The VOCAB − 1 most frequent tokens numbered anew, all others as one; and the share of the frequent ones."""
    counts = torch.bincount(tokens.flatten())
    frequent = counts.topk(min(VOCAB - 1, len(counts))).indices
    number = torch.full((len(counts),), VOCAB - 1)
    number[frequent] = torch.arange(len(frequent))
    return number[tokens], float(counts[frequent].sum() / counts.sum())


def job(options: argparse.Namespace, name: str, seed: int, device: str) -> tuple[str, dict[str, Any]]:
    """One run, in a process of its own: a model this small leaves an accelerator idle, so several share it well."""
    corpus = load_file(options.corpus)
    tokens, _ = reduce_vocabulary(corpus["tokens"].long())
    data = {"tokens": tokens.to(device), "ended": corpus["ended"].to(device)}
    return name, train(layout(name, tokens.shape[1]), data, options, seed)


def main() -> None:
    """Train all layouts with all seeds. The record is written after each run, so that an interruption loses little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--device", nargs="+", default=["cpu"], help="one or several, which share the runs")
    parser.add_argument("--layouts", nargs="+", default=["MHA", "GQA-2", "MQA", "MLA-256-32", "MLA-96-32"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--parallel", type=int, default=5, help="number of runs at a time")
    parser.add_argument("--json", type=writable, required=True)
    options = parser.parse_args()
    corpus = load_file(options.corpus)
    tokens, covered = reduce_vocabulary(corpus["tokens"].long())
    configs = {name: layout(name, tokens.shape[1]) for name in options.layouts}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.layouts}
    record: dict[str, Any] = {
        **ran_on(options.device[0]),
        "tokens_a_run": int(corpus["ended"][options.held_out :].sum()) * options.epochs,
        "vocabulary": VOCAB,
        "vocabulary_covers": covered,
    }
    pairs = [(name, seed) for seed in range(options.seeds) for name in options.layouts]
    jobs = [(*pair, options.device[i % len(options.device)]) for i, pair in enumerate(pairs)]
    with ProcessPoolExecutor(options.parallel, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(job, options, *each) for each in jobs]):
            name, run = done.result()
            runs[name].append(run)
            print(name, json.dumps(run), flush=True)
            record["layouts"] = [
                {
                    "layout": name,
                    "parameters": parameters(configs[name]),
                    "ffn_dim": configs[name].ffn_dim,
                    "kv_bytes_per_token": 2 * configs[name].kv_elements_per_token,
                    "loss": mean(run["loss"] for run in each),
                    "spread": stdev(run["loss"] for run in each) if len(each) > 1 else None,
                    "runs": sorted(each, key=lambda run: run["seed"]),
                }
                for name, each in runs.items()
                if each
            ]
            write_json(options.json, record)


if __name__ == "__main__":
    main()
