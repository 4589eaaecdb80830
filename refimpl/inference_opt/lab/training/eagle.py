"""Trains the draft head, on an accelerator, from nothing but the target.

    python -m inference_opt.lab.training.eagle --device cuda corpus --out corpus.safetensors
    python -m inference_opt.lab.training.eagle --device cuda fit corpus.safetensors --out head.safetensors --json c.json

The head reads the target's states and learns its next-token law by cross-entropy. It is unrolled as it will be used
(EAGLE-3's training-time test, 2503.01840 §3.2): in pass j the feature of a slot is the head's own state of pass j − 1,
one slot before, and its last j − 1 keys are those that it would have written while drafting.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from inference_opt.files import writable, write_json
from inference_opt.lab.training.corpus import KINDS, write_corpus
from inference_opt.lab.training.loop import ran_on, set_rate
from inference_opt.lab.training.rows import Rows
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import needed
from inference_opt.model.attention import KV
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.head import DraftHead


# [unrolled]
class Unrolled(KV):
    """Attention in pass j of the unrolling: slot t sees what it would see when drafting the j-th token from t − j + 1.

    pass 1   keys of slots ≤ t                          read with the target's features
    pass j   keys of pass 1 at slots ≤ t − j + 1, and of pass i at slot t − j + i for i = 2 … j: its own drafts'
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.keys: list[Float[Tensor, "rows length heads head_dim"]] = []
        self.values: list[Float[Tensor, "rows length heads head_dim"]] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """The next pass."""
        group = q.shape[1] // k.shape[1]
        q, k, v = (
            x.unflatten(0, (self.rows, -1)) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        )
        self.keys.append(k)
        self.values.append(v)
        j, length = len(self.keys), q.shape[1]
        slot = torch.arange(length, device=q.device)
        seen = slot <= (slot - j + 1)[:, None]
        scores = torch.einsum("bqhd,bkhd->bhqk", q, self.keys[0]).masked_fill(~seen, -torch.inf)
        own = [(q * x.roll(j - i, 1)).sum(-1).transpose(1, 2) for i, x in enumerate(self.keys[1:], start=2)]
        weights = torch.cat([scores, *(each.unsqueeze(-1) for each in own)], dim=-1).mul(scale).softmax(dim=-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights[..., :length], self.values[0])
        for i, x in enumerate(self.values[1:], start=2):
            out = out + weights[..., length + i - 2].transpose(1, 2).unsqueeze(-1) * x.roll(j - i, 1)
        return out.flatten(0, 1)


# [/unrolled]


def unroll(
    target: Transformer, head: DraftHead, rows: dict[str, Tensor], passes: int
) -> tuple[Float[Tensor, "slots vocab"], list[Float[Tensor, "slots reduced"]]]:
    """The target's logits of the token after next, and the head's of each pass, at the slots in `judged`."""
    tokens = rows["tokens"].long()
    count, length = tokens.shape
    positions, keep = (
        torch.arange(length, device=tokens.device).repeat(count),
        judged(rows, passes).nonzero().squeeze(1),
    )
    with torch.no_grad():
        h, tapped = target.stream(tokens.flatten(), positions, Rows(count), taps=head.taps)
        logits = target.logits(h.roll(-1, 0)[keep])  # of slot t + 1
        embeds = target.embed(tokens.flatten().roll(-1, 0))  # of the token behind each slot
    feature, kv, guesses = head.fuse(tapped), Unrolled(count), []
    for _ in range(passes):
        state = head(feature, embeds, positions, kv)
        guesses.append(head.logits(state[keep]))
        feature = state.roll(1, 0)
    return logits, guesses


def judged(rows: dict[str, Tensor], passes: int) -> Bool[Tensor, "slots"]:
    """Slots that every pass has a beginning for and whose token after next belongs to the answer."""
    slot = torch.arange(rows["tokens"].shape[1], device=rows["tokens"].device)
    begin = (rows["answer"] - 2).clamp(min=passes - 1)[:, None]
    return ((slot >= begin) & (slot + 2 < rows["ended"][:, None])).flatten()


