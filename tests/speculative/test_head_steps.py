"""The trained drafter in captured steps guesses what it guesses step by step, whatever was kept and wherever runs end.

Under Triton's interpreter the steps are run; the engine's tests are in `tests/engine/test_graph_runner.py`.
"""

from array import array
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import SamplingParams
from inference_opt.cache.paged import PagedCache
from inference_opt.cache.paged_kernel import PagedKernelCache, padded_table
from inference_opt.engine.step_plans import rounded_up
from inference_opt.kernels.draft_steps import DraftSteps
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.plan import TilePlan
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.steps import kind_of
from inference_opt.sampling import CommonNoise
from inference_opt.speculative.best_first import Branch, Growth
from inference_opt.speculative.drafter import DraftRequest, Observation
from inference_opt.speculative.eagle import Eagle
from tests.engine.invariants import random_head
from tests.toys import toy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = toy(dtype=torch.float32, max_context=40).requires_grad_(False).to(DEVICE)
VOCAB, DIM, TAPS, MOST = 13, 16, 2, 7  # MOST: drafts, at most
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 30.0]),
    top_k=st.sampled_from([0, 0, 0, 3]),
    seed=st.integers(0, 2**63),
)


class Text(SimpleNamespace):
    """One text and its twin: the first is drafted for in captured steps, the second step by step."""

    def __init__(self, tokens, params, table):
        views = [
            SimpleNamespace(tokens=array("i", tokens), computed=0, params=params, table=table, drafter_state=None)
            for _ in range(2)
        ]
        super().__init__(mine=views[0], its=views[1], table=table, reach=0)

    @property
    def known(self):
        return len(self.its.tokens)

    def grow(self, tokens):
        for view in (self.mine, self.its):
            view.tokens.extend(tokens)
            view.computed = len(view.tokens) - 1


def bound(kind, page, pages):
    """A drafter at work, whose pages hold NaN where nothing was written."""
    size = {"num_pages": pages, "page_size": page, "dtype": torch.float32, "device": DEVICE}
    head = random_head(TARGET, reduced=9).float().to(DEVICE)
    drafter = Eagle(head, confidence=0.0).bind(TARGET, kind(**TARGET.config.kv_shape, **size))
    for each in (*drafter.cache.keys, *drafter.cache.values):
        each.fill_(torch.nan)
    return drafter


def observe(drafter, view, start, states, kind):
    tokens = list(view.tokens[start:])
    taps = [state.to(DEVICE) for state in states]
    drafter.observe([Observation(view, view.table, start, tokens, taps, kind)])


def random_states(generator, *shape):
    return [torch.randn(*shape, DIM, generator=generator) for _ in range(TAPS)]


def lists_of(plan, each, texts):
    """Its lists as a graph has them: for more rows than there are texts."""
    rows = texts * len(each.read)
    offsets = torch.full((rows + 1,), plan.num_states, dtype=torch.int32)
    offsets[: len(plan.offsets)] = plan.offsets
    *shared, own = plan.launches
    own = replace(own, seen=torch.tensor(each.seen * texts)) if each.branches else own
    return TilePlan((*shared, own), offsets, plan.states, plan.num_states).to(DEVICE)


@torch.inference_mode()
def static_trees(drafter, texts, shape):
    """The drafts of this shape, level by level as `best_first.py` makes them."""
    noises = [CommonNoise(text.params.seed, len(text.tokens)) for text in texts]
    requests = [DraftRequest(text, 63, each, depth=63, noise=each) for text, each in zip(texts, noises)]
    states, drafts = drafter.first(requests), []
    for request, state in zip(requests, states):
        growth, known, places = Growth(request), {-1: state}, {-1: -1}  # places: of drafts among those found
        children = {node: [i for i, parent in enumerate(shape.parents) if parent == node] for node in known}
        for depth in range(shape.depth):
            nodes = [i for i, own in enumerate(shape.depths[1:]) if own == depth] if depth else [-1]
            children |= {node: [i for i, parent in enumerate(shape.parents) if parent == node] for node in nodes}
            nodes = [node for node in nodes if children[node]]
            if depth:
                growth.read += [places[node] for node in nodes]
                above = torch.stack([known[shape.parents[node]] for node in nodes])
                known |= zip(nodes, drafter.branch([Branch(growth, len(nodes))], above))
            for node in nodes:
                logits = growth.raced(drafter.logits(known[node][None])[0].float(), places[node], drafter)
                best = logits.sort(descending=True, stable=True).indices[: len(children[node])]
                for child, token in zip(children[node], drafter.scored(best[None])[0].tolist()):
                    places[child] = len(growth.tokens)
                    growth.add(places[node], [token], [0.0])
        drafts.append([growth.tokens[places[i]] for i in range(shape.gamma)])
    return drafts


