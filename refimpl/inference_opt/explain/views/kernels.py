"""A plan at work as recorded steps show it: which piece is at which keys, the softmax so far, what is merged how."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference_opt.explain.views.registry import PICTURES, SENTENCES
from inference_opt.kernels import reference
from inference_opt.kernels.plan import Piece, Tile

ROWS = 8  # of a piece, whose running state is shown

SENTENCES |= {
    "kernel.block": "piece {piece}: keys {first} to {last} meet {rows:row} of queries; {grown}",
    "kernel.piece": "piece {piece} is done and written, {where}",
    "kernel.merge": "query {token}: states {states} are joined, each by its share of the sum of exponentials",
}


def pieces_state(
    pieces: Sequence[tuple[Piece, Tile]], group: int, piece: int, read: int, **more: Any
) -> dict[str, Any]:
    """All pieces with their tiles: those before number `piece` are done, itself is done up to key `read`."""
    fields = ("token0", "queries", "first", "end", "state")
    spans = [{name: getattr(p, name) for name in fields} for p, _ in pieces]
    keys = [each["end"] - each["first"] for each in spans[:piece]] + [
        read - each["first"] for each in spans[piece:][:1]
    ]
    alone = sum(n * group * each["queries"] for n, each in zip(keys, spans))
    counters = {"keys read, of a key head": {"value": sum(keys), "naive": alone}}
    state = {"kind": "pieces", "pieces": spans, "piece": piece, "read": read, "rows": [], "token": None, "joined": []}
    return state | more | {"counters": counters}


def number(x: Tensor) -> float | None:
    """As JSON has it: −∞, where no key was seen, is None."""
    return None if x == float("-inf") else round(float(x), 4)


def block_state(
    pieces: Sequence[tuple[Piece, Tile]],
    group: int,
    piece: int,
    key: Tensor,
    m: Tensor,
    l: Tensor,  # noqa: E741
    shrink: Tensor,
) -> dict[str, Any]:
    """A block of keys is read: m and l of the first rows under key head 0, and by how much their older sums shrank."""
    rows = [[number(m[r, 0]), number(l[r, 0]), number(shrink[r, 0])] for r in range(min(ROWS, len(m)))]
    grown = int(((shrink < 1) & (shrink > 0)).any(-1).sum())
    stop, seen = int(key[-1]) + 1, m > float("-inf")
    invariants = {
        "1 ≤ l ≤ keys read: the largest score counts 1": bool(
            ((l >= 1) & (l <= stop - pieces[piece][0].first))[seen].all()
        ),
        "older sums shrink or stay": bool((shrink <= 1).all()),
    }
    said: dict[str, Any] = {"piece": piece, "first": int(key[0]), "last": stop - 1, "rows": len(m)}
    said["grown"] = f"{grown} of them find a larger score: older sums shrink" if grown else "no older sum shrinks"
    return pieces_state(pieces, group, piece, stop, rows=rows) | {"said": said, "invariants": invariants}


def piece_state(pieces: Sequence[tuple[Piece, Tile]], group: int, piece: int) -> dict[str, Any]:
    """A piece is done: its result is written where it belongs, or as states to be merged."""
    done, _ = pieces[piece]
    final = "where it belongs: no other piece has keys of its queries"
    where = final if done.state < 0 else f"as states, from {done.state} on"
    return pieces_state(pieces, group, piece, done.end) | {"said": {"piece": piece, "where": where}}


def joined_state(
    pieces: Sequence[tuple[Piece, Tile]],
    group: int,
    token: int,
    states: Tensor,
    lses: Tensor,
    out: Tensor,
    lse: Tensor,
    asked: tuple[Tensor, Tensor, Tensor, Tensor, float],
) -> dict[str, Any]:
    """A token's states are joined, each with the weight exp(lse_i − lse); shown of its first head.

    `asked`: what attention was asked for: queries, pages of keys and of values, page table, scale.
    """
    weights = (lses - lse).exp()  # [states, group, kv_heads]
    joined = [[int(s), number(lses[i, 0, 0]), float(weights[i, 0, 0])] for i, s in enumerate(states)]
    # The piece that reaches furthest is of its own keys: it tells whose they are, and where the token stands.
    own = max((p for p, _ in pieces if 0 <= token - p.token0 < p.queries), key=lambda p: p.end)
    q, k_pages, v_pages, page_table, scale = asked
    table, length = page_table[own.sequence, None], own.position + token - own.token0 + 1
    want, want_lse = reference.attend(q[token, None], k_pages, v_pages, table, [length], [1], scale)
    mine = out.transpose(0, 1).flatten(0, 1), lse.T.flatten()
    invariants = {
        "the weights of the states sum to 1": torch.allclose(weights.sum(0), torch.ones_like(lse)),
        "what is joined is attention over all keys at once": all(
            torch.allclose(a, b.to(a.dtype), atol=1e-4) for a, b in zip(mine, (want[0], want_lse[0]))
        ),
    }
    said = {"token": token, "states": states}
    shot = pieces_state(pieces, group, len(pieces), 0, token=token, joined=joined)
    return shot | {"said": said, "invariants": invariants}


PICTURES |= {"kernel.block": block_state, "kernel.piece": piece_state, "kernel.merge": joined_state}