# [loss]
def loss_of(head: DraftHead, logits: Tensor, guesses: list[Tensor]) -> Tensor:
    """Cross-entropy with the target's law, and with its favourite (for greedy decoding), half and half."""
    scored = logits[:, head.token_ids].float()
    law = (scored - logits.float().logsumexp(dim=-1, keepdim=True)).exp()  # what lies outside is nobody's to learn
    favourite = nn.functional.one_hot(scored.argmax(dim=-1), scored.shape[-1])
    inside = (logits.amax(dim=-1) == logits[:, head.token_ids].amax(dim=-1))[:, None]
    wanted = (law + favourite * inside) / 2
    losses = [-(wanted * guess.float().log_softmax(dim=-1)).sum(dim=-1).mean() for guess in guesses]
    return torch.stack(losses).mean()


# [/loss]


@torch.no_grad()
def evaluate(
    target: Transformer, head: DraftHead, corpus: dict[str, Tensor], passes: int, batch: int
) -> dict[str, dict[str, list[float]]]:
    """Acceptance of the j-th draft in answers, by kind of text.

    `greedy`: how often head and target favour the same token, in greedy answers; `sampled`: the mean of Σ min(p, q) at
    temperature 1, in the others. The text before is the target's own, as if earlier drafts had been accepted.
    """
    sums: dict[tuple[str, str, int], list[float]] = {}
    for start in range(0, len(corpus["tokens"]), batch):
        rows = {name: tensor[start : start + batch].to(target.device) for name, tensor in corpus.items()}
        keep = judged(rows, passes)
        kind, greedy = (rows[n].repeat_interleave(rows["tokens"].shape[1])[keep] for n in ("kind", "greedy"))
        logits, guesses = unroll(target, head, rows, passes)
        p = logits.float().softmax(dim=-1)[:, head.token_ids]
        for j, guess in enumerate(guesses, start=1):
            right = (head.token_ids[guess.argmax(dim=-1)] == logits.argmax(dim=-1)).float()
            overlap = torch.minimum(p, guess.float().softmax(dim=-1)).sum(dim=-1)
            for k, name in enumerate(KINDS):
                for law, hit, of in (("greedy", right, greedy), ("sampled", overlap, ~greedy)):
                    total = sums.setdefault((name, law, j), [0.0, 0.0])
                    chosen = hit[of & (kind == k)]
                    total[0], total[1] = total[0] + float(chosen.sum()), total[1] + len(chosen)
    rates = {key: hits / count if count else math.nan for key, (hits, count) in sums.items()}
    return {
        kind: {name: [rates[kind, name, j] for j in range(1, passes + 1)] for name in ("greedy", "sampled")}
        for kind in KINDS
    }


def frequent(corpus: dict[str, Tensor], reduced: int) -> Int[Tensor, "reduced"]:
    """The tokens that the answers of a corpus have most of, the most frequent first."""
    counts = torch.bincount(corpus["tokens"][answers(corpus)].long())
    return counts.topk(min(reduced, len(counts))).indices


def answers(corpus: dict[str, Tensor]) -> Bool[Tensor, "rows length"]:
    """Which tokens are an answer's."""
    slot = torch.arange(corpus["tokens"].shape[1])
    return (slot >= corpus["answer"][:, None]) & (slot < corpus["ended"][:, None])


