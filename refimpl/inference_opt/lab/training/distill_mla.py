"""Heals a converted model, on an accelerator: its factors learn the original's law on text that the original samples.

    python -m inference_opt.lab.training.eagle --device cuda corpus --out corpus.safetensors
    python -m inference_opt.lab.training.distill_mla corpus.safetensors --device cuda --out f.safetensors

Only what replaces keys and values is trained (W_DKV, W_KR, W_UK, W_UV of every layer: 3.3 of 135 million numbers at
rank 96 + 32), by KL(original ‖ converted) over the whole vocabulary at every position. Everything else stays the
original's, so the factors are all there is to ship.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from inference_opt.conversion.convert import Factors, assemble, factorise
from inference_opt.conversion.pretrained import load_factors, save_factors, texts_of
from inference_opt.files import writable, write_json
from inference_opt.lab.quality import quality
from inference_opt.lab.training.loop import ran_on, set_rate
from inference_opt.lab.training.rows import Rows
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import needed
from inference_opt.model.transformer import Transformer


# [loss]
def divergence(wanted: Float[Tensor, "positions vocab"], logits: Float[Tensor, "positions vocab"]) -> Float[Tensor, ""]:
    """Mean KL(original ‖ converted) = Σ p (log p − log q), in nats."""
    p, q = wanted.float().log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


# [/loss]


def heal(
    original: Transformer,
    factors: Factors,
    tokens: Int[Tensor, "rows length"],
    ended: Int[Tensor, "rows"],
    minutes: float,
    batch: int = 32,
    lr: float = 2e-3,
    every: int = 20,
    seed: int = 0,
) -> tuple[Factors, dict[str, Any]]:
    """Train the factors for so many minutes on rows of text that end at `ended`; the healed ones, and the record."""
    torch.manual_seed(seed)
    model = assemble(original, factors)
    model.unpack().requires_grad_(False)
    names = [f"layers.{i}.attention.{part}.weight" for part in ("kv_down", "kv_up") for i in range(len(model.layers))]
    trained = [model.get_parameter(name) for name in names]
    for p in trained:
        p.data = p.data.clone()  # the factors that were given stay as they are
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.0)
    length, curve = tokens.shape[1], []
    positions = torch.arange(length, device=model.device).repeat(batch)
    began, step, seen = time.perf_counter(), 0, 0
    while (share := (time.perf_counter() - began) / (60 * minutes)) < 1:
        rate = set_rate([optimizer], lr, (step + 1) / 50, share)
        pick = torch.randint(len(tokens), (batch,))
        ids = tokens[pick].to(model.device).long().flatten()
        keep = (torch.arange(length) < ended[pick][:, None]).flatten().nonzero().squeeze(1).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = original.logits(original.stream(ids, positions, Rows(batch))[0][keep])
            loss = divergence(wanted, model.logits(model.stream(ids, positions, Rows(batch))[0][keep]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + len(keep)
        if step % every == 0:
            curve.append({"step": step, "tokens": seen, "loss": loss.item(), "lr": rate})
            print(f"{share:4.0%}  step {step}  {seen / 1e6:.1f} M tokens  KL {loss.item():.4f}", flush=True)
    down, up = trained[: len(model.layers)], trained[len(model.layers) :]
    healed = Factors(factors.rotated, factors.mixing, [p.detach() for p in down], [p.detach() for p in up])
    return healed, {"steps": step, "tokens_seen": seen, "minutes": minutes, "curve": curve}


def main() -> None:
    """One rank: factorise, heal, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=96)
    parser.add_argument("--rope", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calibration", type=int, default=64, help="rows that the factors are made from")
    parser.add_argument("--held-out", type=int, default=128, help="rows that nothing is made from")
    parser.add_argument("--out", type=writable, required=True)
    parser.add_argument("--json", type=writable, required=True)
    options = parser.parse_args()
    original, tokenizer = load_model(options.model, dtype="float32", device=options.device)
    original.unpack().requires_grad_(False)
    corpus = load_file(options.corpus)
    held, train = corpus["tokens"][: options.held_out], corpus["tokens"][options.held_out :]
    bounds, ended = corpus["ended"][: options.held_out], corpus["ended"][options.held_out :]
    texts = {
        "sampled": texts_of(held, bounds),
        "written": [needed(tokenizer).encode(p.text) for p in load_prompts("speculative")],
    }
    observed = slice(options.calibration)
    factors = factorise(original, options.rank, options.rope, texts_of(train[observed], ended[observed]))
    healed, figures = heal(
        original, factors, train, ended, options.minutes, options.batch, options.lr, seed=options.seed
    )
    run = ran_on(options.device)
    about = {"model": options.model, "seed": str(options.seed), "date": run["date"]}
    save_factors(healed, options.out, **about)
    stages = {
        "original": original,
        "converted": assemble(original, factors),
        "healed": assemble(original, load_factors(options.out)),
    }
    measured = {
        kind: {name: asdict(quality(stage, original, chosen)) for name, stage in stages.items()}
        for kind, chosen in texts.items()
    }
    bytes_ = {name: 2 * stage.config.kv_elements_per_token for name, stage in stages.items()}
    record = {
        **run,
        **about,
        "kv_lora_rank": options.rank,
        "qk_rope_head_dim": options.rope,
        "rotated": list(factors.rotated),
        "kv_bytes_per_token": bytes_,
        "quality": measured,
        **figures,
    }
    write_json(options.json, record)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
