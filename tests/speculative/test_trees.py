"""Trees of drafts, against the plainest way to find them; and drafts as the rules see them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt import naive
from inference_opt.engine.engine import Engine
from inference_opt.sampling import SamplingParams
from inference_opt.speculative import best_first, rules
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.drafter import Draft, check_draft
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.lookup import OCCURRENCES, WEIGHT, PromptLookup
from inference_opt.speculative.models import FirstLayers, SmallerModel
from inference_opt.speculative.tree import DraftTree
from tests.engine.invariants import random_head
from tests.speculative.test_drafters import TEXT, request
from tests.toys import toy


def paths(draft):
    """Of each draft, the tokens from the text to it."""
    found = {-1: ()}
    for i, (token, parent) in enumerate(zip(draft.tokens, draft.rising)):
        found[i] = (*found[parent], token)
    return [found[i] for i in range(len(draft.tokens))]


class Table:
    """A drafter whose logits are a function of the path: state 0 is the text's, and so on."""

    def __init__(self, vocab, seed, columns):
        self.vocab, self.seed, self.columns = vocab, seed, torch.tensor(columns)
        self.rounds = 0

    def first(self, requests):
        return torch.zeros(len(requests), 1)

    def branch(self, branches, states):
        self.rounds += 1
        tokens = torch.tensor([x for each in branches for x in each.tokens])
        return (states * 31 + tokens[:, None] + 1) % 9973

    def logits(self, states):
        generators = [torch.Generator().manual_seed(self.seed + int(state)) for state in states]
        return torch.stack([2 * torch.randn(self.vocab, generator=each) for each in generators])

    def scored(self, indices):
        return self.columns[indices]


def every_node(drafter, depth):
    """{path: log P} of all nodes down to a depth."""
    found, level = {}, {(): (torch.zeros(1, 1), 0.0)}
    for _ in range(depth):
        deeper = {}
        for path, (state, log) in level.items():
            for column, more in enumerate(drafter.logits(state).log_softmax(-1)[0].tolist()):
                token = int(drafter.columns[column])
                deeper[*path, token] = (state * 31 + token + 1) % 9973, log + more
        level = deeper
        found |= {path: log for path, (_, log) in level.items()}
    return found


@given(st.integers(1, 3), st.integers(1, 10), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.25, 1.0]))
def test_a_tree_has_the_most_probable_nodes(vocab, gamma, depth, seed, share):
    drafter = Table(vocab, seed, [7, 3, 5][:vocab])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_first, "SHARE", share)
        (draft,) = best_first.best_first(drafter, [replace(request([1, 2], gamma), depth=depth)])
    check_draft(draft, gamma, 8, depth)
    assert drafter.rounds < gamma
    nodes = every_node(drafter, depth)
    mine, best = sorted(nodes[path] for path in paths(draft)), sorted(nodes.values())[-gamma:]
    if share == 1:  # one node a round: none is read in vain
        assert mine == pytest.approx(best, abs=1e-5)
    assert len(mine) <= len(best)
    assert np.exp(mine).sum() <= np.exp(best).sum() + 1e-5
    assert np.exp(mine).sum() >= 0.8 * np.exp(best).sum()


def test_texts_of_unequal_budgets_grow_together():
    drafter = Table(3, 0, [0, 1, 2])
    asked = [replace(request([1, 2], gamma), depth=gamma) for gamma in (1, 5, 9)]
    together = best_first.best_first(drafter, asked)
    assert together == [best_first.best_first(drafter, [each])[0] for each in asked]
    assert [len(draft.tokens) for draft in together] == [1, 5, 9]


@pytest.mark.parametrize(
    "make",
    [
        lambda model: SmallerModel(toy(9, depth=1)),
        lambda model: FirstLayers(),
        lambda model: Eagle(random_head(model, reduced=9), confidence=0.0),
    ],
)
def test_down_the_most_probable_children_a_tree_is_the_greedy_chain(make):
    """So a row sees its ancestors, at their positions, and none of the rows that lie between."""
    model = toy(3)
    engine = Engine(model, drafter=make(model), rule=rules.tree, gamma=7, page_size=3)
    drafter, longest = engine.speculation.drafter, 0
    whole = drafter.propose

    def propose(requests):
        nonlocal longest
        trees = whole(requests)
        for each, tree in zip(requests, trees):
            if isinstance(drafter, SmallerModel):
                each.text.drafter_state = len(each.text.tokens) - 1  # it reads the last token again
            (chain,) = whole([replace(each, depth=None)])
            if isinstance(drafter, SmallerModel):
                each.text.drafter_state = len(each.text.tokens)
            first = max((path for path in paths(tree) if list(path) == chain.tokens[: len(path)]), key=len, default=())
            children = {parent: tree.tokens[i] for i, parent in reversed(list(enumerate(tree.parents)))}
            nodes = {path: i for i, path in enumerate(paths(tree))}
            node, path = -1, ()
            while node in children:
                path = (*path, children[node])
                node = nodes[path]
            assert path == tuple(chain.tokens[: len(path)]) == first
            longest = max(longest, len(path) * (len(path) < len(tree.tokens)))
        return trees

    drafter.propose = propose
    engine.generate([[1, 2, 3, 4], [5, 6]], SamplingParams(max_new_tokens=14, ignore_eos=True))
    assert longest > 1


