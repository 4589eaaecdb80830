"""The runner on CUDA: decode steps captured once, and replayed several in a row without asking the host.

A step of a small model takes the card a millisecond. Python takes as long to launch it, and longer to decide what comes
next. Three remedies:

    capture   the launches of a step become one CUDA graph for each size of batch. It works on buffers that stay where
              they are: what a step needs to know is written into them, and the graph is replayed
    repeat    the token of one step is the input of the next, and the card chooses it itself: the largest logit's, or
              one drawn with the noise of the request's seed (`kernels/race.py`). So the scheduler reserves pages for
              several steps, the graph is replayed as often, and the host looks once
    ahead     the steps that come next are launched before the host looks at those that run (`flight.py`). So while it
              writes down tokens and plans, the card goes on

With a drafter that works on the card, a step reads drafts behind each text, judges them, and commits what it keeps
(`kernels/draft_steps.py`): texts then grow by different numbers of tokens, and the plan follows them. If the drafter
is a network that reads the target's states (`speculative/head_steps.py`), the step notes these, and has further plans
for the network's own attention. Plain steps note them, too, and the network reads those of a run at its end. If the
engine chooses how many drafts there are, a network's are a tree (`kernels/shape.py`).

How a row samples lies in a buffer, too, so one graph serves every mix of requests. There are three kinds of graphs:
for greedy rows only, for rows without filters, and for any rows (`kernels/steps.py`).

The plan of who reads what is made for the last of these steps and serves all of them, and the runs after them
(`step_plans.py`): each step moves the queries' positions by one. What follows the end of a text is dropped. If a row
was granted fewer steps than others, it writes nothing in the steps after its own (slot −1).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.cache.fused_forward import can_fuse, fused_logits
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelBatch, PagedKernelCache, padded_table
from inference_opt.engine.clock import Clock
from inference_opt.engine.eager_runner import EagerRunner
from inference_opt.engine.flight import UNKNOWN, Flight
from inference_opt.engine.request import Request
from inference_opt.engine.runner import Judged, Result, Runner, lefts
from inference_opt.engine.scheduler import Chunk, Repeat
from inference_opt.engine.speculation import Speculation
from inference_opt.engine.step_plans import Size, StepPlans, rounded_up
from inference_opt.kernels import Batch, SharedPrefix, shared_prefixes
from inference_opt.kernels.batch import cut, uses_triton
from inference_opt.kernels.graph import capture
from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.transfer import read_back
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.acceptance import LENGTHS, Acceptance, of_chains, of_trees
from inference_opt.speculative.choice import CAPTURE, TRIED, Choice
from inference_opt.speculative.drafter import Draft
from inference_opt.speculative.step_costs import SPREAD
from inference_opt.trace import recording

if TYPE_CHECKING:
    from inference_opt.kernels.letter import Letter
    from inference_opt.kernels.steps import Kind


PARTS = 2  # of the steps in a row, of which one runs and one is launched: a text that arrives waits for these at most
LEAST = 4  # steps of such a part: a look should not take longer
IDLE = 4  # replays for nobody that show the price of a step
PLAIN = Shape(0)

judgement = cache(Judged)  # few differ, and thousands of new tuples a run would set Python looking for garbage
shape_of = cache(Shape)  # what follows from a shape is worked out once


class Graph(NamedTuple):
    """A captured step: the sizes of its lists, these, and its replay."""

    sizes: list[Size]
    lists: list[TilePlan]
    replay: Callable[[], None]


class GraphRunner:
    """Replays decode steps, up to `max_steps` in a row for up to `max_rows` requests. Prompts run eagerly."""

    def __init__(self, eager: EagerRunner, cache: PagedKernelCache, max_steps: int, max_rows: int) -> None:
        from inference_opt.kernels.letter import Letter  # imports Triton, which is there where this runs
        from inference_opt.kernels.steps import Steps, kind_of

        self.eager, self.model, self.cache, self.max_steps = eager, eager.model, cache, max_steps
        self.flight: Flight | None = None  # launched ahead, and not looked at
        self.decided = 0  # plain steps that were decided on, and not launched
        self.part = max_steps // PARTS if max_steps >= PARTS * LEAST else 0
        self.most_steps = max_steps + round(SPREAD * max_steps**0.5)  # with drafts: a few more may end the texts
        config = self.model.config
        self.fused = can_fuse(self.model)

        # The buffers of all graphs: what a step reads and chooses, and page tables.
        rows, pages = rounded_up(max_rows), -(-config.max_context // cache.page_size)
        self.steps, self.kind_of = Steps(max_steps, rows, cache.device), kind_of
        self.letter, self.clock = partial(Letter, cache.device), Clock(cache.device, self.model.is_sharded)
        self.table = torch.zeros(rows, pages, dtype=torch.int32, device=cache.device)
        fed, self.network = rows, None
        self.drafter = eager.speculation.drafter
        if self.drafter is not None:
            from inference_opt.kernels.draft_steps import DraftSteps  # imports Triton, likewise

            most = eager.speculation.max_gamma
            self.drafts = DraftSteps(self.most_steps, rows, most, config.max_context, cache.device, LENGTHS)
            fed = rows * (most + 1)
            self.network = self.drafter.network(self.drafts, self.table, max_steps)
            # A tree also shows what smaller ones would give, so a large one is tried at once.
            trees = self.network is not None and eager.speculation.branching
            tried = LENGTHS[-2] if trees else TRIED
            capture = CAPTURE if cache.device.type == "cuda" else 0.0
            if self.clock.shared:
                self.part = 0  # to agree on a price, ranks would wait for what runs ahead
            eager.speculation.choice = Choice(
                self.drafter.reviewed, tried=tried, trees=trees, capture=capture, ahead=self.part > 0
            )
            layers = (*cache.keys, *(cache.values or ()))
            apart = [each.data_ptr() - layers[0].data_ptr() for each in layers]
            self.offsets = torch.tensor(apart, device=cache.device) // layers[0].element_size()
        self.draft_rows = fed
        self.kept: dict[Shape, float] = {}  # tokens that a step with such drafts gives a text, lately
        # Of the target, and of the network's passes.
        counts = [fed] + [fed] * eager.speculation.max_gamma * (self.network is not None)
        self.plans = [StepPlans(count, max_steps, cache.device) for count in counts]
        self.graphs: dict[tuple[object, ...], Graph] = {}
        self.captured = 0
        self.on_card = cache.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.on_card else None

    def choose(self, chunks: Sequence[Chunk]) -> Repeat | None:
        """As many drafts as the longest that was asked for by name, or what pays for this batch.

        The eager runner decides if a recording wants to see every step, or a request's rule is not that of captured
        steps. Steps that are under way come first. If as many drafts are wanted as these have, and no look after few
        steps, others are launched ahead, in parts. But where others wait for a place, whoever ends makes room, and a
        run ahead would be useless.
        """
        if not self._replays(chunks):
            return self.eager.choose(chunks)
        part, flight = 0 if any(each.queue for each in chunks) else self.part, self._under_way(chunks)
        under_way = flight.steps if flight else 0
        if flight and (going := flight.shape.gamma):
            drafts, steps = self._wanted(chunks, going)
            same = drafts == going and self._shape(chunks, going) == flight.shape
            return Repeat(going, under_way, min(part, max(steps - under_way, 0)) if same else 0)
        if not under_way or not part or self.decided < part:
            drafts, steps = self._wanted(chunks)
            self.decided = self.max_steps
            if drafts or steps < self.max_steps or not part:
                self.decided = 0
                if under_way:
                    return Repeat(0, under_way)
                first = part if drafts and part and steps >= part + LEAST else steps
                return Repeat(drafts, first, min(steps - first, part))
            self.decided -= 0 if under_way else part
        self.decided -= part
        return Repeat(0, under_way or part, part)

    def _under_way(self, chunks: Sequence[Chunk]) -> Flight | None:
        """The run ahead, if it is what comes next for these texts."""
        return self.flight if self.flight and self.flight.serves(chunks) else None

    def _wanted(self, chunks: Sequence[Chunk], going: int = 0) -> tuple[int, int]:
        """Drafts and steps: by name, or what pays for this batch, if steps with `going` drafts are under way."""
        if choice := self.eager.speculation.choice:
            choice.missing = 0.0  # until it is asked
        asking = [each for each in chunks if each.drafts and each.request.acceptance is None]
        if not asking:
            return self._best(chunks, going)
        # At its end a text has room for fewer drafts than were asked for.
        named = max(each.drafts for each in asking)
        if named < going <= max(self.eager.speculation.gamma(each.request) for each in asking):
            named = going
        return min(named, self.eager.speculation.max_gamma), self.max_steps

    def _best(self, chunks: Sequence[Chunk], going: int = 0) -> tuple[int, int]:
        choice, wanted = self.eager.speculation.choice, [chunk.drafts for chunk in chunks]
        if choice is None or not any(wanted):
            return 0, self.max_steps
        texts = [each.request.acceptance or Acceptance() for each in chunks]
        return choice.best(texts, wanted, lefts(chunks), self.most_steps, going)

    def forget(self) -> None:
        """Drop the captured graphs, which hold the addresses of the old weights."""
        self.graphs.clear()
        self.flight = None

    def _replays(self, chunks: Sequence[Chunk]) -> bool:
        captured = self.eager.speculation.captured
        return all(each.decodes and captured(each.request) for each in chunks) and not recording()

    def propose(self, chunks: Sequence[Chunk]) -> list[Draft]:
        """Captured steps draft on the card."""
        return [Draft()] * len(chunks) if self._replays(chunks) else self.eager.propose(chunks)

    def run(self, chunks: Sequence[Chunk], drafts: Sequence[Draft]) -> list[Result]:
        """What each request emits of the tokens that it was granted.

        Where logits hold NaN or infinity, the tokens before them; None where there are none.
        """
        if not self._replays(chunks):
            self.clock.forget()
            self.flight = None
            return self.eager.run(chunks, drafts)
        requests, starts = [each.request for each in chunks], [each.start for each in chunks]
        reach = [each.reach for each in chunks]
        self.cache.check([each.table for each in requests], starts, reach)
        choice, gamma = self.eager.speculation.choice, max(each.drafts for each in chunks)
        steps, flight = max(each.steps for each in chunks), self._under_way(chunks)
        if flight and flight.shape.gamma:
            return self._speculate(chunks, flight.shape, steps, flight)
        if choice and gamma and self.on_card and not choice.costs.known(len(chunks), gamma):
            self._prepare(requests, starts, reach, self._shape(chunks, gamma))  # captures it: choose by its price
            if all(each.request.acceptance for each in chunks):
                best, steps = self._best(chunks)
                gamma = min(best, gamma)
        if not gamma:
            return self._decode(chunks)
        return self._speculate(chunks, self._shape(chunks, gamma), steps)

    def _shape(self, chunks: Sequence[Chunk], gamma: int) -> Shape:
        """A tree of drafts if the drafter can make one, and no request names the length of a chain."""
        branches = self.network is not None and self.eager.speculation.branching
        return shape_of(gamma, branches and all(each.request.acceptance for each in chunks))

    def _prepare(
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

    def _launch(
        self, requests: Sequence[Request], starts: list[int], counts: list[int], behind: Flight | None = None
    ) -> Flight:
        """Launch so many plain steps of each text: write the batch into the buffers of a graph, and replay it.

        `behind`: they go on where these steps end, whose tokens the host does not know.
        """
        read = self.steps.tokens[behind.on_device(requests)] if behind else None  # capturing overwrites the buffer
        prepared = self._prepare(requests, starts, counts, PLAIN)
        assert prepared
        plans, lists, replay = prepared
        # Each request's own pieces come last. (Those of shared prefixes, before them, see the same keys in every step.)
        last = plans[0].launches[-1].columns
        last.position.copy_(torch.tensor(starts)[last.sequence])
        with self.letter() as letter:
            self._put_steps(letter, requests, starts, counts, behind is None)
            self._put_plans(letter, plans, lists)
        if read is not None:
            self.steps.tokens[: len(read)] = read
        steps, n = max(counts), len(requests)
        seconds = self.clock.time(replay, steps)
        chosen, tops, scores = (each[:steps, :n] for each in (self.steps.chosen, self.steps.tops, self.steps.scores))
        scored = any(each.params.logprobs for each in requests)
        found = read_back([chosen, tops, scores if scored else tops])
        return Flight.of(requests, starts, counts, PLAIN, self.cache.device, found, seconds)

    def _decode(self, chunks: Sequence[Chunk]) -> list[Result]:
        """A token a step."""
        n, params, requests = len(chunks), [chunk.request.params for chunk in chunks], [each.request for each in chunks]
        starts, steps = [chunk.start for chunk in chunks], [min(chunk.grant, self.max_steps) for chunk in chunks]
        flight, self.flight = self.flight, None
        ran_ahead = flight is not None and flight.serves(chunks)
        if flight is None or not ran_ahead:
            flight = self._launch(requests, starts, steps)
        # While the card decodes, the host asks for what follows. What a drafter wants to know of these steps comes
        # after the tokens are copied, so while the host writes these down.
        texts, run = [request.tokens for request in requests], max(steps)
        if self.drafter and self.drafter.reviewed:
            self.drafts.append(texts, steps, self.steps.chosen[:run, flight.on_device(requests)])
        reviewed = self._review(n)
        if self.network:
            self.network.follow(requests, starts, steps, self.steps.chosen, flight.places(requests))
        rest = [each for each in chunks if each.reach > each.grant]
        if rest and not any(each.drafts for each in chunks):
            ends, ahead = [each.start + each.grant for each in rest], [each.reach - each.grant for each in rest]
            self.flight = self._launch([each.request for each in rest], ends, ahead, flight)
        # Look once, at all steps. A request keeps the tokens before its first broken step.
        rows = flight.places(requests)
        chosen, tops, scores = (each[:run, rows] for each in flight.found())
        sound = tops.isfinite().long().cumprod(dim=0).sum(dim=0).tolist()
        if choice := self.eager.speculation.choice:
            each_step = flight.seconds()
            look = self.clock.look(run * each_step)
            price = each_step if rounded_up(flight.rows) == rounded_up(n) else None  # of a larger batch
            choice.learn(steps, lefts(chunks), 0, run, self.max_steps, price, None if ran_ahead else look)
        results, emitted = [], [row[:count] for row, count in zip(chosen.T.tolist(), steps)]
        if self.drafter and self.drafter.reviewed:
            self.drafts.keep(texts, emitted)
        for own, score, row, taken, *each in zip(params, scores.T, emitted, reviewed(), steps, sound):
            kept = row[: min(*each)]
            seen = (taken[0], taken) if taken else None  # without drafts, a step is a token
            results.append(Result(kept or None, score[: len(kept)].tolist() if own.logprobs else [], lengths=seen))
        return results

    def _send(self, chunks: Sequence[Chunk], shape: Shape, steps: int, behind: Flight | None = None) -> Flight | None:
        """Launch up to so many steps with drafts of this shape.

        `behind`: they go on where these steps end, wherever that is. None if they are not needed or not captured.
        """
        n, params, requests = len(chunks), [chunk.request.params for chunk in chunks], [each.request for each in chunks]
        starts, reach = [each.start for each in chunks], [each.reach for each in chunks]
        counts = reach if behind else [each.grant for each in chunks]
        # As many steps as are expected to be needed, and a few more. Behind others the choice has worked this out.
        needed, choice = max(counts) / self.kept.get(shape, shape.depth + 1.0), self.eager.speculation.choice
        more = choice.costs.margin(n, shape.gamma, needed) if choice else 0.0
        counted = behind and all(each.acceptance for each in requests)
        replays = steps if counted else min(ceil(needed + more) - (behind.steps if behind else 0), steps)
        prepared = self._prepare(requests, starts, reach, shape, captures=behind is None) if replays > 0 else None
        if prepared is None:
            return None
        plans, lists, replay = prepared
        texts, drafts = [request.tokens for request in requests], self.drafts
        limits = [len(text) + count for text, count in zip(texts, counts)]
        most = [min(chunk.drafts, shape.gamma) for chunk in chunks]
        moved = behind.on_device(requests) if behind and behind.places(requests) != list(range(n)) else None
        with self.letter() as letter:
            if behind:
                drafts.go_on(letter, moved, limits, most, params, shape.gamma)
            else:
                drafts.begin(letter, texts, limits, most, params, shape.gamma)
            self._put_plans(letter, plans, lists)
            self._put_tables(letter, requests)
            if self.network and behind:
                self.network.go_on(letter, requests, moved)
            elif self.network:
                self.network.start(letter, requests)
        seconds = self.clock.time(replay, replays)
        emitted = drafts.emitted[:n]
        scored = drafts.scored[:n] if any(own.logprobs for own in params) else emitted
        found, reviewed = read_back([drafts.notes[:replays, :, :n], emitted, scored]), self._review(n)
        states = self.network.state[:n].clone() if self.network else None
        if behind:
            starts = [UNKNOWN] * n
        return Flight.of(requests, starts, [replays] * n, shape, self.cache.device, found, seconds, reviewed, states)

    def _speculate(
        self, chunks: Sequence[Chunk], shape: Shape, steps: int, flight: Flight | None = None
    ) -> list[Result]:
        """Drafts of this shape in each step; `flight` is the run, if it was launched ahead."""
        gamma, n, requests = shape.gamma, len(chunks), [chunk.request for chunk in chunks]
        texts, params = [request.tokens for request in requests], [request.params for request in requests]
        ran_ahead, self.flight = flight is not None, None
        flight = flight or self._send(chunks, shape, steps)
        assert flight
        if (ahead := chunks[0].ahead) and steps == chunks[0].steps:
            self.flight = self._send(chunks, shape, ahead, flight)
        # Look once, at all steps.
        rows = flight.places(requests)
        in_order = rows == list(range(n))
        notes, tokens, scores = flight.found()
        judged = notes.permute(2, 0, 1)[rows].numpy()  # [n, steps, 4]
        made = judged.sum(axis=1)
        emitted = [tokens[row, :count].tolist() for row, count in zip(rows, made[:, 2].tolist())]
        if self.flight or in_order:
            self.drafts.keep(texts, emitted)
        known = [len(text) + len(its) for text, its in zip(texts, emitted)]
        if self.flight:
            self.flight.began(requests, [count - 1 for count in known])
        if self.network and flight.states is not None:
            states = flight.states if in_order else flight.states[flight.on_device(requests)]
            self.network.stop(requests, known, states)
        kept = float((made[:, 2] / np.maximum((judged[:, :, 2] > 0).sum(axis=1), 1)).mean())
        self.kept[shape] = max((self.kept.get(shape, kept) + kept) / 2, 1.0)
        if choice := self.eager.speculation.choice:
            each_step = flight.seconds()
            look = self.clock.look(flight.steps * each_step)
            price = each_step if rounded_up(flight.rows) == rounded_up(n) else None  # of a larger batch
            look = None if ran_ahead else look
            counts = made[:, 2].tolist()
            choice.learn(counts, lefts(chunks), gamma, flight.steps, self.max_steps, price, look, ran_ahead)
        results, each_taken = [], flight.reviewed() if flight.reviewed else []
        for chunk, own, row, its, steps_of in zip(chunks, params, rows, emitted, judged):
            if not its and steps_of[0, 0]:
                # A draft that breaks the model spoils the rows before it, too (0 · NaN): read again without it.
                results += self.eager.run([chunk], [Draft()])
                continue
            logprobs = scores[row, : len(its)].tolist() if own.logprobs else []
            its_steps, taken = steps_of[steps_of[:, 2] > 0], each_taken[row]
            each = [judgement(*step) for step in its_steps[:, :3].tolist()]
            seen = (
                (taken[0], taken) if taken else of_trees(its_steps, shape) if shape.branches else of_chains(its_steps)
            )
            results.append(Result(its or None, logprobs, judged=each, lengths=seen))
        return results

    def _review(self, rows: int) -> Callable[[], list[list[float]]]:
        """For each text the steps that its new tokens would have taken with each length; empty if nobody can know.

        What comes back waits for them. Meanwhile the host writes down the tokens.
        """
        if self.drafter is None or not self.drafter.reviewed:
            return lambda: [[]] * rows
        found = read_back([self.drafter.review(self.drafts, rows)[:, : len(LENGTHS)]])
        return lambda: found()[0].tolist()

    def _cut(self, prefixes: list[SharedPrefix], shape: Shape, ends: list[int]) -> TilePlan:
        """The pieces of a step in which a token and its drafts, the last of each text's `ends`, attend."""
        k_pages, heads, counts = self.cache.keys[0], self.model.config.heads, [shape.gamma + 1] * len(ends)
        seen = torch.tensor(shape.seen * len(ends)) if shape.seen else None
        return cut(ends, counts, prefixes, k_pages, heads, self.cache.latent_dim, seen=seen)

    def _put_steps(
        self, letter: "Letter", requests: Sequence[Request], starts: list[int], steps: list[int], known: bool
    ) -> None:
        """Write where each step writes its keys and values, and what the first step reads, if that is `known`."""
        table, rows, step = self._put_tables(letter, requests), np.arange(len(requests)), np.arange(self.max_steps)
        step, last = step[:, None], np.array(steps) - 1
        positions = np.array(starts) + np.minimum(step, last)  # [max_steps, rows]
        slots = np.where(step <= last, self.cache.slots(table, rows, positions), -1)
        tokens = np.array([each.tokens[-1] for each in requests]) if known else None
        self.steps.begin(letter, tokens, np.stack((positions, slots), axis=1), [each.params for each in requests])

    def _put_tables(self, letter: "Letter", requests: Sequence[Request]) -> Int[np.ndarray, "batch width"]:
        """Write the page tables, and return them."""
        table = padded_table([each.table for each in requests])
        letter.put(self.table[: len(table), : table.shape[1]], table)
        return table

    def _put_plans(self, letter: "Letter", plans: list[TilePlan], lists: list[TilePlan]) -> None:
        for each, plan, into in zip(self.plans, plans, lists):
            each.put(letter, plan, into)

    def _graph(self, batch: int, plans: list[TilePlan], kind: "Kind", shape: Shape, captures: bool) -> Graph | None:
        """The lists and the replay of a step for so many texts, rounded up, whose lists can hold these plans.

        It is captured when it is first asked for, and once more for plans that its lists cannot hold, or None if it may
        not be. Without CUDA, the replay is the step itself.
        """
        rows = rounded_up(batch)
        key = (kind, rows, *(each.tile for plan in plans for each in plan.launches), shape)
        sizes, known = [each.size(plan) for each, plan in zip(self.plans, plans)], self.graphs.get(key)
        if known:
            sizes = [tuple(map(max, own, its)) for own, its in zip(sizes, known.sizes)]
        if known is None or sizes != known.sizes:
            if not captures:
                return None
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
            self.graphs[key], self.captured = known, self.captured + 1
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
        choice = self.eager.speculation.choice
        if choice is None or not self.on_card:
            return
        for count in (1, min(IDLE, self.max_steps)):
            self._begin_nobody(gamma)
            seconds = self.clock.time(replay, count)
            torch.cuda.synchronize()
        choice.captured(batch, gamma, seconds(), self.clock.agreed(perf_counter() - began))
        self._review(batch)  # compiles its kernels, if need be

    @torch.inference_mode()
    def _step(self, rows: int, lists: TilePlan, kind: "Kind") -> None:
        """One step of `rows` rows, from the buffers to the buffers."""
        batch, tokens = Batch(self.table, [0] * rows, [1] * rows, lists), self.steps.tokens[:rows]
        positions, slots = self.steps.place[:, :rows]
        logits = self._logits(tokens, positions, slots, batch, self.steps.step, "noted")
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
        drafts.end(self._logits(*fed, batch, drafts.rows.step, "tapped"), kind, shape)
        if shape.seen:
            drafts.keep_paths(rows, (*cache.keys, *(cache.values or ())), self.offsets, self.table)
        if self.network:
            self.network.read(rows, gamma, lists[1])

    def _logits(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, batch: Batch, step: Tensor, noted: str
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the rows. What a network wants to know of them is noted in its buffer of this name."""
        if self.fused:
            taps = {}
            if self.network:
                from inference_opt.kernels.draft_head import tap

                taps = {"taps": self.network.head.taps, "note": partial(tap, step, getattr(self.network, noted))}
            return fused_logits(self.model, tokens, positions, slots, self.cache, batch, **taps)
        logits: Tensor = self.model(tokens, positions, PagedKernelBatch(self.cache, positions, slots, lambda _: batch))
        return logits


def runner_for(model: Transformer, cache: PagedCache, speculation: Speculation, max_steps: int, rows: int) -> Runner:
    """A `GraphRunner` where kernels run and the drafter, if there is one, drafts on the card; else an `EagerRunner`.

    The launches of the plain mixture of experts depend on the data, so one is captured only where it is fused. Ranks
    (`model/parallel.py`) plan the same steps. They can replay them together if they communicate through NCCL, whose
    sums are captured as launches.
    """
    eager = EagerRunner(model, cache, speculation)
    if not isinstance(cache, PagedKernelCache) or not uses_triton(cache.keys[0]):
        return eager
    if speculation.drafter is not None and not speculation.drafter.captured:
        return eager
    if model.config.experts and not can_fuse(model):
        return eager
    if model.is_sharded and not (dist.is_initialized() and dist.get_backend() == "nccl"):
        return eager
    return GraphRunner(eager, cache, max_steps, rows)
