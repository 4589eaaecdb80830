"""`inference-opt bench kernels`: paged attention by our kernels and by others', and the card's two limits.

A row is one case: sequences of one length with shuffled pages and random keys and values in bfloat16. Every
implementation gets the same tensors, and its output is compared with ours. Its time is that of a captured graph, with
the card's caches flushed before each replay: the median of `repeats`. The limit of a row is the longer of two times, at
the read bandwidth and at the rate of matrix products that are measured in the same run:

    bytes       batch · length · kv_heads · (d + d_v) · 2     (latent attention: d only, the values are in the keys)
    operations  2 · (keys that each query sees) · heads · (d + d_v)
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from inference_opt import kernels
from inference_opt.environment import command_line, describe
from inference_opt.lab.bench.kernel_peers import PEERS
from inference_opt.lab.bench.machine import graph_seconds, measured


@dataclass(frozen=True)
class Case:
    """One row: `batch` sequences of `length` tokens, of which the last `queries` are asked for, and `others` with them.

    `shared`: values are the first `value_dim` columns of the keys. `stem`: keys of the shared prefix. `others`:
    (queries, length) of each further sequence.
    """

    name: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    shared: bool = False
    queries: int = 1
    page: int = 64
    stem: int = 0
    others: tuple[tuple[int, int], ...] = ()

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """Queries and length of each sequence."""
        return [(self.queries, self.length)] * self.batch + list(self.others)

    @property
    def bytes(self) -> int:
        """Bytes of keys and values that must be read."""
        keys = sum(length - self.stem for _, length in self.sequences) + self.stem
        return 2 * keys * self.kv_heads * (self.dim + (0 if self.shared else self.value_dim))

    @property
    def operations(self) -> int:
        """Operations of both matrix products. A query sees the keys up to its own."""
        seen = sum(queries * length - queries * (queries - 1) // 2 for queries, length in self.sequences)
        return 2 * seen * self.heads * (self.dim + self.value_dim)


def grouped(name: str, batch: int, length: int, dim: int = 128, **more: Any) -> Case:
    """32 query heads on 8 key heads: of width 128 in Llama-3-8B, 64 in Llama-3.2-1B."""
    return Case(name, batch, length, 32, 8, dim, dim, **more)


def latent(name: str, heads: int, batch: int, length: int, queries: int = 1) -> Case:
    """Absorbed latent attention in DeepSeek's widths."""
    return Case(name, batch, length, heads, 1, 576, 512, True, queries)


CASES = {
    case.name: case
    for case in [
        grouped("gqa-64x8192", 64, 8192),
        grouped("gqa-8x32768", 8, 32768),
        grouped("gqa-1x32768", 1, 32768),
        grouped("gqa-128x1024", 128, 1024),
        grouped("gqa-64x8192-page16", 64, 8192, page=16),
        grouped("gqa-64x8192-page1", 64, 8192, page=1),
        latent("mla16-128x4096", 16, 128, 4096),
        latent("mla128-128x4096", 128, 128, 4096),
        latent("mla128-128x4096-two", 128, 128, 4096, 2),
        latent("mla128-16x32768", 128, 16, 32768),
        latent("mla16-1x32768", 16, 1, 32768),
        grouped("stem-64x16640", 64, 16640, stem=16384),
        grouped("ragged-64", 0, 0, others=tuple((1, 1 + 130 * i) for i in range(64))),
        grouped("verify-32x4096", 32, 4096, queries=8),
        grouped("verify-8x16384", 8, 16384, queries=4),
        *(
            case
            for page in (16, 64)
            for case in [
                grouped(f"prefill-1x8192-page{page}", 1, 8192, queries=8192, page=page),
                grouped(f"prefill-4x4096-half-page{page}", 4, 4096, queries=2048, page=page),
                grouped(f"prefill-8x2048-narrow-page{page}", 8, 2048, 64, queries=2048, page=page),
                grouped(f"mixed-63x4096-page{page}", 63, 4096, others=((512, 4096),), page=page),
            ]
        ),
        latent("prefill-mla16-2x4096", 16, 2, 4096, 4096),
    ]
}


STEPS = ("gqa-1x32768", "gqa-128x1024")  # the cases on which versions 1 to 3 of `kernels/stepwise.py` are timed


@dataclass(frozen=True)
class Inputs:
    """The tensors that every implementation gets."""

    q: Tensor  # [queries of all sequences, heads, dim]
    k_pages: Tensor  # [pages, page_size, kv_heads, dim]
    v_pages: Tensor | None
    table: Tensor  # [sequences, pages of the longest]
    scale: float


