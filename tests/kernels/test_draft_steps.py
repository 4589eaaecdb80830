"""Speculative steps on the device, against the functions that they stand for: `PromptLookup` and `rules.coupled`."""

from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt.cache.paged_kernel import PagedKernelCache
from inference_opt.kernels.draft_steps import DraftSteps
from inference_opt.kernels.letter import Letter
from inference_opt.kernels.lookup import REVIEWED
from inference_opt.kernels.plan import Piece
from inference_opt.kernels.shape import Shape
from inference_opt.kernels.steps import kind_of
from inference_opt.sampling import CommonNoise, SamplingParams, probabilities
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.drafter import Draft, DraftRequest
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.speculative.tree import DraftTree

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONTEXT, PAGE, STEPS = 2100, 4, 2
TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=3)
LONG = st.builds(
    lambda few, n: (few * n)[:2000], st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 600)
)


def begun(texts, limits, most, gamma, params=None):
    steps = DraftSteps(STEPS, 4, 6, CONTEXT, DEVICE)
    params = params or [SamplingParams(seed=0)] * len(texts)
    with Letter(DEVICE) as letter:
        steps.begin(letter, [array("i", text) for text in texts], limits, most, params, gamma)
    return steps


def sent(letter, steps):
    """How many tokens of texts are in a letter."""
    return sum(own.size for into, own in letter.parts if into.dtype == torch.int32 and into.ndim == 1)


RUNS = st.lists(st.tuples(st.sampled_from(["drafts", "plain", "broken", "elsewhere", "nobody"]), st.integers(0, 9)))


@settings(max_examples=40)
@given(TEXTS, RUNS)
def test_rows_hold_the_texts_and_only_what_they_lack_is_sent(texts, runs):
    """Texts grow by runs and elsewhere, end, change places; a run may fail when its letter was or was not sent."""
    steps, live = DraftSteps(STEPS, 4, 6, CONTEXT, DEVICE), [array("i", text) for text in texts]
    held = []  # what no letter needs to say
    for kind, number in runs:
        n, new = len(live), [(number + i) % 5 for i in range(len(live))]
        if kind == "elsewhere":  # one ends, the last begins anew, all grow
            live = [*live[1:], array("i", [number])]
            live = [text + array("i", [number]) for text in live]
            continue
        if kind == "nobody":
            with Letter(DEVICE) as letter:
                steps.begin(letter, [], [], [], [], 1)
            held = []
            continue
        emitted = [[(number * i + j) % 3 for j in range(count)] for i, count in enumerate(new)]
        if kind == "plain":
            chosen = torch.full((5, 4), 7)
            for row, own in enumerate(emitted):
                chosen[: len(own), row] = torch.tensor(own, dtype=torch.int64)
            steps.append(live, new, chosen.to(DEVICE))
        else:
            with Letter(DEVICE) as letter:
                steps.begin(letter, live, [999] * n, [1] * n, [SamplingParams(seed=0)] * n, 1)
                rows = zip(live, [*held, *[None] * n])
                assert sent(letter, steps) == sum(
                    len(text) - len(own) if own is not None and text[: len(own)] == own else len(text)
                    for text, own in rows
                )
                if kind == "broken" and number % 2:
                    letter.parts = []  # as if an error had ended the block
            if kind == "broken":
                held = []
                continue
            for row, (text, own) in enumerate(zip(live, emitted)):
                steps.text[row, len(text) : len(text) + len(own)] = torch.tensor(own, device=DEVICE)
        for row, text in enumerate(live):
            assert steps.text[row, : len(text)].tolist() == text.tolist()
        steps.keep(live, emitted)
        held = [text + array("i", own) for text, own in zip(live, emitted)]
        for text, own in zip(live, emitted):
            text.extend(own[: len(own) - (number == 9)])  # where the last is lost, it comes anew


def view(text):
    rest = {"computed": 0, "params": SamplingParams(), "drafter_state": None, "table": []}
    return SimpleNamespace(tokens=array("i", text), **rest)


@given(
    st.one_of(TEXTS, st.lists(LONG, min_size=1, max_size=2)), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3)
)
def test_a_draft_is_that_of_prompt_lookup(texts, gamma, min_ngram, more):
    drafter, steps = (
        PromptLookup(min_ngram + more, min_ngram),
        begun(texts, [99] * len(texts), [gamma] * len(texts), gamma),
    )
    drafter.guess(steps, 4, gamma)
    right = drafter.propose([DraftRequest(view(text), gamma, CommonNoise(0, 0)) for text in texts])
    for row, draft in enumerate(right):
        assert steps.drafted[row] == len(draft.tokens)
        if draft.tokens:
            assert steps.draft.flatten()[row * gamma :][:gamma].tolist() == draft.tokens
    assert not steps.drafted[len(texts) :].any()


