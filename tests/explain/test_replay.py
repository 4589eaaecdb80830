"""A trace is true: its recorded operations, run again by fresh instances, give every snapshot that it holds."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt import SamplingParams, naive
from inference_opt.cache import generate as static
from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.cache.pool import PagePool
from inference_opt.engine.engine import Engine
from inference_opt.explain import views
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.law import DRAFT, TARGET
from inference_opt.explain.scenarios.speculation import Floats
from inference_opt.explain.scenarios.toys import arrivals, toy
from inference_opt.lab.exactness.exact import output_law
from inference_opt.lab.exactness.proposals import PROPOSALS, chain
from inference_opt.lab.exactness.zoo import DRAFT as ZOO_DRAFT
from inference_opt.lab.exactness.zoo import NEVER_0, OFTEN_0, table
from inference_opt.lab.exactness.zoo import TARGET as ZOO_TARGET
from inference_opt.model.attention import NoCache
from inference_opt.radix.node import as_bytes
from inference_opt.radix.tree import RadixTree
from inference_opt.sampling import probabilities, sample
from inference_opt.speculative import rules
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.models import FirstLayers
from inference_opt.trace import watched
from tests.toys import SHAPES
from tests.toys import toy as toy_model

TEXT = st.lists(st.integers(0, 1), max_size=8)
RULES = (
    rules.token_wise,
    rules.block,
    rules.coupled,
    rules.point_mass,
    rules.multi_draft,
    rules.tree,
    coupled_tree,
)
PROMPTS = "first come: 9\nsecond: 7"
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), TEXT),
        st.tuples(st.just("match"), TEXT),
        st.tuples(st.just("lock"), TEXT),
        st.tuples(st.just("unlock"), st.integers(0, 9)),
        st.tuples(st.just("evict"), st.integers(0, 5)),
    ),
    max_size=12,
)


def run(tree, pool, operations):
    """What an engine does with a tree and a pool, in any order."""
    locked = []
    for name, what in operations:
        if name == "serve":
            tokens = what[: len(what) // tree.page_size * tree.page_size]
            found = tree.match(tokens)
            need = len(tokens) // tree.page_size - len(found.pages)
            if need <= pool.free:
                tree.insert(tokens, found.pages + pool.allocate(need))
        elif name == "match":
            tree.match(what)
        elif name == "lock":
            locked.append(tree.match(what).node)
            tree.lock(locked[-1])
        elif name == "unlock" and locked:
            tree.unlock(locked.pop(what % len(locked)))
        elif name == "evict":
            pool.release(tree.evict(what))


def again(trace, tree, pool):
    """Do what the steps say was done; yield each step that told of a whole call."""
    for one in trace.steps:
        event, facts = one["event"], one["facts"]
        if event == "pool.allocate":
            assert pool.allocate(facts["count"]) == facts["pages"]
        elif event == "pool.release":
            pool.release(facts["pages"])
        elif event == "radix.split":
            continue  # told again by the match or insert that follows
        elif event == "radix.match":
            assert tree.match(facts["tokens"]).pages == facts["pages"]
        elif event == "radix.insert":
            assert tree.insert(facts["tokens"], facts["pages"]).pages == facts["own"]
        elif event == "radix.lock":
            tree.lock(tree._split(*tree._walk(as_bytes(facts["node"]), None)[:2]))
        elif event == "radix.unlock":
            tree.unlock(tree._split(*tree._walk(as_bytes(facts["node"]), None)[:2]))
        elif event == "radix.evict":
            assert tree.evict(len(facts["removed"])) == facts["removed"][::-1]
        yield one


@settings(max_examples=60)
@given(OPERATIONS, st.integers(1, 3), st.integers(1, 12))
def test_replaying_a_trace_gives_its_snapshots(operations, page_size, num_pages):
    tree, pool = RadixTree(page_size), PagePool(num_pages, page_size)
    with record(watch=[tree, pool]) as trace:
        run(tree, pool, operations)
    assert all(held for one in trace.steps for held in one["invariants"].values())
    tree, pool = RadixTree(page_size), PagePool(num_pages, page_size)
    with record(watch=[tree, pool]) as second:
        for one in again(trace, tree, pool):
            assert second.steps[-1]["state"] == one["state"], one["event"]
    assert [(s["event"], s["state"]) for s in second.steps] == [(s["event"], s["state"]) for s in trace.steps]


@given(OPERATIONS, st.integers(1, 3))
def test_recording_changes_nothing(operations, page_size):
    states = []
    for recorded in (False, True):
        tree, pool = RadixTree(page_size), PagePool(9, page_size)
        if recorded:
            with record(watch=[tree, pool]):
                run(tree, pool, operations)
        else:
            run(tree, pool, operations)
        states.append((views.snapshot(tree), views.snapshot(pool), tree.clock, tree.inserted, tree.evicted))
    assert states[0] == states[1]


class Told:
    """Randomness that turns as a trace says it did."""

    def __init__(self, trace):
        states = [one["state"]["speculation"] for one in trace.steps]
        self.numbers = iter([state["u"] for state in states if state["u"] is not None])
        self.draws = iter([state["drawn"] for state in states if state["drawn"] is not None])

    def uniform(self, i):
        return next(self.numbers)

    def choose(self, weights, i):
        return next(self.draws)


@given(st.sampled_from(RULES), st.integers(0, 4), st.integers(0, 99), st.data())
def test_a_rule_given_the_numbers_of_its_trace_does_the_same_again(rule, gamma, seed, data):
    """And what it shows is what it did: the kept path is what comes out, and every invariant holds."""
    weights = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)
    target, draft = (
        table(**{name: " ".join(map(str, data.draw(weights))) for name in ("start", "after_0", "after_1", "after_2")})
        for _ in range(2)
    )

    def run(rng):
        drafting = Floats(seed, 0, 0 if rule is rules.coupled else 1)
        with record() as trace:
            return watched(rule)(*PROPOSALS.get(rule, chain)(target, draft, (), gamma, drafting.choose), rng), trace

    emitted, trace = run(Floats(seed, 0))
    again, second = run(Told(trace))
    assert again == emitted
    assert [(s["event"], s["state"]) for s in second.steps] == [(s["event"], s["state"]) for s in trace.steps]
    assert all(held for one in trace.steps for held in one["invariants"].values())
    last = trace.steps[-1]["state"]["speculation"]
    kept = [x for x, fate in zip(last["drafts"], last["fates"]) if fate == "kept"]
    assert emitted == (kept if last["drawn"] is None else [*kept, last["drawn"]])


@given(st.sampled_from(RULES), st.integers(0, 4), st.integers(0, 99))
def test_a_recording_draws_no_more_of_a_draft_than_its_rule(rule, gamma, seed):
    drawn = []
    for recorded in (False, True):
        drafting = Floats(seed, 0, 0 if rule is rules.coupled else 1)
        drawn.append([])

        def choose(weights, i, drafting=drafting, to=drawn[-1]):
            to.append(drafting.choose(weights, i))
            return to[-1]

        with record() if recorded else nullcontext():
            given = PROPOSALS.get(rule, chain)(ZOO_TARGET, ZOO_DRAFT, (), gamma, choose)
            drawn[-1].append(watched(rule)(*given, Floats(seed, 0)))
    assert drawn[0] == drawn[1]


class Small(float):
    """A number that claims to lie below any other."""

    def __lt__(self, other):
        return True


@pytest.mark.parametrize("rule", [rules.token_wise, rules.block, rules.point_mass, rules.multi_draft, rules.tree])
def test_a_comparison_that_came_out_wrong_is_told(rule):
    """A draft that the target never says, kept."""

    class Broken(Floats):
        def uniform(self, i):
            return Small(0.5)

    given = PROPOSALS.get(rule, chain)(NEVER_0, OFTEN_0, (), 1, lambda weights, i: 0)
    with record() as trace:
        assert watched(rule)(*given, Broken(0, 0))[0] == 0
    assert not trace.cut
    assert not all(trace.steps[0]["invariants"].values())


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_that_fails_harms_no_rule(monkeypatch, rule):
    def fails(**data):
        raise ZeroDivisionError

    def emitted():
        return watched(rule)(
            *PROPOSALS.get(rule, chain)(ZOO_TARGET, ZOO_DRAFT, (), 2, Floats(3, 0, 1).choose), Floats(3, 0)
        )

    for event in [event for event in views.PICTURES if event.startswith("speculation.")]:
        monkeypatch.setitem(views.PICTURES, event, fails)
    with record() as trace:
        told = emitted()
    assert told == emitted()
    assert "could not be shown: ZeroDivisionError" in trace.cut


@given(SHAPES, st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 9))
def test_feeding_the_tokens_that_a_trace_names_gives_its_distributions(shape, prompt, seed):
    model, params = toy_model(**shape), SamplingParams(max_new_tokens=5, temperature=0.7, seed=seed)
    with record() as trace:
        text = naive.generate(model, prompt, params)
        assert static.generate(model, [prompt], params) == [text]
    assert len(trace) == 2 * len(text)
    config = model.config
    cache = ContiguousCache(**config.kv_shape, capacity=[20], dtype=model.dtype, device=model.device)
    for one in trace.steps:
        state = one["state"]["decode"]
        read, new = torch.tensor(state["read"]), state["new"]
        batch = NoCache([new]) if state["way"] == "naive" else cache.batch([new])
        positions = torch.arange(new) if state["way"] == "naive" else batch.positions
        with torch.inference_mode():
            logits = model(read[-new:], positions, batch, rows=torch.tensor([new - 1]))[0]
        assert probabilities(logits, params)[state["vocab"]].tolist() == state["law"]
        assert sample(logits, params, position=len(read)) == state["token"]
        assert all(one["invariants"].values())


def test_recording_changes_no_text_and_no_law():
    results = []
    for recorded in (False, True):
        with record() if recorded else nullcontext():
            engine = Engine(toy(depth=2), drafter=FirstLayers(1), gamma=2, page_size=2, num_pages=16)
            requests = arrivals(engine, PROMPTS, temperature=0.8, seed=1)
            while engine.requests:
                engine.step()
            laws = [output_law(TARGET, DRAFT, 2, rule, 2) for rule in RULES]
        results.append(([request.output for request in requests], engine.stats.accepted_tokens, laws))
    assert results[0] == results[1]
