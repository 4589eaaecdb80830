"""Chapter 07: exactness."""

import copy
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from inference_opt.explain.exercises.chapters import chapter_06, exact
from inference_opt.explain.exercises.exercise import Broken, Predict, Property, Question, Repair, Write, expect
from inference_opt.explain.record import record
from inference_opt.explain.views.rules import Verdict
from inference_opt.lab.exactness import mutants, proposals
from inference_opt.lab.exactness.exact import step_law
from inference_opt.sampling.noise import CommonNoise
from inference_opt.speculative import rules
from inference_opt.trace import Trace, recording

# Several candidates for one place

NONE = "no candidate"


def tries_in_turn(p: list[int], draft: list[list[int]], candidates: list[int], tried: int) -> None:
    """Which candidate wins, how often, and what is left of p where none does."""
    exact.check_drafts([p] * (len(draft) + 1), draft, candidates)
    target, qs = exact.fractions([p])[0], exact.fractions(draft)
    right: dict[Any, Fraction] = {}
    left, still = list(target), Fraction(1)
    for j, (x, q) in enumerate(zip(candidates, qs)):
        kept = min(Fraction(1), left[x] / q[x])
        right[j] = still * kept
        still *= 1 - kept
        if not still:
            break
        owed = exact.excess(left, q)
        left = [w / sum(owed) for w in owed]
    if still:
        right[NONE] = still

    def call(draws: Any) -> Any:
        draws.allowed = range(tried, tried + len(candidates))
        given = target.copy()
        came = rules.try_all(given, copy.deepcopy(qs), list(candidates), draws, tried)
        if not isinstance(came, tuple) or len(came) != 2:
            raise Broken("two things are returned: the winner's index or None, and what is left of p", came)
        winner, rest = came
        if not np.array_equal(given, target):
            raise Broken("p must stay as it was", given.astype(float), target.astype(float))
        if winner is None:
            exact.check_weights(rest)
            shares = np.array(rest, dtype=float) / float(sum(rest))
            if not np.allclose(shares, np.array(left, dtype=float), rtol=exact.ROUNDING, atol=exact.ROUNDING):
                raise Broken("where no candidate wins, this is what they have left of p", shares, np.array(left, float))
            return NONE
        if not isinstance(winner, int | np.integer) or not 0 <= winner < len(candidates):
            raise Broken("the winner is the index of a candidate, or None", winner)
        return int(winner)

    law, turns = exact.law_of(call)
    worst = exact.furthest(law, right)
    if worst is None:
        return
    if recording():
        verdict = Verdict(rules.multi_draft, [target] * (len(qs) + 1), qs, list(candidates))
        exact.replay(verdict, turns[worst], lambda rng: rules.multi_draft(verdict.target, qs, list(candidates), rng))
    won = worst if worst == NONE else f"candidate {worst}, token {candidates[worst]},"
    sentence = f"of the candidates {list(candidates)}, {won} wins too often"
    raise Broken(sentence, exact.Odds(law[worst]), exact.Odds(right.get(worst, 0)))


def tries_floats(p: list[int], draft: list[list[int]], candidates: list[int], numbers: list[float]) -> None:
    """No winner that p excludes, and always something left to draw from."""
    exact.check_drafts([p] * (len(draft) + 1), draft, candidates)
    target, qs = exact.floats([p])[0], exact.floats(draft)
    winner, rest = rules.try_all(target, qs, list(candidates), exact.Scripted(numbers, 0), 0)
    if winner is None:
        exact.check_weights(rest)
    elif not target[candidates[winner]] > 0:
        raise Broken(f"token {candidates[winner]} wins, and its p is 0", winner)
    expect(target.tolist(), exact.floats([p])[0].tolist(), "p must stay as it was")


@st.composite
def siblings(draw: Any, most: int = 3) -> dict[str, Any]:
    """p, and candidates, each drawn from a row of weights of its own."""
    vocab = draw(st.integers(2, 3))
    p = draw(exact.weights(vocab))
    draft = draw(st.lists(exact.weights(vocab), max_size=most))
    return {"p": p, "draft": draft, "candidates": [draw(st.sampled_from(np.flatnonzero(q).tolist())) for q in draft]}


