"""What the kernels must equal: attention over pages, merging and writing in PyTorch, one sequence at a time.

And what they do: `attend_pieces` goes through a plan (`plan.py`) as the kernel does, piece by piece and block by block.

A *state* is the result of attention over some of the keys, and what is needed to join it to other states:

    o = Σ_j exp(s_j) v_j / Σ_j exp(s_j)        lse = ln Σ_j exp(s_j)

States over disjoint keys A and B join exactly, in any order (Milakov and Gimelshein 2018, 1805.02867; Flash-Decoding):

    lse = ln(e^lse_A + e^lse_B)                o = e^(lse_A − lse) o_A + e^(lse_B − lse) o_B

The state of no key at all is o = 0, lse = −∞. Scores and sums are float32, or float64 if the input is float64.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.tree import CHAIN, sees
from inference_opt.trace import emit


def attend(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"],
    page_table: Int[Tensor, "batch width"],
    lengths: Sequence[int],
    counts: Sequence[int],
    scale: float,
    seen: Int[Tensor, "tokens"] | None = None,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Outputs, and the log-sum-exp of the scores of each. The counts[i] queries of sequence i are its last tokens.

    `seen`: with trees of drafts, the bits of each query (`tree.py`).
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs, sums = [], []
    bits = torch.full((len(q),), CHAIN, device=q.device) if seen is None else seen
    parts = zip(q.split(list(counts)), bits.split(list(counts)), page_table, lengths, strict=True)
    for queries, own, table, length in parts:
        # The keys and values of the sequence, gathered from its pages; each key head repeated for its query heads.
        used = table[: -(-length // k_pages.shape[1])].long()
        k, v = (pages[used].flatten(0, 1)[:length].to(exact) for pages in (k_pages, v_pages))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)

        # Scores, with −∞ for keys after the query's own position, and for those of a tree that are not its ancestors.
        scores = torch.einsum("qhd,khd->qhk", queries.to(exact), k) * scale
        slots = torch.arange(length - len(queries), length, device=q.device)
        visible = sees(own, slots, torch.arange(length, device=q.device))  # [queries, keys]
        scores = scores.masked_fill(~visible[:, None], float("-inf"))

        # Softmax and the mixture of values. A query that sees no key has weights of 0, not of 0/0.
        lse = scores.logsumexp(-1)
        weights = (scores - lse.clamp(min=torch.finfo(exact).min)[..., None]).exp()
        outs.append(torch.einsum("qhk,khd->qhd", weights, v))
        sums.append(lse)
    return torch.cat(outs).to(q.dtype), torch.cat(sums)


def merge_states(
    outs: Float[Tensor, "states tokens heads value_dim"], lses: Float[Tensor, "states tokens heads"]
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """Join states over disjoint sets of keys into the state over all of them."""
    lse = lses.logsumexp(0)
    weights = (lses - lse.clamp(min=torch.finfo(lses.dtype).min)).exp()
    return (outs.to(lses.dtype) * weights[..., None]).sum(0).to(outs.dtype), lse


def attend_pieces(
    q: Float[Tensor, "tokens heads dim"],
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"],
    page_table: Int[Tensor, "batch width"],
    plan: TilePlan,
    scale: float,
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "tokens heads"]]:
    """`attend` by a plan: each piece takes a block of keys at a time, then the states of each token are merged.

    Of the softmax a row keeps what it needs to go on: the largest score m, l = Σ exp(s − m), and acc = Σ exp(s − m) v.
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    (tokens, heads, _), (_, page_size, kv_heads, _) = q.shape, k_pages.shape
    group = heads // kv_heads

    # Rows by key head: [tokens, group, kv_heads, …]. Final results come first, then the states to be merged into them.
    grouped = q.to(exact).unflatten(1, (kv_heads, group)).transpose(1, 2)
    out = torch.zeros(tokens + plan.num_states, group, kv_heads, v_pages.shape[-1], dtype=exact)
    lse = torch.full(out.shape[:-1], float("-inf"), dtype=exact)

    pieces = [(piece, launch.tile) for launch in plan.launches for piece in launch.rows]
    bits = [launch.seen for launch in plan.launches for _ in launch.rows]
    for number, ((piece, tile), seen) in enumerate(zip(pieces, bits)):
        sequence, token0, queries, position, row0, first, end, state = piece
        # The rows of this piece, and its softmax so far, of no key.
        rows = torch.arange(row0, min(row0 + tile.rows, queries * group))
        query, head = rows // group, rows % group
        mine = grouped[token0 + query, head]  # [rows, kv_heads, dim]
        own = torch.full_like(query, CHAIN) if seen is None else seen[token0 + query]
        m = torch.full(mine.shape[:-1], float("-inf"), dtype=exact)
        l, acc = torch.zeros_like(m), torch.zeros(*m.shape, out.shape[-1], dtype=exact)  # noqa: E741
        for n in range(first, end, tile.block):
            # A block of keys and values, found through the page table.
            key = torch.arange(n, min(n + tile.block, end))
            slot = page_table[sequence, key // page_size].long() * page_size + key % page_size
            k, v = (pages.flatten(0, 1)[slot].to(exact) for pages in (k_pages, v_pages))  # [block, kv_heads, …]

            # Scores; when the largest grows, the older sums shrink by exp(old − new).
            s = torch.einsum("rhd,khd->rhk", mine, k) * scale
            s = s.masked_fill(~sees(own, position + query, key)[:, None], float("-inf"))
            m_new = torch.maximum(m, s.amax(-1))
            safe = m_new.clamp(min=torch.finfo(exact).min)  # no key was seen: exp(−∞ − finite) = 0
            p, shrink = (s - safe[..., None]).exp(), (m - safe).exp()
            l = l * shrink + p.sum(-1)  # noqa: E741
            acc = acc * shrink[..., None] + torch.einsum("rhk,khv->rhv", p, v)
            m = m_new
            emit("kernel.block", pieces=pieces, group=group, piece=number, key=key, m=m, l=l, shrink=shrink)

        # The result: final, or a state.
        total = l.where(l > 0, 1)
        where = (token0 if state < 0 else tokens + state) + query
        out[where, head] = acc / total[..., None]
        lse[where, head] = m + total.log()
        emit("kernel.piece", pieces=pieces, group=group, piece=number)

    # Merge the states of each token.
    for token in range(tokens):
        states = plan.states[plan.offsets[token] : plan.offsets[token + 1]].long()
        if len(states):
            parts = out[tokens + states], lse[tokens + states]
            out[token], lse[token] = merge_states(*parts)
            joined = {"token": token, "states": states, "lses": parts[1], "out": out[token], "lse": lse[token]}
            emit("kernel.merge", pieces=pieces, group=group, **joined, asked=(q, k_pages, v_pages, page_table, scale))
    return out[:tokens].transpose(1, 2).flatten(1, 2).to(q.dtype), lse[:tokens].transpose(1, 2).flatten(1)


def write_kv(
    k: Float[Tensor, "tokens kv_heads dim"],
    v: Float[Tensor, "tokens kv_heads value_dim"] | None,
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    slots: Int[Tensor, "tokens"],
) -> None:
    """Write each token's key and value into its slot, page · page_size + offset. A slot below 0: write nowhere."""
    written = slots >= 0
    for new, pages in ((k, k_pages), (v, v_pages)):
        if new is not None and pages is not None:
            pages.flatten(0, 1)[slots[written].long()] = new[written]
