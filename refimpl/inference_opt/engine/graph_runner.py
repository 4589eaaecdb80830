"""The runner on CUDA: decode steps captured once, and replayed several in a row without asking the host.

A step of a small model takes the card a millisecond. Python takes as long to launch it, and longer to decide what comes
next. Three remedies:

    capture   the launches of a step become one CUDA graph for each size of batch, which is replayed
              (`captured_steps.py`)
    repeat    the token of one step is the input of the next, and the card chooses it itself: the largest logit's, or
              one drawn with the noise of the request's seed (`kernels/race.py`). So the scheduler reserves pages for
              several steps, the graph is replayed as often, and the host looks once
    ahead     the steps that come next are launched before the host looks at those that run (`flight.py`). So while it
              writes down tokens and plans, the card goes on

With a drafter that works on the card, its drafts are a part of the captured steps. How many there are, and for how many
steps, is decided here: by name, or by what pays for this batch (`speculative/choice.py`).

What follows the end of a text is dropped. If a row was granted fewer steps than others, it writes nothing in the steps
after its own (slot −1).
"""

from collections.abc import Sequence
from functools import cache
from math import ceil

import numpy as np
import torch
import torch.distributed as dist

from inference_opt.cache.fused_forward import can_fuse
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.engine.captured_steps import CapturedSteps
from inference_opt.engine.clock import Clock
from inference_opt.engine.eager_runner import EagerRunner
from inference_opt.engine.flight import UNKNOWN, Flight
from inference_opt.engine.request import Request
from inference_opt.engine.runner import Judged, Result, Runner, lefts
from inference_opt.engine.scheduler import Chunk, Repeat
from inference_opt.engine.speculation import Speculation
from inference_opt.engine.step_plans import rounded_up
from inference_opt.kernels.batch import uses_triton
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.transfer import read_back
from inference_opt.model.transformer import Transformer
from inference_opt.speculative.acceptance import LENGTHS, Acceptance, of_chains, of_trees
from inference_opt.speculative.choice import CAPTURE, TRIED, Choice
from inference_opt.speculative.drafter import Draft
from inference_opt.speculative.step_costs import SPREAD
from inference_opt.trace import recording

PARTS = 2  # of the plain steps in a row, of which one runs and one is launched: who arrives waits for these at most
LEAST = 4  # steps of such a part: a look should not take longer
TRUSTED = 3  # times that texts begin with plain steps unasked, after those before them were decoded so
PLAIN = Shape(0)

judgement = cache(Judged)  # few differ, and thousands of new tuples a run would set Python looking for garbage
shape_of = cache(Shape)  # what follows from a shape is worked out once