ONE_CANDIDATE = {"p": [1, 3], "draft": [[3, 1]], "candidates": [0]}
TWO_CANDIDATES = {"p": [1, 2, 3], "draft": [[3, 2, 1], [0, 2, 1]], "candidates": [0, 1]}
NEVER_SAID = {"p": [0, 1], "draft": [[1, 1]], "candidates": [0]}

TRIES = Property(
    "each candidate wins as often as what the earlier ones left of p says",
    st.tuples(siblings(), st.integers(0, 2)).map(lambda drawn: drawn[0] | {"tried": drawn[1]}),
    tries_in_turn,
    (
        {"p": [1, 3], "draft": [], "candidates": [], "tried": 0},
        ONE_CANDIDATE | {"tried": 0},
        TWO_CANDIDATES | {"tried": 0},
        TWO_CANDIDATES | {"tried": 2},
        {"p": [1, 4, 5], "draft": [[8, 1, 1], [1, 8, 1]], "candidates": [0, 1], "tried": 1},
        {"p": [1, 1, 2], "draft": [[2, 1, 1], [2, 1, 1]], "candidates": [0, 0], "tried": 0},
        {"p": [1, 1, 6], "draft": [[6, 1, 1], [1, 1, 2], [1, 1, 1]], "candidates": [0, 0, 2], "tried": 0},
    ),
)
TRIES_FLOATS = Property(
    "on floats, too, only what the target can say wins",
    st.tuples(siblings(2), exact.NUMBERS).map(lambda drawn: drawn[0] | {"numbers": drawn[1]}),
    tries_floats,
    (NEVER_SAID | {"numbers": [0.0]},),
)

# The drafter's side of it


def candidates_follow_the_law(p: list[int], q: list[int], count: int) -> None:
    """`multi_draft`, given these candidates without replacement, emits a token with the target's law."""
    target, drafter = exact.fractions([p, q])

    behind, probs, tokens = list[Any](), list[Any](), list[int]()  # what the rule is given, at every path anew

    def first(draws: Any) -> int:
        probs[:], tokens[:] = proposals._candidates(drafter.copy(), count, draws.branching.choose, False)
        behind[:] = [target] * (len(tokens) + 1)
        return rules.multi_draft(behind, probs, tokens, draws)[0]

    law, turns = exact.law_of(first)
    worst = exact.furthest(law, dict(enumerate(target)))
    if worst is None:
        return
    if recording():
        exact.replay(Verdict(rules.multi_draft, behind, probs, tokens), turns[worst], first)
    raise Broken(f"token {worst} comes too often", exact.Odds(law[worst]), exact.Odds(target[worst]))


def candidates_are_reported(q: list[int], count: int, replacement: bool, picks: list[int]) -> None:
    """What each was drawn from, and what it is said to have been drawn from."""
    given = exact.fractions([q])[0]
    left, right, tokens, asked = given.copy(), list[Any](), list[int](), list[Any]()

    def choose(weights: Any, i: int) -> int:
        exact.check_weights(weights)
        if len(asked) == len(right):
            raise Broken("a candidate more is drawn than there should be", len(asked) + 1, len(right))
        asked.append(weights)
        return tokens[len(asked) - 1]

    while len(tokens) < count and left.any():
        right.append(left / left.sum())
        possible = np.flatnonzero(left)
        tokens.append(int(possible[picks[len(tokens) % len(picks)] % len(possible)]))
        if not replacement:
            left[tokens[-1]] = Fraction(0)
    drafter = given.copy()
    probs, came = proposals._candidates(drafter, count, choose, replacement)
    expect(list(came), tokens, "the tokens that were drawn, in order")
    if not np.array_equal(drafter, given):
        raise Broken("q must stay as it was", drafter.astype(float), given.astype(float))
    sentences = ("candidate {j} is drawn from what q has without the earlier ones",
                 "candidate {j} is reported with the distribution that it was drawn from")  # fmt: skip
    for sentence, each in zip(sentences, (asked, probs)):
        expect(len(each), len(right), "there is a distribution for each candidate")
        for j, (a, b) in enumerate(zip(each, right)):
            shares = np.array(a, dtype=float) / (float(sum(a)) if each is asked else 1)
            if not np.allclose(shares, b.astype(float), rtol=exact.ROUNDING, atol=exact.ROUNDING):
                raise Broken(sentence.format(j=j), shares, b.astype(float))