def steps_over(text, begin, length, drafter):
    """Steps that lead from `begin` to the end, where each drafts so many tokens behind what is known by then."""
    steps = 0.0
    while begin < len(text):
        (draft,) = (
            drafter.propose([DraftRequest(view(text[:begin]), length, CommonNoise(0, 0))]) if length else [Draft()]
        )
        came = text[begin:]
        right = next((i for i, (a, b) in enumerate(zip(draft.tokens, came)) if a != b), len(draft.tokens))
        steps += min(len(came) / (length + 1), 1) if right >= len(came) else 1
        begin += right + 1
    return steps


@settings(max_examples=8)
@given(TEXTS, st.lists(st.integers(1, 80), min_size=3, max_size=3), st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_a_review_is_the_steps_that_drafts_of_each_length_would_have_taken(texts, new, min_ngram, more, plain):
    """After drafts or without, over the latest tokens, with one drafter."""
    lengths, drafter = (0, 1, 3, 5), PromptLookup(min_ngram + more, min_ngram)
    steps = DraftSteps(STEPS, 4, 6, CONTEXT, DEVICE, lengths)
    longest, new = max(new), new[: len(texts)]
    whole = [text + [(i * i + i // 7) % 3 for i in range(longest)] for text in texts]
    known = [array("i", text) for text in texts]
    if plain:
        chosen = torch.zeros(longest, 4, dtype=torch.int64)
        for row, (text, own) in enumerate(zip(whole, texts)):
            chosen[:, row] = torch.tensor(text[len(own) :])
        steps.append(known, new, chosen.to(DEVICE))
    else:
        params = [SamplingParams(seed=0)] * len(texts)
        with Letter(DEVICE) as letter:
            steps.begin(letter, known, [999] * len(texts), [1] * len(texts), params, 1)
        for row, text in enumerate(whole):
            steps.text[row, : len(text)] = torch.tensor(text, device=DEVICE)
        steps.known[: len(texts)] += torch.tensor(new, device=DEVICE)
    taken = drafter.review(steps, len(texts)).tolist()
    for text, own, count, row in zip(whole, texts, new, taken):
        text, begin = text[: len(own) + count], max(len(own), len(own) + count - REVIEWED)
        assert row == pytest.approx([steps_over(text, begin, length, drafter) for length in lengths], rel=1e-5)


SHAPES = st.builds(Shape, st.integers(1, 6), st.booleans())


@given(TEXTS, SHAPES, st.lists(st.integers(0, 7), min_size=3, max_size=3), st.data())
def test_rows_are_the_last_token_and_the_drafts_as_far_as_there_is_room(texts, shape, left, data):
    gamma = shape.gamma
    limits = [len(text) + more for text, more in zip(texts, left)]
    most = data.draw(st.lists(st.integers(0, gamma), min_size=len(texts), max_size=len(texts)))
    steps = begun(texts, limits, most, gamma)
    drafts = torch.randint(9, (4, gamma), dtype=torch.int32)
    steps.draft.flatten()[: drafts.numel()] = drafts.flatten().to(DEVICE)
    steps.drafted[:] = gamma
    table = torch.arange(100, 100 + 4 * 20, dtype=torch.int32, device=DEVICE).view(4, 20)
    tokens, positions, slots = (each.view(4, gamma + 1).tolist() for each in steps.feed(4, shape, table, PAGE))
    pieces = torch.zeros(len(texts) + 2, len(Piece._fields), dtype=torch.int32, device=DEVICE)
    pieces[: len(texts), 0] = torch.arange(len(texts))
    pieces[: len(texts), 6] = 50  # the end of its keys; the others have none
    steps.move(pieces)
    for row in range(4):
        known = len(texts[row]) if row < len(texts) else 0
        count = min(most[row], limits[row] - known - 1) + 1 if row < len(texts) and limits[row] > known else 0
        at = range(known - 1, known - 1 + count)
        right = [texts[row][-1], *drafts[row].tolist()][:count] if count else []
        assert steps.queries[row] == count
        assert tokens[row] == right + [0] * (gamma + 1 - count)
        assert positions[row][:count] == [known - 1 + depth for depth in shape.depths[:count]]
        own = [int(table[row, p // PAGE]) * PAGE + p % PAGE for p in at]
        assert slots[row] == own + [-1] * (gamma + 1 - count), "a row that does not count writes nowhere"
        if row < len(texts):
            assert Piece(*pieces[row].tolist())[2:4] == (count, known - 1)
    assert not pieces[len(texts) :].any()


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 3.0]),
    top_k=st.sampled_from([0, 2]),
    seed=st.integers(0, 2**63),
    logprobs=st.booleans(),
)


@settings(max_examples=12)
@given(TEXTS, SHAPES, st.lists(PARAMS, min_size=3, max_size=3), st.integers(0, 99), st.booleans())
def test_what_is_committed_is_what_the_rule_emits(texts, shape, params, seed, broken):
    """Steps of logits that do not depend on the text; drafts that are often right."""
    gamma, parents = shape.gamma, shape.parents
    params, vocab, kind = params[: len(texts)], 5, kind_of(params[: len(texts)], 5)
    limits = [len(text) + 4 + i for i, text in enumerate(texts)]
    steps, g = begun(texts, limits, [gamma] * len(texts), gamma, params), torch.Generator().manual_seed(seed)
    texts, expected = [list(text) for text in texts], [[] for _ in texts]
    table, rows = torch.zeros(4, 20, dtype=torch.int32, device=DEVICE), len(texts)
    for now in range(STEPS):
        logits = torch.randn(rows, gamma + 1, vocab, generator=g)
        if broken:
            logits[0, gamma // 2, 1] = torch.nan
        drafts = torch.zeros(rows, gamma, dtype=torch.int32)
        paths = []
        for row, (text, own) in enumerate(zip(texts, params)):
            target = probabilities(logits[row].nan_to_num(), own).numpy()
            noise = CommonNoise(own.seed, len(text))
            draws = [noise.choose(p, depth) for p, depth in zip(target, shape.depths)]
            # The best child of a node is the target's own draw there, or (seed % 3 = 0) the second best is.
            for i, parent in enumerate(parents):
                rank = parents[:i].count(parent)
                drafts[row, i] = (draws[parent + 1] + rank + (seed % 3 == 0) * (vocab - 1)) % vocab
            left = limits[row] - len(text)
            judged = max(min(gamma, left - 1), 0)
            sound = [not each.isnan().any() for each in logits[row]]
            kept, bits, path = [], [], [0]
            if left > 0 and sound[0]:
                tree = DraftTree.of(Draft(drafts[row, :judged].tolist(), parents=parents[:judged]), sound)
                behind = tree.target(lambda i, target=target: target[i])
                kept, bits = tree.kept(coupled_tree(behind, {}, tree.tokens, noise))
                path += [node + 1 for node in bits]
            expected[row].append((judged if left > 0 else 0, len(bits), len(kept), sum(1 << node for node in bits)))
            text += kept
            paths.append(path[: len(kept)])
            if left > 0 and not kept:
                limits[row] = len(text)  # it goes no further
        steps.draft.flatten()[: drafts.numel()] = drafts.flatten().to(DEVICE)
        steps.drafted[:] = gamma
        steps.feed(rows, shape, table, PAGE)
        steps.end(logits.flatten(0, 1).to(DEVICE), kind, shape)
        assert steps.known[: len(texts)].tolist() == [len(text) for text in texts]
        assert steps.notes[now, :, : len(texts)].T.tolist() == [list(each[now]) for each in expected]
        assert [steps.path[row, : len(path)].tolist() for row, path in enumerate(paths)] == paths
    for row, text in enumerate(texts):
        assert steps.text[row, : len(text)].tolist() == text
        count = sum(each[2] for each in expected[row])
        assert steps.emitted[row, :count].tolist() == text[len(text) - count :]


@settings(max_examples=8)
@given(
    st.integers(1, 5), st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.lists(st.lists(st.integers(1, 6), max_size=4, unique=True).map(sorted), min_size=2, max_size=2),
    st.integers(0, 99),
)  # fmt: skip
def test_what_is_kept_of_a_tree_lies_in_consecutive_slots_of_all_layers(page, known, paths, seed):
    """As `PagedCache.keep_paths` moves it."""
    g, width = torch.Generator().manual_seed(seed), -(-16 // page)
    tables = torch.randperm(2 * width, generator=g).view(2, width)
    mine, its = (PagedKernelCache(3, 1, 6, 2 * width, page, torch.float32, DEVICE) for _ in range(2))
    layers = [*mine.keys, *mine.values]
    for a, b in zip(layers, (*its.keys, *its.values)):
        a.copy_(torch.randn(a.shape, generator=g))
        b.copy_(a)
    steps = DraftSteps(1, 4, 6, 40, DEVICE)
    for row, (path, length) in enumerate(zip(paths, known)):
        steps.path[row, : len(path) + 1] = torch.tensor([0, *path], dtype=torch.int32)
        steps.notes[0, 2, row], steps.known[row] = len(path) + 1, length + len(path) + 1
    steps.step.fill_(1)
    apart = torch.tensor([each.data_ptr() - layers[0].data_ptr() for each in layers], device=DEVICE) // 4
    steps.keep_paths(2, layers, apart, tables.int().to(DEVICE))
    its.keep_paths(tables.tolist(), [length - 1 for length in known], [[0, *path] for path in paths])
    for table, path, length in zip(tables, paths, known):
        for a, b in zip(layers, (*its.keys, *its.values)):
            end = length + len(path)
            assert torch.equal(a[table].flatten(0, 1)[:end], b[table].flatten(0, 1)[:end])