class Both:
    """The same texts, drafted for by both. `expect` compares their drafts."""

    def __init__(self, texts, page, params, seed):
        self.page, self.generator = page, torch.Generator().manual_seed(seed)
        width = -(-40 // page)
        order = torch.randperm(width * len(texts), generator=self.generator).tolist()
        tables = [order[i * width :][:width] for i in range(len(texts))]
        self.texts = [Text(*each) for each in zip(texts, params, tables)]
        self.its = bound(PagedCache, page, len(order))
        self.mine = bound(PagedKernelCache, page, len(order))
        assert self.mine.captured
        self.rows = rounded_up(len(texts))
        self.steps = DraftSteps(3, self.rows, MOST, 40, DEVICE)
        self.table = torch.zeros(self.rows, width, dtype=torch.int32, device=DEVICE)
        self.table[: len(texts)] = torch.from_numpy(padded_table(tables)).to(DEVICE)
        self.network = self.mine.network(self.steps, self.table, max_steps=3)
        self.kind = kind_of(params, VOCAB)
        for text in self.texts:
            states = random_states(self.generator, text.known)
            for drafter, view in ((self.mine, text.mine), (self.its, text.its)):
                observe(drafter, view, 0, [state[:-1] for state in states], "prompt")
            text.grow([])

    @property
    def views(self):
        return [text.mine for text in self.texts]

    def begin(self, shape, room):
        """A run of captured steps, in which every text may become `room` tokens longer."""
        gamma = shape.gamma
        texts = [view.tokens for view in self.views]
        limits = [len(text) + left for text, left in zip(texts, room)]
        for text, limit in zip(self.texts, limits):
            text.reach = max(text.reach, limit - 1, text.known - 1)
        self.shape, self.limits = shape, limits
        params = [view.params for view in self.views]
        with Letter(DEVICE) as letter:
            self.steps.begin(letter, texts, limits, [gamma] * len(texts), params, gamma)
            self.network.start(letter, self.views)
        ends = [limit - 1 for limit in limits]
        self.plans = [lists_of(self.network.plan(each, ends), each, self.rows) for each in shape.passes]

    def step(self, kept):
        """Both draft; the target keeps a path of so many rows of each text, as far as there are rows."""
        shape, gamma, steps = self.shape, self.shape.gamma, self.steps
        self.network.guess(self.rows, shape, self.kind, self.plans)
        right = static_trees(self.its, [text.its for text in self.texts], shape)
        mine = steps.draft.flatten()[: self.rows * gamma].view(self.rows, gamma).tolist()
        for text, limit, draft, its in zip(self.texts, self.limits, mine, right):
            useful = max(min(gamma, limit - text.known - 1), 0)
            assert draft[:useful] == its[:useful]
        # What the target would have done.
        steps.feed(self.rows, shape, self.table, self.page)
        tapped = random_states(self.generator, self.rows, gamma + 1)
        self.network.tapped[0, : self.rows * (gamma + 1)] = torch.stack(tapped, dim=2).flatten(0, 1).to(DEVICE)
        for row, (text, count) in enumerate(zip(self.texts, kept)):
            start, path = text.known - 1, self.path(int(steps.queries[row]))[:count]
            new = torch.randint(VOCAB, (len(path),), generator=self.generator).tolist()
            text.grow(new)
            steps.text[row, start + 1 : start + 1 + len(path)] = torch.tensor(new, dtype=torch.int32)
            steps.path[row, : len(path)] = torch.tensor(path, dtype=torch.int32)
            steps.known[row] = text.known
            observe(self.its, text.its, start, [state[row, path] for state in tapped], "decode")
        self.network.read(self.rows, gamma, self.plans[0])
        for text in self.texts:
            rest = self.mine.cache.keys[0][text.table].flatten(0, 1)[text.reach :]
            assert rest.isnan().all(), "where it may not become longer, its pages may be another text's"

    def path(self, rows):
        """Rows from the text's last token to a leaf, of those that count."""
        path = [0] if rows else []
        while path:
            children = [i + 1 for i, parent in enumerate(self.shape.parents[: rows - 1]) if parent == path[-1] - 1]
            if not children:
                break
            path.append(children[int(torch.randint(len(children), (), generator=self.generator))])
        return path

    def end(self):
        states = self.network.state[: len(self.texts)].clone()
        self.network.stop(self.views, [text.known for text in self.texts], states)

    def plainly(self, counts):
        """Plain steps, `counts` of each text: their states were noted."""
        noted = random_states(self.generator, 3, self.rows)
        self.network.noted.copy_(torch.stack(noted, dim=2))
        chosen = torch.randint(VOCAB, (3, self.rows), generator=self.generator)
        starts = [text.known - 1 for text in self.texts]
        for row, (text, start, count) in enumerate(zip(self.texts, starts, counts)):
            text.grow(chosen[:count, row].tolist())
            observe(self.its, text.its, start, [state[:count, row] for state in noted], "decode")
        self.network.follow(self.views, starts, counts, chosen.to(DEVICE), list(range(self.rows)))

    def step_by_step(self):
        """A step of the eager engine: both observe it."""
        for text in self.texts:
            states = random_states(self.generator, 1)
            text.grow([1])
            for drafter, view in ((self.mine, text.mine), (self.its, text.its)):
                observe(drafter, view, text.known - 2, states, "decode")


TEXTS = st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=9), min_size=1, max_size=2)