def fit(
    target: Transformer, corpus: dict[str, Tensor], options: argparse.Namespace
) -> tuple[DraftHead, dict[str, Any]]:
    """Train for so many minutes; the head and the record of it."""
    torch.manual_seed(options.seed)
    held = {name: tensor[: options.held_out] for name, tensor in corpus.items()}
    train = {name: tensor[options.held_out :] for name, tensor in corpus.items()}
    ids = frequent(train, options.reduced)
    head = DraftHead(target.config, options.taps, len(ids))
    for p in head.parameters():
        nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.ones_(p)
    if options.start:
        head.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(options.start).items() if name != "token_ids"},
            strict=False,
        )
    head = head.to(target.device)
    head.use_head_of(target, ids)
    head.head.weight.data = head.head.weight.data.float()
    trained = [p for p in head.parameters() if p.requires_grad]
    # Muon (Liu et al. 2502.16982) for the matrices: in as many steps it gets further here than AdamW at any rate tried.
    optimizers = [
        torch.optim.Muon([p for p in trained if p.ndim == 2], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in trained if p.ndim == 1], betas=(0.9, 0.95), weight_decay=0.0),
    ]
    run, score = (torch.compile(unroll), torch.compile(loss_of)) if options.compile else (unroll, loss_of)
    curve: list[dict[str, float]] = []
    began, step, seen = time.perf_counter(), 0, 0
    while (share := (time.perf_counter() - began) / (60 * options.minutes)) < 1:
        rate = set_rate(optimizers, options.lr, step / 100, share)
        pick = torch.randint(len(train["tokens"]), (options.batch,))
        rows = {name: tensor[pick].to(target.device) for name, tensor in train.items()}
        with torch.autocast(target.device.type, torch.bfloat16):
            loss = score(head, *run(target, head, rows, options.passes))
        head.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step, seen = step + 1, seen + int((rows["ended"] - rows["answer"]).sum())
        if step % options.every == 0:
            curve.append({"step": step, "tokens": seen, "loss": loss.item(), "lr": rate})
            print(f"{share:4.0%}  step {step}  {seen / 1e6:.1f} M tokens  loss {loss.item():.3f}", flush=True)
    head = head.to(target.dtype)
    inside = torch.isin(held["tokens"].long(), ids)[answers(held)]
    with torch.autocast(target.device.type, torch.bfloat16):
        acceptance = evaluate(target, head, held, options.passes, options.batch)
    corpus_figures = {
        "rows": len(train["tokens"]),
        "tokens": int(answers(train).sum()),
        "held_out_rows": options.held_out,
    }
    figures = {"steps": step, "tokens_seen": seen, "minutes": options.minutes, "corpus": corpus_figures}
    figures |= {"vocabulary": len(ids), "vocabulary_covers": float(inside.float().mean())}
    return head, figures | {"acceptance": acceptance, "curve": curve}


def main() -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("corpus")
    sample.add_argument("--rows", type=int, default=24576)
    sample.add_argument("--batch", type=int, default=2048)
    sample.add_argument("--out", type=writable, required=True)
    learn = commands.add_parser("fit")
    learn.add_argument("corpus", type=Path, nargs="+")
    learn.add_argument("--out", type=writable, required=True)
    learn.add_argument("--json", type=writable, required=True)
    learn.add_argument("--start", type=Path, help="a head to go on from")
    learn.add_argument("--minutes", type=float, default=8.0)
    learn.add_argument("--batch", type=int, default=32)
    learn.add_argument("--lr", type=float, default=3e-3)
    learn.add_argument("--passes", type=int, default=4)
    learn.add_argument("--reduced", type=int, default=16384)
    learn.add_argument("--taps", type=int, nargs="+", default=[5, 15, 27])
    learn.add_argument("--held-out", type=int, default=512)
    learn.add_argument(
        "--compile", action="store_true", help="fuse what can be fused: worth its minute on an accelerator"
    )
    learn.add_argument("--every", type=int, default=20)
    options = parser.parse_args()
    target, tokenizer = load_model(options.target, dtype=options.dtype, device=options.device)
    target.unpack().requires_grad_(False)
    if options.command == "corpus":
        write_corpus(target, needed(tokenizer), options.rows, options.batch, options.seed, options.out, print)
        return
    corpora = [load_file(path) for path in options.corpus]
    head, figures = fit(target, {name: torch.cat([each[name] for each in corpora]) for name in corpora[0]}, options)
    run = ran_on(options.device)
    about = {"target": options.target, "seed": str(options.seed), "date": run["date"]}
    head.save(options.out, **about)
    record = {**run, **about, **figures}
    write_json(options.json, record)
    print(json.dumps(figures["acceptance"], indent=1), figures["vocabulary_covers"])


if __name__ == "__main__":
    main()