@given(TEXT, st.integers(1, 3), st.integers(0, 2), st.integers(1, 9), st.integers(1, 4))
def test_prompt_lookup_merges_what_followed(tokens, least, more, gamma, depth):
    (draft,) = PromptLookup(least + more, least).propose([replace(request(tokens, gamma), depth=depth)])
    check_draft(draft, gamma, 1 << 25, depth)
    for n in range(min(least + more, len(tokens) - 1), least - 1, -1):
        starts = [i for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]][::-1][:OCCURRENCES]
        if starts:
            break
    else:
        assert draft.tokens == []
        return
    votes = {}
    for start in starts:
        text = list(tokens)
        for i in range(start + n, start + n + depth):
            text.append(text[i])
        for level in range(1, depth + 1):
            path = tuple(text[len(tokens) : len(tokens) + level])
            votes[path] = votes.get(path, 0) + WEIGHT**level
    got = [votes[path] for path in paths(draft)]
    assert got == pytest.approx(sorted(votes.values(), reverse=True)[:gamma])


def test_behind_broken_numbers_nothing_is_judged():
    tree = DraftTree.of(Draft([0, 1, 0], parents=[-1, 0, 1]), [True, False, True, True])
    assert tree.tokens == {(): [0], (0,): []}
    assert tree.kept([0, 1]) == ([0], [0])  # the draft is kept; what follows it is not known
    assert tree.kept([1]) == ([1], [])


@given(st.integers(1, 3), st.integers(1, 10), st.integers(0, 99), st.floats(0.01, 0.9))
def test_a_tree_leaves_out_what_is_improbable(vocab, gamma, seed, least):
    """It is the tree without that bound, less the nodes below it. The smaller of two budgets has its first nodes."""
    drafter = Table(vocab, seed, [7, 3, 5][:vocab])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_first, "SHARE", 1.0)
        asked = [replace(request([1, 2], each), depth=4) for each in (gamma, gamma + 3)]
        (whole,), (larger,) = (best_first.best_first(drafter, [each]) for each in asked)
        (dear,) = best_first.best_first(drafter, [replace(asked[0], least=least)])
        patch.setattr(best_first, "ROUND", 0.0)
        (pruned,) = best_first.best_first(drafter, [replace(asked[0], least=least)])
    nodes = every_node(drafter, 4)
    assert paths(pruned) == [path for path in paths(whole) if nodes[path] >= np.log(least) - 1e-6]
    assert paths(larger)[:gamma] == paths(whole)
    for path in {*paths(pruned)} - {*paths(dear)}:  # its parent was not worth a round
        assert nodes[path[:-1]] < np.log(best_first.ROUND * least) or path[:-1] not in paths(dear)


def test_texts_that_ask_for_chains_and_for_trees_are_drafted_together(monkeypatch):
    monkeypatch.setattr(Choice, "best", lambda self, texts, wanted, lefts, most: (min(3, *wanted), 1))
    engine = Engine(toy(3), drafter=SmallerModel(toy(9, depth=1)), page_size=3)
    fixed = [engine.add([1, 2, 3, 4], SamplingParams(max_new_tokens=9, ignore_eos=True, gamma=g)) for g in (None, 3)]
    drafter, shapes = engine.speculation.drafter, set()
    propose = drafter.propose

    def proposed(requests):
        drafts = propose(requests)
        shapes.update((each.depth is None, draft.parents is None) for each, draft in zip(requests, drafts))
        return drafts

    drafter.propose = proposed
    while engine.requests:
        engine.step()
    assert shapes == {(True, True), (False, False)}
    assert fixed[0].output == fixed[1].output == naive.generate(engine.model, [1, 2, 3, 4], fixed[0].params)


@pytest.mark.parametrize(
    "make", [lambda model: SmallerModel(model), lambda model: FirstLayers()], ids=["target", "first"]
)
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.6, "min_p": 0.05}], ids=str)
def test_a_tree_of_sampled_text_follows_the_noise_of_the_draws(monkeypatch, make, filters):
    """A drafter with the target's very logits holds most probable what the target will draw."""
    monkeypatch.setattr(Choice, "best", lambda self, texts, wanted, lefts, most: (min(5, *wanted), 1))
    model = toy(3)
    engine = Engine(model, drafter=make(model), page_size=3)
    params = [SamplingParams(max_new_tokens=24, temperature=t, seed=7, ignore_eos=True, **filters) for t in (0.9, 2.0)]
    texts = [engine.add([1, 2, 3, 4], each) for each in params]
    drafter, guesses = engine.speculation.drafter, []
    propose = drafter.propose

    def proposed(requests):
        drafts = propose(requests)
        for each, draft in zip(requests, drafts):
            first = {parent: i for i, parent in reversed(list(enumerate(draft.parents)))}
            node, path = -1, []
            while node in first:
                node = first[node]
                path.append(draft.tokens[node])
            guesses.append((each.text, len(each.text.tokens), path))
        return drafts

    drafter.propose = proposed
    while engine.requests:
        engine.step()
    for text, each in zip(texts, params):
        assert text.output == naive.generate(model, [1, 2, 3, 4], each)
    right = [text.tokens[at : at + len(path)].tolist() == path for text, at, path in guesses]
    assert max(len(path) for _, _, path in guesses) > 2
    assert all(right) if isinstance(drafter, SmallerModel) else 0 < sum(right) < len(right)
