"""Captured steps: the launches of a decode step recorded once, with or without drafts, and replayed without Python.

They work on buffers that stay where they are: what a step needs to know is written into them. A graph serves one kind
of sampling (`kernels/steps.py`), one size of batch, rounded up, and one shape of drafts; and all plans that its lists
can hold (`step_plans.py`). It is captured when it is first asked for, and once more, with longer lists, for plans that
its lists cannot hold.

How a row samples lies in a buffer, too. There are three kinds of graphs: for greedy rows only, for rows without
filters, and for every mix of rows.

The plan of who reads what is made for the last of the steps in a row and serves all of them, and the runs after them:
each step moves the queries' positions by one.

With a drafter that works on the card, a step reads drafts behind each text, judges them, and commits what it keeps
(`kernels/draft_steps.py`): texts then grow by different numbers of tokens, and the plan follows them. If the drafter
is a network that reads the target's states (`speculative/head_steps.py`), the step notes these, and has further plans
for the network's own attention. Plain steps note them, too, and the network reads those of a run at its end. If the
engine chooses how many drafts there are, a network's are a tree (`kernels/shape.py`).

Capturing runs a step, for nobody: with no row begun, it writes nowhere. A few replays for nobody then show what such a
step costs, before a request pays it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.fused_forward import can_fuse, fused_logits
from inference_opt.cache.paged_kernel import PagedKernelBatch, PagedKernelCache, padded_table
from inference_opt.engine.clock import Clock
from inference_opt.engine.request import Request
from inference_opt.engine.speculation import Speculation
from inference_opt.engine.step_plans import Size, StepPlans, rounded_up
from inference_opt.kernels import Batch, SharedPrefix, shared_prefixes
from inference_opt.kernels.batch import cut
from inference_opt.kernels.graph import capture
from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.transfer import read_back
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.acceptance import LENGTHS

if TYPE_CHECKING:
    from inference_opt.kernels.letter import Letter
    from inference_opt.kernels.steps import Kind

IDLE = 4  # replays for nobody that show the price of a step


class Graph(NamedTuple):
    """A captured step: the sizes of its lists, these, and its replay."""

    sizes: list[Size]
    lists: list[TilePlan]
    replay: Callable[[], None]


class CapturedSteps:
    """Plain steps, up to `max_steps` in a row for up to `max_rows` requests, and up to `most_steps` with drafts.

    `steps`, `table`, `drafts` and `network` are their buffers: what they read and choose, page tables, texts and
    drafts, and those of a drafter that is a network.
    """

    def __init__(
        self,
        model: Transformer,
        cache: PagedKernelCache,
        speculation: Speculation,
        clock: Clock,
        max_steps: int,
        most_steps: int,
        max_rows: int,
    ) -> None:
        from inference_opt.kernels.letter import Letter  # imports Triton, which is there where this runs
        from inference_opt.kernels.steps import Steps, kind_of

        self.model, self.cache, self.speculation, self.clock = model, cache, speculation, clock
        self.max_steps, self.fused, self.kind_of = max_steps, can_fuse(model), kind_of
        self.letter = partial(Letter, cache.device)
        context, rows = model.config.max_context, rounded_up(max_rows)
        self.steps = Steps(max_steps, rows, cache.device)
        self.table = torch.zeros(rows, -(-context // cache.page_size), dtype=torch.int32, device=cache.device)
        self.drafter, self.network, self.fed = speculation.drafter, None, rows
        if self.drafter is not None:
            from inference_opt.kernels.draft_steps import DraftSteps  # imports Triton, likewise

            self.drafts = DraftSteps(most_steps, rows, speculation.max_gamma, context, cache.device, LENGTHS)
            self.network = self.drafter.network(self.drafts, self.table, max_steps)
            self.fed = rows * (speculation.max_gamma + 1)
            layers = (*cache.keys, *(cache.values or ()))
            apart = [each.data_ptr() - layers[0].data_ptr() for each in layers]
            self.offsets = torch.tensor(apart, device=cache.device) // layers[0].element_size()
        # Of the target, and of the network's passes.
        passes = speculation.max_gamma if self.network else 0
        self.plans = [StepPlans(self.fed, max_steps, cache.device) for _ in range(1 + passes)]
        self.graphs: dict[tuple[object, ...], list[Graph]] = {}  # of each kind, by the sizes of their lists
        self.count = 0  # captures
        self.on_card = cache.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.on_card else None

    def prepare(
        self,
        requests: Sequence[Request],
        starts: Sequence[int],
        counts: Sequence[int],
        shape: Shape,
        captures: bool = True,
    ) -> tuple[list[TilePlan], list[TilePlan], Callable[[], None]] | None:
        """The plans of the step that would reach furthest, `counts` tokens on; the lists and the replay of a graph.

        None if it had to be captured, and may not be.
        """
        tables, gamma = [each.table for each in requests], shape.gamma
        ends = [start + max(count, gamma + 1) for start, count in zip(starts, counts)]
        prefixes = shared_prefixes(tables, starts, self.cache.page_size)
        target, *own = self.plans
        plans = [target.plan(shape, ends, prefixes, partial(self._cut, prefixes, shape))]
        if gamma and self.network:
            ends = [start + count for start, count in zip(starts, counts)]
            plans += [
                each.plan(shape, ends, [], partial(self.network.plan, one)) for each, one in zip(own, shape.passes)
            ]
        kind = self.kind_of([each.params for each in requests], self.model.config.vocab_size)
        graph = self._graph(len(requests), plans, kind, shape, captures)
        return (plans, graph.lists, graph.replay) if graph else None

    def _cut(self, prefixes: list[SharedPrefix], shape: Shape, ends: list[int]) -> TilePlan:
        """The pieces of a step in which a token and its drafts, the last of each text's `ends`, attend."""
        k_pages, heads, counts = self.cache.keys[0], self.model.config.heads, [shape.gamma + 1] * len(ends)
        seen = torch.tensor(shape.seen * len(ends)) if shape.seen else None
        return cut(ends, counts, prefixes, k_pages, heads, self.cache.latent_dim, seen=seen)

    def put_steps(
        self, letter: "Letter", requests: Sequence[Request], starts: list[int], steps: list[int], known: bool
    ) -> None:
        """Write where each step writes its keys and values, and what the first step reads, if that is `known`."""
        table, rows, step = self.put_tables(letter, requests), np.arange(len(requests)), np.arange(self.max_steps)
        step, last = step[:, None], np.array(steps) - 1
        positions = np.array(starts) + np.minimum(step, last)  # [max_steps, rows]
        slots = np.where(step <= last, self.cache.slots(table, rows, positions), -1)
        tokens = np.array([each.tokens[-1] for each in requests]) if known else None
        self.steps.begin(letter, tokens, np.stack((positions, slots), axis=1), [each.params for each in requests])

    def put_tables(self, letter: "Letter", requests: Sequence[Request]) -> Int[np.ndarray, "batch width"]:
        """Write the page tables, and return them."""
        table = padded_table([each.table for each in requests])
        letter.put(self.table[: len(table), : table.shape[1]], table)
        return table

    def put_plans(self, letter: "Letter", plans: list[TilePlan], lists: list[TilePlan]) -> None:
        """Write the plans into the lists of a graph."""
        for each, plan, into in zip(self.plans, plans, lists):
            each.put(letter, plan, into)

    def review(self, rows: int) -> Callable[[], list[list[float]]]:
        """For each text the steps that its new tokens would have taken with each length; empty if nobody can know.

        What comes back waits for them. Meanwhile the host writes down the tokens.
        """
        if self.drafter is None or not self.drafter.reviewed:
            return lambda: [[]] * rows
        found = read_back([self.drafter.review(self.drafts, rows)[:, : len(LENGTHS)]])
        return lambda: found()[0].tolist()

    def _graph(self, batch: int, plans: list[TilePlan], kind: "Kind", shape: Shape, captures: bool) -> Graph | None:
        """The lists and the replay of a step for so many texts, rounded up, whose lists can hold these plans.

        It is captured when it is first asked for, and once more, with longer lists, for a plan that none can hold; or
        None if it may not be. The first that serves has the fewest idle programs. Without CUDA, the replay is the step
        itself.
        """
        rows = rounded_up(batch)
        key = (kind, rows, *(each.tile for plan in plans for each in plan.launches), shape)
        sizes, graphs = [each.size(plan) for each, plan in zip(self.plans, plans)], self.graphs.get(key, [])
        known = next((each for each in graphs if _longest(sizes, each.sizes) == each.sizes), None)
        if known is None:
            if not captures:
                return None
            sizes = _longest(sizes, graphs[-1].sizes) if graphs else sizes
            # Capturing runs the step. With no row begun, it writes nowhere, and has no states to merge.
            began = perf_counter()
            masks = [shape.seen, *(each.seen if each.branches else None for each in shape.passes)]
            counts = [shape.gamma + 1, *(len(each.read) for each in shape.passes)]
            lists = [
                each.lists(plan, size, rows * count, mask)
                for each, plan, size, count, mask in zip(self.plans, plans, sizes, counts, masks)
            ]
            if shape.gamma:
                run = partial(self._draft_step, rows, lists, kind, shape)
            else:
                run = partial(self._step, rows, lists[0], kind)
            self._begin_nobody(shape.gamma)
            self.clock.forget()  # it took longer than a look, and happens once
            known = Graph(sizes, lists, run if self.pool is None else capture(run, self.pool).replay)
            self.graphs[key], self.count = [*graphs, known], self.count + 1
            self._price(batch, shape.gamma, known.replay, began)
        return known

    def _begin_nobody(self, gamma: int) -> None:
        with self.letter() as letter:
            if not gamma:
                none = np.zeros((self.max_steps, 2, 0), dtype=np.int64)
                self.steps.begin(letter, none[0, 0], none, [])
                return
            self.drafts.begin(letter, [], [], [], [], gamma)
            if self.network:
                self.network.start(letter, [])

    def _price(self, batch: int, gamma: int, replay: Callable[[], None], began: float) -> None:
        """Measure a step of nobody, whose capture began then. Its first replay does not count."""
        choice = self.speculation.choice
        if choice is None or not self.on_card:
            return
        for count in (1, min(IDLE, self.max_steps)):
            self._begin_nobody(gamma)
            seconds = self.clock.time(replay, count)
            torch.cuda.synchronize()
        choice.captured(batch, gamma, seconds(), self.clock.agreed(perf_counter() - began))
        self.review(batch)  # compiles its kernels, if need be

    @torch.inference_mode()
    def _step(self, rows: int, lists: TilePlan, kind: "Kind") -> None:
        """One step of `rows` rows, from the buffers to the buffers."""
        batch, tokens = Batch(self.table, [0] * rows, [1] * rows, lists), self.steps.tokens[:rows]
        positions, slots = self.steps.place[:, :rows]
        logits = self.logits(tokens, positions, slots, batch, self.steps.step, "noted")
        # Note each row's token, make it the next one read, and move every query by one.
        self.steps.end(logits, kind)
        for launch in lists.launches:
            launch.columns.position.add_(1)

    @torch.inference_mode()
    def _draft_step(self, rows: int, lists: list[TilePlan], kind: "Kind", shape: Shape) -> None:
        """One step of `rows` texts with drafts of this shape, likewise."""
        assert self.drafter is not None
        gamma, drafts, cache = shape.gamma, self.drafts, self.cache
        if self.network:
            self.network.guess(rows, shape, kind, lists[1:])
        else:
            self.drafter.guess(drafts, rows, gamma)
        fed = drafts.feed(rows, shape, self.table, cache.page_size)
        drafts.move(lists[0].launches[-1].pieces)
        batch = Batch(self.table, [0] * rows, [gamma + 1] * rows, lists[0])
        drafts.end(self.logits(*fed, batch, drafts.rows.step, "tapped"), kind, shape)
        if shape.seen:
            drafts.keep_paths(rows, (*cache.keys, *(cache.values or ())), self.offsets, self.table)
        if self.network:
            self.network.read(rows, gamma, lists[1])

    def logits(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, batch: Batch, step: Tensor, noted: str
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the rows. What a network wants to know of them is noted in its buffer of this name."""
        if self.fused:
            taps = self.network.head.taps if self.network else ()
            logits, tapped = fused_logits(self.model, tokens, positions, slots, self.cache, batch, taps)
            if self.network:
                from inference_opt.kernels.draft_head import tap

                tap(step, getattr(self.network, noted), tapped)
            return logits
        own: Tensor = self.model(tokens, positions, PagedKernelBatch(self.cache, positions, slots, lambda _: batch))
        return own


def _longest(one: Sequence[Size], other: Sequence[Size]) -> list[Size]:
    """The sizes of lists that can hold both."""
    return [tuple(map(max, own, its)) for own, its in zip(one, other)]