OF_THE_TARGET = Property(
    "with several candidates, too, the output has the target's distribution",
    st.integers(2, 3).flatmap(
        lambda vocab: st.fixed_dictionaries({
            "p": exact.weights(vocab), "q": exact.weights(vocab), "count": st.integers(0, 3),
        })
    ),
    candidates_follow_the_law,
    ({"p": [1, 1], "q": [1, 3], "count": 2}, {"p": [0, 1, 2], "q": [1, 0, 1], "count": 2}),
)  # fmt: skip
REPORTED = Property(
    "each candidate is reported with what it was drawn from",
    st.fixed_dictionaries({
        "q": st.integers(1, 4).flatmap(exact.weights), "count": st.integers(0, 4), "replacement": st.booleans(),
        "picks": st.lists(st.integers(0, 3), min_size=1, max_size=4),
    }),
    candidates_are_reported,
    (
        {"q": [1, 2, 1], "count": 2, "replacement": False, "picks": [0]},
        {"q": [1, 2, 1], "count": 3, "replacement": True, "picks": [0]},
        {"q": [1, 1, 0], "count": 3, "replacement": False, "picks": [1]},
    ),
)  # fmt: skip

# Coupled


class Race:
    """Noise that is settled beforehand: at place i, token x arrives at noise[i][x] / weight, and the first wins."""

    def __init__(self, noise: Sequence[Sequence[int]]) -> None:
        self.noise = noise

    def choose(self, weights: Any, i: int) -> int:
        """The winner."""
        if i not in range(len(self.noise)):
            places = list(range(len(self.noise)))
            raise Broken(f"rng.choose is asked for draw {i}; place i of the step has draw i", i, places)
        exact.check_weights(weights)
        return min((x for x, w in enumerate(weights) if w > 0), key=lambda x: self.noise[i][x] / weights[x])

    def uniform(self, i: int) -> float:
        """There is none."""
        raise Broken("rng.uniform is not needed here: the draws and the draft decide everything", f"rng.uniform({i})")


def draws_the_targets_own(target: list[list[int]], tokens: list[int], noise: list[list[int]]) -> None:
    """Place by place the winner of the race under p, as far as the draft agrees."""
    if not len(target) == len(noise) == len(tokens) + 1:
        raise ValueError(f"{len(tokens)} drafts need one row more of target and of noise")
    ps = exact.floats(target)
    right = []
    for i in range(len(target)):
        arrivals = {x: noise[i][x] / w for x, w in enumerate(ps[i]) if w > 0}
        right.append(min(arrivals, key=lambda x: arrivals[x]))
        if i == len(tokens) or right[-1] != tokens[i]:
            break
    rng: Any = Race(noise)
    if recording():
        rng = exact.Telling(Verdict(rules.coupled, ps, [], list(tokens)), rng)
    came = rules.coupled(ps, [], list(tokens), rng)
    if not isinstance(came, list):
        raise Broken("what is emitted is a list of tokens", came, right)
    expect(
        list(map(int, came)), right, "each token is the target's own draw; the first that the draft misses is the last"
    )


def same_text_without_drafts(seed: int, gamma: int, target: list[list[int]], draft: list[list[int]]) -> None:
    """Six tokens, decoded with drafts and without, by the package's own noise. Row x: behind the token x."""
    ps, qs = exact.floats(target), exact.floats(draft)
    text = [0]
    while len(text) <= 6:
        noise = CommonNoise(seed, len(text))
        drafts: list[int] = []
        for i in range(gamma):
            drafts.append(noise.choose(qs[[text[-1], *drafts][-1]], i))
        behind = [ps[x] for x in [text[-1], *drafts]]
        text += rules.coupled(behind, [], drafts, noise)
    plain = [0]
    while len(plain) <= 6:
        plain.append(CommonNoise(seed, len(plain)).choose(ps[plain[-1]], 0))
    expect(list(map(int, text[1:7])), plain[1:], "with drafts and without, the same seed gives the same text")


