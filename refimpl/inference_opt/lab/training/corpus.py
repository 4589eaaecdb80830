"""The text that the draft head is trained on: conversations of which the target writes both sides.

After the words that open a user's turn the target says what a user might say (Xu et al. 2406.08464, Magpie), then it
answers, greedily or at a temperature, as it will be used. No text from elsewhere is needed, and what is learnt is
how *this* target goes on.
"""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from inference_opt.loading.checkpoint import save_whole
from inference_opt.loading.tokenizer import Tokenizer
from inference_opt.model.attention import KV
from inference_opt.model.transformer import Transformer

LENGTH = 512  # tokens of a row, one conversation
KINDS = {"chat": 5, "summary": 1, "code": 4}  # and how often each
# How a user's turn may begin; "" leaves it to the target altogether.
OPENINGS = {
    "chat": ["", "", "", "Explain", "What is", "How do I", "Why", "Write a short", "Give me", "Compare", "Plan a"],
    "summary": ["Summarize the following text in three sentences.\n\n", "Rewrite the following paragraph so that"],
    "code": [
        "Complete this Python function.\n\n```python\ndef",
        "Complete this Python function.\n\n```python\nfrom typing import List\n\n\ndef",
        "Complete this Python function.\n\n```python\n\n\ndef",
        "Write a Python function",
        "Write a Python program that",
        "Fix the bug in this Python code:\n\n```python\n",
        "Rename a variable in this function and return the whole code.\n\n```python\ndef",
    ],
}
USER, ANSWERS = 0.8, (0.4, 0.7, 1.0)  # temperatures; the rest of the answers, GREEDY of them, are greedy
GREEDY = 0.65


class Lockstep(KV):
    """A cache for rows that all grow by one token at a time: [rows, LENGTH, kv_heads, d_h] a layer."""

    def __init__(self, model: Transformer, rows: int) -> None:
        c = model.config
        shape = (rows, LENGTH, c.kv_heads, c.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(c.depth)] for _ in range(2)
        )
        self.at = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """One query a row."""
        self.keys[layer][:, self.at], self.values[layer][:, self.at] = k, v
        keys, values = (x[layer][:, : self.at + 1].transpose(1, 2) for x in (self.keys, self.values))
        out = nn.functional.scaled_dot_product_attention(q.unsqueeze(2), keys, values, scale=scale, enable_gqa=True)
        return out.squeeze(2)


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the chat format puts before a user's words, and, after their end-of-turn token, before the answer."""
    a, b = tokenizer.chat("A"), tokenizer.chat("B")
    at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
    return a[:at], a[at + 2 :]


@torch.inference_mode()
def converse(model: Transformer, tokenizer: Tokenizer, rows: int, rng: random.Random) -> dict[str, Tensor]:
    """A conversation a row.

    `tokens` [rows, LENGTH], where the `answer` begins and where it has `ended` (LENGTH if not), its `kind` (of KINDS),
    and whether the answer is `greedy`.
    """
    before, after = frame(tokenizer)
    end = model.config.eos_token_ids[-1]
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=rows)
    forced = [before + tokenizer.encode(rng.choice(OPENINGS[kind])) for kind in kinds]
    greedy = [rng.random() < GREEDY for _ in range(rows)]
    temperature = torch.full((rows, 1), USER)
    answer, ended = [LENGTH] * rows, [LENGTH] * rows
    tokens = torch.zeros(rows, LENGTH, dtype=torch.long, device=model.device)
    tokens[:, 0] = torch.tensor([queue.pop(0) for queue in forced])
    cache, positions = Lockstep(model, rows), torch.arange(LENGTH, device=model.device)
    for at in range(LENGTH - 1):
        cache.at = at
        logits = model(tokens[:, at], positions[at].expand(rows), cache).float()
        # Gumbel-max: argmax of logits + T · G, G = −log E, E ~ Exp(1); greedy at T = 0.
        noise = torch.empty_like(logits).exponential_().log_()
        drawn = (logits - temperature.to(model.device) * noise).argmax(dim=-1).tolist()
        for row in range(rows):
            if forced[row]:
                drawn[row] = forced[row].pop(0)
            elif drawn[row] == end and answer[row] == LENGTH:
                answer[row], forced[row] = min(at + 2 + len(after), LENGTH), list(after)
                temperature[row] = 0.0 if greedy[row] else rng.choice(ANSWERS)
            elif drawn[row] == end:
                ended[row] = min(ended[row], at + 2)
        tokens[:, at + 1] = torch.tensor(drawn, device=model.device)
    kind = torch.tensor([list(KINDS).index(each) for each in kinds])
    bounds = {"answer": torch.tensor(answer), "ended": torch.tensor(ended)}
    return {"tokens": tokens.cpu().int(), **bounds, "kind": kind, "greedy": torch.tensor(greedy)}


def write_corpus(
    model: Transformer, tokenizer: Tokenizer, rows: int, batch: int, seed: int, out: Path, say: Callable[[str], None]
) -> None:
    """Sample `rows` conversations, `batch` at a time, into a safetensors file."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, rows, batch):
        parts.append(converse(model, tokenizer, min(batch, rows - start), rng))
        words = parts[-1]["ended"] - parts[-1]["answer"]
        say(f"{min(start + batch, rows)} of {rows} rows, answers of {float(words.float().mean()):.0f} tokens")
    save_whole({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, out)
