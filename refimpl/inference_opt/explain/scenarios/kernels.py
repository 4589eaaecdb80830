"""The scenario of kernels: a batch cut into pieces, each with its running softmax, and the states merged."""

import torch

from inference_opt.explain.record import record
from inference_opt.kernels import reference, shared_prefixes
from inference_opt.kernels.batch import cut
from inference_opt.trace import Trace


def pieces_of_attention(
    lengths: str = "700 130 400 390 350", prefix: int = 256, sharing: int = 3, heads: int = 8, seed: int = 0
) -> Trace:
    """One step's attention, cut into pieces: long sequences are split, and a prefix that several share is read once.

    Boxes are pieces, filled as far as their keys are read. A row of queries keeps the largest score m and the sum l.
    """
    counts = [int(word) for word in lengths.split() if word.isdigit()]
    page, kv_heads, dim = 16, heads // 2, 8
    if len(counts) != len(lengths.split()) or not 1 <= len(counts) <= 8 or min(counts) < 1 or max(counts) > 2000:
        raise ValueError(f"lengths: expected one to eight numbers of keys from 1 to 2,000, got {lengths!r}")
    if heads % 2 or heads < 2:
        raise ValueError(f"two query heads share a key head: expected an even number of heads, got {heads}")
    generator = torch.Generator().manual_seed(seed)
    used = [-(-n // page) for n in counts]
    order = torch.randperm(sum(used), generator=generator).tolist()
    tables = [[order.pop() for _ in range(n)] for n in used]
    shared = prefix // page
    sharers = tables[max(0, len(tables) - sharing) :]  # the last ones begin with the pages of the first of them
    for each in sharers[1:]:
        most = min(shared, len(each), len(sharers[0]))
        each[:most] = sharers[0][:most]
    keys, values = torch.randn(2, sum(used), page, kv_heads, dim, dtype=torch.float64, generator=generator)
    q = 2 * torch.randn(len(counts), heads, dim, dtype=torch.float64, generator=generator)
    prefixes = shared_prefixes(tables, [n - 1 for n in counts], page, min_keys=64)
    plan = cut(counts, [1] * len(counts), prefixes, keys, heads)
    table = torch.tensor([t + [0] * (max(used) - len(t)) for t in tables], dtype=torch.int32)
    with record(only="kernel.") as trace:
        reference.attend_pieces(q, keys, values, table, plan, dim**-0.5)
    return trace
