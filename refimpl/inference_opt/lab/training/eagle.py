"""Trains the draft head, on an accelerator, from the target alone.

    python -m inference_opt.lab.training.eagle --device cuda corpus --out corpus.safetensors
    python -m inference_opt.lab.training.eagle --device cuda fit corpus.safetensors --out head.safetensors --json c.json

The head reads the target's hidden states and learns the target's next-token distribution by cross-entropy. Training
unrolls the head as drafting will use it (EAGLE-3's training-time test, 2503.01840 §3.2). In pass j the feature of a
slot is the head's own state of pass j − 1 at the slot before, and the last j − 1 keys that it attends to are those that
it would have written while drafting.
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
from inference_opt.lab.training.block_diagonal import BlockDiagonalAttention
from inference_opt.lab.training.corpus import KINDS, write_corpus
from inference_opt.lab.training.loop import ran_on, set_rate
from inference_opt.loading.load import load_model
from inference_opt.loading.tokenizer import needed
from inference_opt.model.attention import KV
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.head import DraftHead


class Unrolled(KV):
    """Attention in the passes of the unrolling. In pass j, slot t sees what it sees as the j-th draft from t − j + 1.

    pass 1   keys of pass 1 at slots ≤ t, computed from the target's features
    pass j   keys of pass 1 at slots ≤ t − j + 1, and of pass i at slot t − j + i for i = 2 … j: those of its own drafts
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.keys: list[Float[Tensor, "rows length heads head_dim"]] = []
        self.values: list[Float[Tensor, "rows length heads head_dim"]] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of all slots in the next pass, j."""
        group = q.shape[1] // k.shape[1]
        heads = q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        q, k, v = (x.unflatten(0, (self.rows, -1)) for x in heads)  # [rows, length, heads, head_dim]
        self.keys.append(k)
        self.values.append(v)
        j = len(self.keys)
        length = q.shape[1]

        # Scores over the keys of pass 1, [rows, heads, queries, keys].
        slot = torch.arange(length, device=q.device)
        seen = slot <= (slot - j + 1)[:, None]
        scores = torch.einsum("bqhd,bkhd->bhqk", q, self.keys[0]).masked_fill(~seen, -torch.inf)
        # One score for each later pass i, over its key at slot t − j + i: rolling by j − i brings it to slot t.
        own = [(q * x.roll(j - i, 1)).sum(-1).transpose(1, 2) for i, x in enumerate(self.keys[1:], start=2)]

        # One softmax over both, then the mixture of the values in the same two parts.
        weights = torch.cat([scores, *(each.unsqueeze(-1) for each in own)], dim=-1).mul(scale).softmax(dim=-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights[..., :length], self.values[0])
        for i, x in enumerate(self.values[1:], start=2):
            out = out + weights[..., length + i - 2].transpose(1, 2).unsqueeze(-1) * x.roll(j - i, 1)
        return out.flatten(0, 1)


def unroll(
    target: Transformer, head: DraftHead, rows: dict[str, Tensor], passes: int
) -> tuple[Float[Tensor, "slots vocab"], list[Float[Tensor, "slots reduced"]]]:
    """At the slots in `judged`: the target's logits of the token after next, and the head's, pass by pass."""
    tokens = rows["tokens"].long()
    count, length = tokens.shape
    positions = torch.arange(length, device=tokens.device).repeat(count)
    keep = judged(rows, passes).nonzero().squeeze(1)
    with torch.no_grad():
        h, tapped = target.hidden_states(tokens.flatten(), positions, BlockDiagonalAttention(count), taps=head.taps)
        logits = target.logits(h.roll(-1, 0)[keep])  # of slot t + 1
        embeds = target.embed(tokens.flatten().roll(-1, 0))  # of the token after each slot
    feature = head.fuse(tapped)
    kv = Unrolled(count)
    guesses = []
    for _ in range(passes):
        state = head(feature, embeds, positions, kv)
        guesses.append(head.logits(state[keep]))
        feature = state.roll(1, 0)
    return logits, guesses


def judged(rows: dict[str, Tensor], passes: int) -> Bool[Tensor, "slots"]:
    """The slots that every pass has a beginning for, and whose token after next belongs to the answer."""
    slot = torch.arange(rows["tokens"].shape[1], device=rows["tokens"].device)
    begin = (rows["answer"] - 2).clamp(min=passes - 1)[:, None]
    return ((slot >= begin) & (slot + 2 < rows["ended"][:, None])).flatten()


def loss_of(head: DraftHead, logits: Tensor, guesses: list[Tensor]) -> Tensor:
    """The mean of two cross-entropies: with the target's distribution, and with its favourite token (for greedy use).

    The head knows a part of the vocabulary only. The target's probability outside of it is left out of the first, and a
    favourite outside of it out of the second.
    """
    scored = logits[:, head.token_ids].float()
    p = (scored - logits.float().logsumexp(dim=-1, keepdim=True)).exp()
    favourite = nn.functional.one_hot(scored.argmax(dim=-1), scored.shape[-1])
    inside = (logits.amax(dim=-1) == logits[:, head.token_ids].amax(dim=-1))[:, None]
    wanted = (p + favourite * inside) / 2
    losses = [-(wanted * guess.float().log_softmax(dim=-1)).sum(dim=-1).mean() for guess in guesses]
    return torch.stack(losses).mean()


@torch.no_grad()
def evaluate(
    target: Transformer, head: DraftHead, corpus: dict[str, Tensor], passes: int, batch: int
) -> dict[str, dict[str, list[float]]]:
    """Acceptance of the j-th draft in answers, by kind of text.

    `greedy`: how often head and target prefer the same token, in greedy answers. `sampled`: the mean of Σ min(p, q) at
    temperature 1, in the other answers. The text before a draft is the target's own, as if all earlier drafts had been
    accepted.
    """
    # (kind, greedy or sampled, j): the sum of what was accepted, and the number of drafts.
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
                for mode, hits, slots in (("greedy", right, greedy), ("sampled", overlap, ~greedy)):
                    total = sums.setdefault((name, mode, j), [0.0, 0.0])
                    chosen = hits[slots & (kind == k)]
                    total[0] += float(chosen.sum())
                    total[1] += len(chosen)
    rates = {key: accepted / count if count else math.nan for key, (accepted, count) in sums.items()}
    return {
        kind: {name: [rates[kind, name, j] for j in range(1, passes + 1)] for name in ("greedy", "sampled")}
        for kind in KINDS
    }


def frequent(corpus: dict[str, Tensor], reduced: int) -> Int[Tensor, "reduced"]:
    """The most frequent tokens in the answers of a corpus, the most frequent first."""
    counts = torch.bincount(corpus["tokens"][answers(corpus)].long())
    return counts.topk(min(reduced, len(counts))).indices


def answers(corpus: dict[str, Tensor]) -> Bool[Tensor, "rows length"]:
    """Which tokens of each row belong to the answer."""
    slot = torch.arange(corpus["tokens"].shape[1])
    return (slot >= corpus["answer"][:, None]) & (slot < corpus["ended"][:, None])


def fit(
    target: Transformer, corpus: dict[str, Tensor], options: argparse.Namespace
) -> tuple[DraftHead, dict[str, Any]]:
    """Train a head for `options.minutes`, measure it on held-out rows; the head and the record of the run."""
    torch.manual_seed(options.seed)
    held = {name: tensor[: options.held_out] for name, tensor in corpus.items()}
    train = {name: tensor[options.held_out :] for name, tensor in corpus.items()}
    ids = frequent(train, options.reduced)
    head = new_head(target, ids, options.taps, options.start)
    progress = optimise(target, head, train, options)
    head = head.to(target.dtype)
    inside = torch.isin(held["tokens"].long(), ids)[answers(held)]
    with torch.autocast(target.device.type, torch.bfloat16):
        acceptance = evaluate(target, head, held, options.passes, options.batch)
    sizes = {"rows": len(train["tokens"]), "tokens": int(answers(train).sum()), "held_out_rows": options.held_out}
    return head, {
        "steps": progress["steps"],
        "tokens_seen": progress["tokens_seen"],
        "minutes": options.minutes,
        "corpus": sizes,
        "vocabulary": len(ids),
        "vocabulary_covers": float(inside.float().mean()),
        "acceptance": acceptance,
        "curve": progress["curve"],
    }


def new_head(target: Transformer, ids: Int[Tensor, "reduced"], taps: list[int], start: Path | None) -> DraftHead:
    """A head for the tokens `ids`, in float32: with random weights, or with those of the file `start`."""
    head = DraftHead(target.config, taps, len(ids))
    for p in head.parameters():
        nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.ones_(p)
    if start:
        weights = {name: tensor.float() for name, tensor in load_file(start).items() if name != "token_ids"}
        head.load_state_dict(weights, strict=False)
    head = head.to(target.device)
    head.use_head_of(target, ids)
    head.head.weight.data = head.head.weight.data.float()
    return head


def optimise(
    target: Transformer, head: DraftHead, train: dict[str, Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """Train the head in place for `options.minutes`; the numbers of steps and tokens, and the curve of the loss."""
    trained = [p for p in head.parameters() if p.requires_grad]
    # Muon (Liu et al. 2502.16982) for the matrices: in the same number of steps it reaches a lower loss than AdamW at
    # any learning rate that was tried.
    optimizers = [
        torch.optim.Muon([p for p in trained if p.ndim == 2], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in trained if p.ndim == 1], betas=(0.9, 0.95), weight_decay=0.0),
    ]
    run, score = (torch.compile(unroll), torch.compile(loss_of)) if options.compile else (unroll, loss_of)
    curve: list[dict[str, float]] = []
    step = seen = 0
    began = time.perf_counter()
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
        step += 1
        seen += int((rows["ended"] - rows["answer"]).sum())
        if step % options.every == 0:
            curve.append({"step": step, "tokens": seen, "loss": loss.item(), "lr": rate})
            print(f"{share:4.0%}  step {step}  {seen / 1e6:.1f} M tokens  loss {loss.item():.3f}", flush=True)
    return {"steps": step, "tokens_seen": seen, "curve": curve}


def main() -> None:
    """Run one of the two commands, `corpus` and `fit`."""
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
    learn.add_argument("--start", type=Path, help="a head to continue from")
    learn.add_argument("--minutes", type=float, default=8.0)
    learn.add_argument("--batch", type=int, default=32)
    learn.add_argument("--lr", type=float, default=3e-3)
    learn.add_argument("--passes", type=int, default=4)
    learn.add_argument("--reduced", type=int, default=16384)
    learn.add_argument("--taps", type=int, nargs="+", default=[5, 15, 27])
    learn.add_argument("--held-out", type=int, default=512)
    learn.add_argument("--compile", action="store_true", help="compile first: pays on an accelerator, takes a minute")
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