class GraphRunner:
    """Replays decode steps, up to `max_steps` in a row for up to `max_rows` requests. Prompts run eagerly."""

    def __init__(self, eager: EagerRunner, cache: PagedKernelCache, max_steps: int, max_rows: int) -> None:
        self.eager, self.cache, self.max_steps, model = eager, cache, max_steps, eager.model
        self.flight: Flight | None = None  # launched ahead, and not looked at
        self.decided = 0  # plain steps that were decided on, and not launched
        self.paused = False  # no plain steps were launched ahead, because drafts are to come first
        self.trusted = dict[int, int]()  # by how many texts, rounded up: times that plain steps may begin unasked
        self.part = max_steps // PARTS if max_steps >= PARTS * LEAST else 0
        self.most_steps = max_steps + round(SPREAD * max_steps**0.5)  # with drafts: a few more may end the texts
        self.clock = Clock(cache.device, model.is_sharded)
        self.drafter, self.on_card = eager.speculation.drafter, cache.device.type == "cuda"
        self.captured = CapturedSteps(model, cache, eager.speculation, self.clock, max_steps, self.most_steps, max_rows)
        self.steps, self.letter, self.network = self.captured.steps, self.captured.letter, self.captured.network
        self.draft_rows = self.captured.fed
        self.kept: dict[Shape, float] = {}  # tokens that a step with such drafts gives a text, lately
        if self.drafter is not None:
            self.drafts = self.captured.drafts
            # A tree also shows what smaller ones would give, so a large one is tried at once.
            trees = self.network is not None and eager.speculation.branching
            tried = LENGTHS[-2] if trees else TRIED
            if self.clock.shared:
                self.part = 0  # to agree on a price, ranks would wait for what runs ahead
            capture = CAPTURE if self.on_card else 0.0
            eager.speculation.choice = Choice(
                self.drafter.reviewed, tried=tried, trees=trees, capture=capture, ahead=self.part > 0
            )

    def choose(self, chunks: Sequence[Chunk]) -> Repeat | None:
        """As many drafts as the longest that was asked for by name, or what pays for this batch.

        The eager runner decides if a recording wants to see every step, or a request's rule is not that of captured
        steps. Steps that are under way come first. If as many drafts are wanted as these have, and no look after few
        steps, others are launched ahead: plain steps in parts, and with drafts as many as may still be needed, since a
        text that lacks a few tokens costs another look. But where others wait for a place, whoever ends makes room,
        and a run ahead would be useless.

        Where nothing is under way, the card waits for the choice, which takes the host longer than a step. If so many
        texts were to be decoded plainly when they began, the next ones begin with plain steps, and the choice is made
        while these run.
        """
        if not self._replays(chunks):
            return self.eager.choose(chunks)
        part, flight = 0 if any(each.queue for each in chunks) else self.part, self._under_way(chunks)
        under_way, size = flight.steps if flight else 0, rounded_up(len(chunks))
        if flight and (going := flight.shape.gamma):
            self.trusted.pop(size, None)
            drafts, steps = self._wanted(chunks, going)
            same = drafts == going and self._shape(chunks, going) == flight.shape
            ahead = min(max(steps - under_way, 0), self.most_steps - part)  # or the next run would be short again
            return Repeat(going, under_way, ahead if part and same else 0)
        begins, choice = part > 0 and not under_way and not self.paused, self.eager.speculation.choice
        free = all(each.request.acceptance and each.request.decoding for each in chunks)
        if begins and choice and free and self.trusted.get(size):
            self.trusted[size] -= 1
            choice.missing, self.decided = 0.0, self.max_steps - part
        elif not under_way or not part or self.decided < part:
            drafts, steps = self._wanted(chunks)
            self.decided = self.max_steps
            if drafts:
                self.trusted.pop(size, None)
            elif begins and free and steps >= self.max_steps and any(each.drafts for each in chunks):
                self.trusted[size] = TRUSTED
            going_on = part and not under_way and all(each.request.decoding for each in chunks)
            if self.paused and going_on and not drafts and choice:
                choice.paused(len(chunks))
            self.paused = drafts > 0 and part > 0
            if drafts or steps < self.max_steps or not part:
                self.decided = 0
                if under_way:
                    return Repeat(0, under_way)
                first = part if drafts and part and steps >= part + LEAST else steps
                return Repeat(drafts, first, steps - first)
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
        requests = [each.request for each in chunks]
        if choice is None:
            return 0, self.max_steps
        if any(not each.decoding and self.eager.speculation.gamma(each) for each in requests):
            return 0, 1  # before its first token, behind a prompt that was found, a text has no drafts
        if not any(wanted):
            return 0, self.max_steps
        texts = [each.acceptance or Acceptance() for each in requests]
        return choice.best(texts, wanted, lefts(chunks), self.most_steps, going)

    @property
    def captures(self) -> int:
        """How many steps were captured so far."""
        return self.captured.count

    def forget(self) -> None:
        """Drop the captured graphs, which hold the addresses of the old weights."""
        self.captured.graphs.clear()
        self.trusted.clear()
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
            self.flight, self.paused = None, False
            return self.eager.run(chunks, drafts)
        requests, starts = [each.request for each in chunks], [each.start for each in chunks]
        reach = [each.reach for each in chunks]
        self.cache.check([each.table for each in requests], starts, reach)
        choice, gamma = self.eager.speculation.choice, max(each.drafts for each in chunks)
        steps, flight = max(each.steps for each in chunks), self._under_way(chunks)
        if flight and flight.shape.gamma:
            return self._speculate(chunks, flight.shape, steps, flight)
        if choice and gamma and self.on_card and not choice.costs.known(len(chunks), gamma):
            # Captures it: choose by its price.
            self.captured.prepare(requests, starts, reach, self._shape(chunks, gamma))
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

    def _launch(
        self, requests: Sequence[Request], starts: list[int], counts: list[int], behind: Flight | None = None
    ) -> Flight:
        """Launch so many plain steps of each text: write the batch into the buffers of a graph, and replay it.

        `behind`: they go on where these steps end, whose tokens the host does not know.
        """
        read = self.steps.tokens[behind.on_device(requests)] if behind else None  # capturing overwrites the buffer
        prepared = self.captured.prepare(requests, starts, counts, PLAIN)
        assert prepared
        plans, lists, replay = prepared
        # Each request's own pieces come last. (Those of shared prefixes, before them, see the same keys in every step.)
        last = plans[0].launches[-1].columns
        last.position.copy_(torch.tensor(starts)[last.sequence])
        with self.letter() as letter:
            self.captured.put_steps(letter, requests, starts, counts, behind is None)
            self.captured.put_plans(letter, plans, lists)
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
        reviewed = self.captured.review(n)
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
            # Neither that of a larger batch, nor that of a step or two, which begin late on a card that waits.
            usual = rounded_up(flight.rows) == rounded_up(n) and run >= min(LEAST, self.max_steps)
            price = each_step if usual else None
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
        if replays <= 0:
            return None
        prepared = self.captured.prepare(requests, starts, reach, shape, captures=behind is None)
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
            self.captured.put_plans(letter, plans, lists)
            self.captured.put_tables(letter, requests)
            if self.network and behind:
                self.network.go_on(letter, requests, moved)
            elif self.network:
                self.network.start(letter, requests)
        seconds = self.clock.time(replay, replays)
        emitted = drafts.emitted[:n]
        scored = drafts.scored[:n] if any(own.logprobs for own in params) else emitted
        found, reviewed = read_back([drafts.notes[:replays, :, :n], emitted, scored]), self.captured.review(n)
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
