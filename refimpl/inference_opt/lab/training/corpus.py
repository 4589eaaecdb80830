"""The text that the draft head is trained on: conversations in which the target writes both sides.

The target continues the chat format's beginning of a user's turn with what a user might say (Xu et al. 2406.08464,
Magpie). Then it answers, greedily or at a temperature, as it will be used. No other text is needed, and the head learns
how *this* target continues a text.
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

LENGTH = 512  # tokens of a row, which holds one conversation
KINDS = {"chat": 5, "summary": 1, "code": 4}  # kind of conversation: its relative frequency
# How a user's turn may begin; with "" the target writes all of it.
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
USER_TEMPERATURE = 0.8
ANSWER_TEMPERATURES = (0.4, 0.7, 1.0)
GREEDY = 0.65  # share of the answers that are greedy


class Lockstep(KV):
    """A cache for rows that all grow by one token at a time: [rows, LENGTH, kv_heads, d_h] for each layer."""

    def __init__(self, model: Transformer, rows: int) -> None:
        c = model.config
        shape = (rows, LENGTH, c.kv_heads, c.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(c.depth)] for _ in range(2)
        )
        self.at = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one query for each row."""
        self.keys[layer][:, self.at], self.values[layer][:, self.at] = k, v
        keys, values = (x[layer][:, : self.at + 1].transpose(1, 2) for x in (self.keys, self.values))
        out = nn.functional.scaled_dot_product_attention(q.unsqueeze(2), keys, values, scale=scale, enable_gqa=True)
        return out.squeeze(2)


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens of the chat format before a user's words, and those between their end-of-turn token and the answer."""
    a, b = tokenizer.chat("A"), tokenizer.chat("B")
    at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
    return a[:at], a[at + 2 :]


@torch.inference_mode()
def converse(model: Transformer, tokenizer: Tokenizer, rows: int, rng: random.Random) -> dict[str, Tensor]:
    """Sample one conversation for each row.

    Returns `tokens` [rows, LENGTH] and, for each row, where the `answer` begins, where it has `ended` (LENGTH if it has
    not), its `kind` (an index into KINDS), and whether the answer is `greedy`.
    """
    # Each row's queue of forced tokens: the chat format, and the words that open the user's turn.
    before, after = frame(tokenizer)
    end = model.config.eos_token_ids[-1]
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=rows)
    forced = [before + tokenizer.encode(rng.choice(OPENINGS[kind])) for kind in kinds]
    greedy = [rng.random() < GREEDY for _ in range(rows)]
    temperature = torch.full((rows, 1), USER_TEMPERATURE)
    answer = [LENGTH] * rows
    ended = [LENGTH] * rows
    tokens = torch.zeros(rows, LENGTH, dtype=torch.long, device=model.device)
    tokens[:, 0] = torch.tensor([queue.pop(0) for queue in forced])
    cache = Lockstep(model, rows)
    positions = torch.arange(LENGTH, device=model.device)
    for at in range(LENGTH - 1):
        cache.at = at
        logits = model(tokens[:, at], positions[at].expand(rows), cache).float()
        # Gumbel-max: argmax of logits + T · G, G = −log E, E ~ Exp(1); greedy at T = 0.
        noise = torch.empty_like(logits).exponential_().log_()
        drawn = (logits - temperature.to(model.device) * noise).argmax(dim=-1).tolist()
        # A forced token replaces the drawn one. The first end-of-turn token ends the user's turn: the format up to the
        # answer is forced next, and the temperature becomes the answer's. The second one ends the answer.
        for row in range(rows):
            if forced[row]:
                drawn[row] = forced[row].pop(0)
            elif drawn[row] == end and answer[row] == LENGTH:
                answer[row] = min(at + 2 + len(after), LENGTH)
                forced[row] = list(after)
                temperature[row] = 0.0 if greedy[row] else rng.choice(ANSWER_TEMPERATURES)
            elif drawn[row] == end:
                ended[row] = min(ended[row], at + 2)
        tokens[:, at + 1] = torch.tensor(drawn, device=model.device)
    kind = torch.tensor([list(KINDS).index(each) for each in kinds])
    bounds = {"answer": torch.tensor(answer), "ended": torch.tensor(ended)}
    return {"tokens": tokens.cpu().int(), **bounds, "kind": kind, "greedy": torch.tensor(greedy)}


def write_corpus(
    model: Transformer, tokenizer: Tokenizer, rows: int, batch: int, seed: int, out: Path, say: Callable[[str], None]
) -> None:
    """Sample `rows` conversations, `batch` at a time, and write them to a safetensors file."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, rows, batch):
        parts.append(converse(model, tokenizer, min(batch, rows - start), rng))
        words = parts[-1]["ended"] - parts[-1]["answer"]
        say(f"{min(start + batch, rows)} of {rows} rows, answers of {float(words.float().mean()):.0f} tokens")
    save_whole({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, out)
