"""Heals a converted model, on an accelerator: its factors learn the original's distributions on text that it sampled.

    python -m inference_opt.lab.training.eagle --device cuda corpus --out corpus.safetensors
    python -m inference_opt.lab.training.distill_mla corpus.safetensors --device cuda --out f.safetensors

Only the factors that replace keys and values are trained (W_DKV, W_KR, W_UK, W_UV of every layer: 3.3 of 135 million
numbers at rank 96 + 32), by KL(original ‖ converted) over the whole vocabulary at every position. All other weights
are the original's, so the factors are all that need be shipped.
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
from inference_opt.lab.training.block_diagonal import BlockDiagonalAttention
from inference_opt.lab.training.loop import ran_on, set_rate
from inference_opt.loading.load import load_model
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import needed
from inference_opt.model.transformer import Transformer


def divergence(wanted: Float[Tensor, "positions vocab"], logits: Float[Tensor, "positions vocab"]) -> Float[Tensor, ""]:
    """Mean KL(original ‖ converted) = Σ p (log p − log q), in nats."""
    p, q = wanted.float().log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


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
    steps: int | None = None,
) -> tuple[Factors, dict[str, Any]]:
    """Train the factors for `minutes` on rows of text that end at `ended`; the healed factors, and the run's record.

    `steps`: train for as many steps, whatever time they take.
    """
    torch.manual_seed(seed)

    # All weights are frozen but the factors'.
    model = assemble(original, factors)
    model.unpack().requires_grad_(False)
    names = [f"layers.{i}.attention.{part}.weight" for part in ("kv_down", "kv_up") for i in range(len(model.layers))]
    trained = [model.get_parameter(name) for name in names]
    for p in trained:
        p.data = p.data.clone()  # the given factors must not change
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.0)

    length = tokens.shape[1]
    positions = torch.arange(length, device=model.device).repeat(batch)
    rows = BlockDiagonalAttention(batch)
    curve = []
    step = seen = 0
    began = time.perf_counter()
    while (share := step / steps if steps else (time.perf_counter() - began) / (60 * minutes)) < 1:
        rate = set_rate([optimizer], lr, (step + 1) / 50, share)
        pick = torch.randint(len(tokens), (batch,))
        ids = tokens[pick].to(model.device).long().flatten()
        keep = (torch.arange(length) < ended[pick][:, None]).flatten().nonzero().squeeze(1).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = original.logits(original.hidden_states(ids, positions, rows)[0][keep])
            loss = divergence(wanted, model.logits(model.hidden_states(ids, positions, rows)[0][keep]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        seen += len(keep)
        if step % every == 0:
            curve.append({"step": step, "tokens": seen, "loss": loss.item(), "lr": rate})
            print(f"{share:4.0%}  step {step}  {seen / 1e6:.1f} M tokens  KL {loss.item():.4f}", flush=True)
    weights = [p.detach() for p in trained]
    healed = Factors(factors.rotated, factors.mixing, weights[: len(model.layers)], weights[len(model.layers) :])
    return healed, {"steps": step, "tokens_seen": seen, "minutes": minutes, "curve": curve}


def main() -> None:
    """Factorise a model at one rank, heal the factors, measure, and write factors and record."""
    options = _options()
    original, tokenizer = load_model(options.model, dtype="float32", device=options.device)
    original.unpack().requires_grad_(False)
    corpus = load_file(options.corpus)
    held = {name: tensor[: options.held_out] for name, tensor in corpus.items()}
    train = {name: tensor[options.held_out :] for name, tensor in corpus.items()}

    observed = texts_of(train["tokens"][: options.calibration], train["ended"][: options.calibration])
    factors = factorise(original, options.rank, options.rope, observed)
    healed, figures = heal(
        original,
        factors,
        train["tokens"],
        train["ended"],
        options.minutes,
        options.batch,
        options.lr,
        seed=options.seed,
    )
    run = ran_on(options.device)
    about = {"model": options.model, "seed": str(options.seed), "date": run["date"]}
    save_factors(healed, options.out, **about)

    # Measured are the factors as they were written, in bfloat16.
    models = {
        "original": original,
        "converted": assemble(original, factors),
        "healed": assemble(original, load_factors(options.out)),
    }
    texts = {
        "sampled": texts_of(held["tokens"], held["ended"]),
        "written": [needed(tokenizer).encode(p.text) for p in load_prompts("speculative")],
    }
    measured = {
        kind: {name: asdict(quality(model, original, chosen)) for name, model in models.items()}
        for kind, chosen in texts.items()
    }
    record = {
        **run,
        **about,
        "kv_lora_rank": options.rank,
        "qk_rope_head_dim": options.rope,
        "rotated": list(factors.rotated),
        "kv_bytes_per_token": {name: 2 * model.config.kv_elements_per_token for name, model in models.items()},
        "quality": measured,
        **figures,
    }
    write_json(options.json, record)
    print(json.dumps(measured, indent=1))


def _options() -> argparse.Namespace:
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
    return parser.parse_args()


if __name__ == "__main__":
    main()