@st.composite
def races(draw: Any) -> dict[str, Any]:
    """Target, drafts and noise of a step."""
    vocab, gamma = draw(st.integers(2, 3)), draw(st.integers(0, 3))
    arrival = st.lists(st.integers(1, 9), min_size=vocab, max_size=vocab)
    return {
        "target": [draw(exact.weights(vocab)) for _ in range(gamma + 1)],
        "tokens": [draw(st.integers(0, vocab - 1)) for _ in range(gamma)],
        "noise": [draw(arrival) for _ in range(gamma + 1)],
    }


COUPLED = Property(
    "what is emitted is the target's own text by this noise",
    races(),
    draws_the_targets_own,
    (
        {"target": [[1, 1]], "tokens": [], "noise": [[2, 1]]},
        {"target": [[1, 1], [1, 1]], "tokens": [0], "noise": [[2, 1], [1, 2]]},
        {"target": [[1, 1], [1, 1]], "tokens": [1], "noise": [[2, 1], [1, 2]]},
        {"target": [[1, 1], [1, 1], [1, 1]], "tokens": [1, 1], "noise": [[2, 1], [1, 2], [2, 1]]},
    ),
)
SAME_TEXT = Property(
    "no drafter changes the text",
    st.fixed_dictionaries({
        "seed": st.integers(0, 999), "gamma": st.integers(0, 3),
        "target": st.lists(exact.weights(3), min_size=3, max_size=3),
        "draft": st.lists(exact.weights(3), min_size=3, max_size=3),
    }),
    same_text_without_drafts,
)  # fmt: skip

# Whole texts


def texts_have_the_targets_law(target: list[list[int]], draft: list[list[int]]) -> None:
    """All drafts and all outcomes of block verification."""
    if len(target) != len(draft) + 1 or len({len(row) for row in [*target, *draft]}) != 1:
        raise ValueError("target needs one row more than draft, all of the same length")
    exact.gives_the_target(rules.block, exact.fractions(target), exact.fractions(draft))


@st.composite
def models(draw: Any) -> dict[str, Any]:
    """The target's and the drafter's rows, place by place."""
    vocab, gamma = draw(st.sampled_from([(3, 2), (2, 2), (2, 1), (2, 0), (3, 1)]))
    return {
        "target": [draw(exact.weights(vocab)) for _ in range(gamma + 1)],
        "draft": [draw(exact.weights(vocab)) for _ in range(gamma)],
    }


UNSCALED = {"target": [[3, 3, 2], [4, 3, 1], [1, 1, 1]], "draft": [[4, 2, 2], [1, 1, 6]]}
LAW = Property(
    "a step, continued by the target, gives texts with the target's distribution",
    models(),
    texts_have_the_targets_law,
    (UNSCALED,),
)

# The law of rules that are wrong

EVEN, SKEWED = (Fraction(1, 2), Fraction(1, 2)), (Fraction(3, 4), Fraction(1, 4))


def biased() -> tuple[dict[str, float], Trace]:
    """What a right rule and three wrong ones emit."""

    def law(rule: Any, gamma: int) -> dict[tuple[int, ...], Fraction]:
        return step_law(lambda _: EVEN, lambda _: SKEWED, gamma, rule)

    def first(rule: Any) -> float:
        return float(sum(w for emitted, w in law(rule, 1).items() if emitted[0] == 0))

    def both(rule: Any) -> float:
        return float(sum(w for emitted, w in law(rule, 2).items() if len(emitted) == 3))

    with record("a rejected draft is replaced by a draw from p", only="law.") as trace:
        no_residual = first(mutants.no_residual)
    return {
        "right": first(rules.token_wise),
        "no_residual": no_residual,
        "lenient": first(mutants.lenient),
        "both": both(rules.token_wise),
        "one_number": both(mutants.one_uniform),
    }, trace


ROWS = """
        In a witness and in a counterexample, rows of `target` and `draft` are whole numbers, which the judge divides by
        their sum: [3, 1] is the distribution (3/4, 1/4). Of γ drafts, `target` has γ + 1 rows and `draft` γ.
"""