def make(case: Case, seed: int = 0) -> Inputs:
    """Random inputs in shuffled pages. All sequences share the pages of the common prefix."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    stem = case.stem // case.page
    each = [-(-length // case.page) for _, length in case.sequences]  # pages of a sequence
    pages = stem + sum(n - stem for n in each)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    order = torch.randperm(pages, generator=generator, device="cuda").int()
    table = order.new_zeros(len(each), max(each))
    table[:, :stem] = order[:stem]
    for row, n, own in zip(table, each, order[stem:].split([n - stem for n in each])):
        row[stem:n] = own
    keys = random(pages, case.page, case.kv_heads, case.dim)
    values = None if case.shared else random(pages, case.page, case.kv_heads, case.value_dim)
    q = random(sum(queries for queries, _ in case.sequences), case.heads, case.dim)
    return Inputs(q, keys, values, table, case.dim**-0.5)


def ours(case: Case, inputs: Inputs, cascade: bool = True) -> Callable[[], Tensor]:
    """Our kernel. The plan is made once, as an engine makes it once a step, and one layer's part is timed."""
    counts, lengths = map(list, zip(*case.sequences))
    inner = case.value_dim if case.shared else None
    prefixes = [kernels.SharedPrefix(0, case.batch, case.stem)] if case.stem and cascade else []
    batch = kernels.plan_batch(inputs.table, lengths, counts, inputs.k_pages, case.heads, inner, prefixes)
    return lambda: kernels.paged_attention(
        inputs.q, inputs.k_pages, inputs.v_pages, batch, inputs.scale, case.value_dim, pdl=True
    )[0]


def steps(case: Case, inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """The versions that lead to our kernel, on the same keys and values, each in its own layout."""
    from inference_opt.kernels import stepwise  # needs Triton

    assert inputs.v_pages is not None
    q = inputs.q
    pages = (inputs.k_pages, inputs.v_pages)
    scale = inputs.scale
    if case.stem:
        splits = max(1, 8 * 132 // (-(-case.batch // stepwise.ROWS) * case.heads))
        return {
            "step 4: shared prefix": lambda: stepwise.decode_4(
                q, *pages, scale, splits, inputs.table, case.length, case.stem
            )
        }
    splits = max(1, 8 * 132 // (case.batch * case.heads))
    k, v = (x[inputs.table.long()].flatten(1, 2) for x in pages)
    return {
        "step 1: one program a head": lambda: stepwise.decode_1(q, k, v, scale),
        "step 2: split": lambda: stepwise.decode_2(q, k, v, scale, splits),
        "step 3: page table": lambda: stepwise.decode_3(q, *pages, scale, splits, inputs.table, case.length),
    }


@torch.inference_mode()
def bench_kernels(names: list[str], repeats: int, peers: bool, progress: Progress) -> dict[str, Any]:
    """Time every case with every implementation that is installed. ValueError without CUDA, or for an unknown case."""
    if not torch.cuda.is_available():
        raise ValueError("bench kernels needs CUDA, and there is no such device here")
    if unknown := set(names) - CASES.keys():
        raise ValueError(f"unknown case {min(unknown)!r}: expected one of {', '.join(CASES)}")
    limits = measured(torch.bfloat16, "cuda")
    results = []
    task = progress.add_task("bench kernels", total=len(names))
    for name in names:
        case = CASES[name]
        inputs = make(case)
        runs: dict[str, Callable[[], Tensor] | str] = {"inference-opt": ours(case, inputs)}
        if name in STEPS or case.stem:
            runs |= steps(case, inputs)
        if case.stem:
            runs["inference-opt, no cascade"] = ours(case, inputs, cascade=False)
        if peers:
            for peer, prepare in PEERS.items():
                try:
                    if (prepared := prepare(case, inputs)) is not None:
                        runs[peer] = prepared
                except Exception as error:  # a peer that fails must not end the run: its row gives the reason
                    runs[peer] = f"{type(error).__name__}: {error}"
        right = runs["inference-opt"]().float()  # type: ignore[operator]
        row: dict[str, Any] = {"case": asdict(case), "bytes": case.bytes, "operations": case.operations, "times": {}}
        for who, run in runs.items():
            if isinstance(run, str):
                row["times"][who] = {"error": run}
                continue
            off = float((run().float().view_as(right) - right).norm() / right.norm())
            if not off < 0.01:
                raise ValueError(f"{name}: {who} differs from ours by {off:.2%}")
            each = graph_seconds(run, repeats)
            took = median(each)
            row["times"][who] = {
                "seconds": took,
                "spread": [min(each), max(each)],
                "bytes_per_second": case.bytes / took,
                "operations_per_second": case.operations / took,
                "of_limit": limits.seconds(case.bytes, case.operations) / took,
                "difference": off,
            }
        results.append(row)
        del inputs, runs
        progress.advance(task)
    machine = {**describe(), "device": torch.cuda.get_device_name()}
    ceilings = {"product_flops": limits.rate, "read_bandwidth": limits.bandwidth}
    return {"command": command_line(), "machine": machine, "ceilings": ceilings, "results": results}