@settings(max_examples=8)
@given(
    TEXTS, st.integers(1, 4), st.lists(PARAMS, min_size=2, max_size=2), st.integers(0, 99),
    st.lists(
        st.tuples(
            st.sampled_from(["captured", "captured", "plain", "step by step"]),
            st.builds(Shape, st.integers(1, MOST), st.booleans()),
            st.lists(st.integers(1, 12), min_size=2, max_size=2),
            st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=2),
        ),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_captured_steps_guess_what_the_drafter_proposes(texts, page, params, seed, runs):
    """Runs of all kinds one after another; texts that keep all, some or no rows, or have no room left."""
    both = Both(texts, page, params[: len(texts)], seed)
    for kind, shape, room, kept in runs:
        if max(text.known for text in both.texts) > 20:
            break
        if kind == "plain":
            both.plainly([min(count, 3) for count in room[: len(texts)]])
        elif kind == "step by step":
            both.step_by_step()
        else:
            both.begin(shape, room)
            for each in kept:
                both.step(each)
            both.end()
    both.begin(Shape(2), [9] * len(texts))
    both.step([3] * len(texts))


def test_a_text_of_which_nothing_was_read_is_guessed_and_read():
    """The radix tree had all of its prompt but the last token, so the drafter has observed nothing."""
    both = Both([[1, 2, 3, 4, 5], [6, 7, 8]], 2, [SamplingParams(seed=1)] * 2, 0)
    state, both.texts[0].mine.drafter_state = both.texts[0].mine.drafter_state, None
    both.begin(Shape(2), [9, 9])
    assert not both.network.state[0].any()
    both.network.state[0] = state.state
    both.step([2, 3])
    both.end()
    assert both.texts[0].mine.drafter_state.start == both.texts[0].known - 1


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"qkv_bias": True}, {"mlp_bias": True}])
def test_a_head_of_another_kind_drafts_step_by_step(change):
    model = toy(dtype=torch.float32, **change)
    size = {"num_pages": 3, "page_size": 2, "dtype": torch.float32, "device": torch.device("cpu")}
    drafter = Eagle(random_head(model).float()).bind(model, PagedKernelCache(**model.config.kv_shape, **size))
    assert not drafter.captured
    assert Eagle.captured