EXERCISES: tuple[Any, ...] = (
    Write(
        "07.coupled",
        "draw with the drafter's noise",
        """
        Drafter and target draw with the same noise: `rng.choose(weights, i)` lets all tokens race, and place i of the
        step has draw i. So they often draw the same token. `tokens[i]` is what the drafter drew at place i; `target[i]`
        is the target's distribution there. `draft` is not to be read.

        Every token that is emitted must be the target's own draw at its place, after the tokens before it. The draft
        decides only how many tokens this step can emit: as many as possible.
        """,
        (
            "At which places is target[i] the distribution after the text that has been emitted?",
            "Draw from target[0] with draw 0. The token is emitted whatever the draft was. If it is the draft's, "
            "target[1] is right for the next place.",
            "For each i: append rng.choose(target[i], i); if it differs from tokens[i], return what there is. After "
            "the last draft append one more, from target[γ] with draw γ.",
        ),
        10,
        rules,
        "coupled",
        (COUPLED, SAME_TEXT),
    ),
    Write(
        "07.try_all",
        "try several candidates for one place",
        """
        Several tokens were drawn for the same place. `candidates[j]` was drawn from `draft[j]`, which already is its
        distribution given those before it. `p` is the target's. Try the candidates in turn. Return the index of the
        first that is accepted and p as it is then; or None and what is left of p after all of them.
        It may be multiplied by any number, and without candidates it is p.

        In the end the target's distribution must come out of a rule that emits the winner or, if there is none, draws
        from what is left. In a tree other nodes need random numbers, too. `tried` of them were used above this node:
        candidate j is judged by `rng.uniform(tried + j)`. Do not change `p`.

        In a counterexample p and the rows of `draft` are whole numbers, which the judge divides by their sum.
        """,
        (
            "One candidate is `token_wise`. After it is rejected, what does the target still owe? That is the target "
            "of the next candidate.",
            "After a rejection p becomes its residual. The residual does not sum to one, but the next comparison needs "
            "a distribution.",
            "For each j: if rng.uniform(tried + j) < ratio(p[x], q[x]), return j, p. Otherwise p = residual(p, q), and "
            "p = p / p.sum(). After the loop return None, p.",
        ),
        15,
        rules,
        "try_all",
        (TRIES, TRIES_FLOATS),
    ),
    Predict(
        "07.law",
        "how wrong are wrong rules?",
        """
        There are two tokens. The target says each with probability 1/2. The drafter says 0 with probability 3/4 and 1
        with probability 1/4, at every place. Say what the package computes when it follows every outcome.
        """,
        (
            "Draft 0 is accepted with probability 2/3, draft 1 always. A draft gets through with 3/4 in all.",
            "Add two ways in which 0 comes out: drafted and accepted; drafted, rejected, and drawn in its own place. "
            "With lenience ½ a draft is accepted with min(1, p / (q / 2)).",
            "Both drafts pass with one number u if u is below both ratios: with the smaller of 2/3 and 1, or 2/3 and "
            "2/3, or 1 and 1. Weigh them by the probability of the drafts.",
        ),
        10,
        {
            "right": Question(
                "One draft, judged by `token_wise`. With which probability is the first token that comes out a 0?",
                (
                    (0.75, "that is the drafter's distribution"),
                    (0.625, "what replaces a rejected 0 is drawn from (p − q)⁺: never a 0"),
                ),
            ),
            "no_residual": Question(
                "The same, but a rejected draft is replaced by a draw from p. With which probability is it a 0?",
                (
                    (0.5, "a rejected 0 comes back half of the time, and acceptance has let through 1/2 already"),
                    (0.75, "a rejected 0 comes back half of the time only"),
                    (0.875, "a draft is rejected with probability 1/4: 1/2 + 1/4 · 1/2"),
                ),
            ),
            "lenient": Question(
                "The right residual, but a draft is accepted twice as gladly: with min(1, 2 p / q). With which "
                "probability is it a 0?",
                (
                    (0.5, "2 p / q is above 1 for both tokens: nothing is ever rejected"),
                    (0.625, "nothing is ever rejected"),
                ),
            ),
            "both": Question(
                "Two drafts, judged by `token_wise`. With which probability are both kept?",
                ((0.75, "that is one draft"), (4 / 9, "a draft 1 is always kept"), (0.25, "each is kept with 3/4")),
            ),
            "one_number": Question(
                "Two drafts, but one random number judges both. With which probability are both kept?",
                (
                    (0.5625, "that is with two numbers; that the first draft passed says that the number is small"),
                    (0.75, "the number must be below the ratio of the second draft, too"),
                ),
            ),
        },
        biased,
    ),
    Repair(
        "07.zero",
        "a token that was forbidden",
        f"""
        A server samples with top-k: all but the k most probable tokens have p(x) = 0. In a hundred million tokens with
        this rule, a few were found that top-k had excluded. No statistical test of the rule had found anything.

        A witness has `target`, `draft` and `tokens`, and what the random numbers were: `numbers`, the i-th of which is
        `rng.uniform(i)`, each in [0, 1). `pick` says which of the tokens that can be drawn `rng.choose` returns, 0 for
        the first.
        {ROWS}
        """,
        (
            "The forbidden token was proposed by the drafter, q(x) > 0. What is p(x) / q(x)?",
            "A random number in [0, 1) can be 0, if seldom: one of 2²⁴ in float32.",
            "With u = 0 and p(x) / q(x) = 0, `u <= 0` holds. Accept only where u is strictly smaller.",
        ),
        10,
        rules,
        "token_wise",
        (
            chapter_06.on_floats("token_wise"),
            chapter_06.TOKEN_WISE,
            chapter_06.nearly_equal("token_wise"),
        ),
        (
            (
                "< ratio(p[x], q[x]):  # strictly: a token with p(x) = 0 is rejected, u = 0 included",
                "<= ratio(p[x], q[x]):",
            ),
        ),
        {"target": [[0, 1], [1, 1]], "draft": [[1, 1]], "tokens": [0], "numbers": [0.0], "pick": 0},
    ),
    Repair(
        "07.siblings",
        "candidates that were drawn from something else",
        """
        A drafter draws several candidates for one place, without replacement: no token twice. `try_all` judges them. It
        is right, and so are the tokens that the drafter draws. Yet with this function the texts are a little biased.

        `_candidates` draws up to `count` tokens with `choose(weights, i)` and returns two lists: for each candidate the
        distribution that it was drawn from, given those before it, and the token. It ends early when no token is left.
        With `replacement` tokens can come again. `q` stays as it was.

        A witness has weights `p` of the target and `q` of the drafter, whole numbers that the judge divides by their
        sum, and `count`.
        """,
        (
            "What does a rule know of the drafter? Only what it is told: look at `probs`.",
            "After token x was drawn and set aside, can x be drawn again? Which probability is reported for it?",
            "Each candidate must be reported with q / q.sum() of that moment, from which it was drawn. For a witness "
            "take three tokens and two candidates. Let p be 0 where q is large: then the first candidate is rejected.",
        ),
        15,
        proposals,
        "_candidates",
        (OF_THE_TARGET, REPORTED),
        (
            ("probs.append(q / q.sum())", "probs.append(probs[0] if probs else q / q.sum())"),
            ("choose(probs[-1], len(tokens))", "choose(q / q.sum(), len(tokens))"),
        ),
        {"p": [0, 1, 2], "q": [1, 0, 1], "count": 2},
    ),
    Repair(
        "07.biased",
        "a bias that no test noticed",
        f"""
        This block verification keeps as many drafts as it should. Its texts look right, and a test on 100,000 texts
        found no difference from the target's distribution. Yet it is biased.

        Find a target and a drafter for which the texts do not have the target's distribution. Both may differ from
        place to place; they do not depend on the tokens. (`step_law` in lab/exactness/exact.py computes exactly what
        a step emits. It may help you to search.)
        {ROWS}
        """,
        (
            "With one draft the rule is right. What is there with two drafts that there is not with one?",
            "The kept beginning is followed by a token from what the target has left there. Is that p, or w p? Two "
            "tokens are too few to see it, because then only one of them has an excess.",
            "The residual must be residual(w[accepted] * p, draft[accepted]). A witness: three tokens, two drafts, the "
            "first with p(x) a little below q(x), so that w is below 1; after it two tokens with different excess.",
        ),
        25,
        rules,
        "block",
        (
            LAW,
            chapter_06.BLOCK,
            chapter_06.on_floats("block"),
        ),
        (("residual(w[accepted] * p, draft[accepted])", "residual(p, draft[accepted])"),),
        UNSCALED,
    ),
)
