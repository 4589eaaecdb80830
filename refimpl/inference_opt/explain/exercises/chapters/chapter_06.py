"""Chapter 06: speculative decoding."""

import copy
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from inference_opt.explain.exercises.chapters import exact
from inference_opt.explain.exercises.exercise import (
    Broken,
    Predict,
    Property,
    Question,
    Write,
    expect,
    expect_close,
    expect_error,
)
from inference_opt.explain.record import record
from inference_opt.lab.exactness.exact import step_law
from inference_opt.speculative import cost, rules
from inference_opt.speculative.lookup import PromptLookup
from inference_opt.trace import Trace

# The residual


def is_what_p_has_in_excess(p: list[int], q: list[int], share: int) -> None:
    """On fractions exactly, on floats up to rounding; p and q stay as they are."""
    for kind, (a, b) in {"fractions": exact.fractions([p, q]), "floats": exact.floats([p, q])}.items():
        a = a / share
        before = copy.deepcopy((a, b))
        right = np.array([max(x - y, 0 * x) for x, y in zip(a, b)], dtype=a.dtype)
        came = rules.residual(a, b)
        if not (np.array_equal(a, before[0]) and np.array_equal(b, before[1])):
            raise Broken("p and q must stay as they were", [list(a), list(b)], [list(each) for each in before])
        if not isinstance(came, np.ndarray) or came.shape != a.shape:
            raise Broken("an array of p's shape is wanted", came, right)
        if not right.any():
            right, sentence = a, f"on {kind}, p is nowhere larger than q, and p itself is wanted"
        else:
            sentence = f"on {kind}, the residual is (p − q)⁺"
        if not np.allclose(came.astype(float), right.astype(float), rtol=1e-12, atol=0):
            raise Broken(sentence, came.astype(float), right.astype(float))
        expect_close(rules.residual(a, b).astype(float), came.astype(float), "the same input gives the same again")


def keeps_small_excess(k: int) -> None:
    """Where p and q differ in a late bit only."""
    p, q = np.array([0.5 + 2.0**-k, 0.5 - 2.0**-k]), np.array([0.5, 0.5])
    expect_close(rules.residual(p, q), np.array([2.0**-k, 0]), f"p has 2^−{k} in excess at token 0", atol=0)


RESIDUAL = Property(
    "the residual is what p has more than q, or p itself where that is nothing",
    st.integers(2, 4).flatmap(
        lambda vocab: st.fixed_dictionaries(
            {
                "p": exact.weights(vocab),
                "q": exact.weights(vocab),
                "share": st.sampled_from([1, 2]),
            }
        )
    ),
    is_what_p_has_in_excess,
    (
        {"p": [1, 1], "q": [1, 1], "share": 1},
        {"p": [1, 2, 3], "q": [3, 2, 1], "share": 1},
        {"p": [2, 0], "q": [0, 2], "share": 1},
        {"p": [1, 1], "q": [1, 1], "share": 2},
    ),
)
SMALL = Property(
    "a small excess is an excess", st.fixed_dictionaries({"k": st.integers(2, 52)}), keeps_small_excess, ({"k": 52},)
)


# Rules


def accepts_token_wise(target: list[list[int]], draft: list[list[int]], tokens: list[int]) -> None:
    """The law of what is emitted, given the drafts."""
    exact.check_drafts(target, draft, tokens)
    p, q = exact.fractions(target), exact.fractions(draft)
    exact.follows(rules.token_wise, exact.token_wise_law(p, q, tokens), p, q, tokens)


def accepts_what_was_found(target: list[list[int]], tokens: list[int]) -> None:
    """The same where q is 1 at each draft."""
    p = exact.fractions(target)
    q = [np.array([Fraction(int(y == x)) for y in range(len(p[0]))], dtype=object) for x in tokens]
    exact.check_drafts(p, q, tokens)
    exact.follows(rules.point_mass, exact.token_wise_law(p, q, tokens), p, [], tokens)


def accepts_by_block(target: list[list[int]], draft: list[list[int]], tokens: list[int]) -> None:
    """The law of what is emitted, given the drafts."""
    exact.check_drafts(target, draft, tokens)
    p, q = exact.fractions(target), exact.fractions(draft)
    exact.follows(rules.block, exact.block_law(p, q, tokens), p, q, tokens)


def on_floats(name: str, found: bool = False) -> Property:
    """What holds of the rule `name` on floats."""

    def holds(target: Any, tokens: Any, numbers: Any, pick: int, draft: Any = ()) -> None:
        rule = getattr(rules, name)
        exact.check_drafts(target, [[1] * len(target[0])] * len(tokens) if found else draft, tokens)
        p, q = exact.floats(target), exact.floats(draft)
        exact.emits_what_the_target_can_say(rule, p, q, tokens, numbers, pick)

    def with_draft(target: Any, draft: Any, tokens: Any, numbers: Any, pick: int) -> None:
        holds(target, tokens, numbers, pick, draft)

    def without(target: Any, tokens: Any, numbers: Any, pick: int) -> None:
        holds(target, tokens, numbers, pick)

    never = {"target": [[0, 1], [1, 1]], "tokens": [0], "numbers": [0.0], "pick": 0}
    owed_nothing = {"target": [[1, 0], [0, 1]], "tokens": [0], "numbers": [1 - 2**-53], "pick": 0}
    more = {} if found else {"draft": [[1, 1]]}
    return Property(
        "on floats, too, a step emits only what the target can say",
        st.tuples(exact.drafts(most=2, found=found), exact.NUMBERS, st.integers(0, 1)).map(
            lambda drawn: drawn[0] | {"numbers": drawn[1], "pick": drawn[2]}
        ),
        without if found else with_draft,
        (never | more, owed_nothing | more),
    )


def is_nearly_certain(x: int, gamma: int) -> None:
    """p is 1 at the draft, but for the last bit."""
    p = np.zeros(3)
    p[x] = 1 - 2.0**-53
    exact.emits_what_the_target_can_say(rules.point_mass, [p] * (gamma + 1), [], [x] * gamma, [1 - 2**-53], 0)


CERTAIN = Property(
    "where the target is certain of the draft up to rounding, a rejection still finds a token",
    st.fixed_dictionaries({"x": st.integers(0, 2), "gamma": st.integers(1, 2)}),
    is_nearly_certain,
)


def nearly_equal(name: str) -> Property:
    """p and q that are equal but for their last bits."""

    def holds(below: list[int], x: int) -> None:
        q = np.array([0.5, 0.25, 0.25])
        p = q - np.array(below) * 2.0**-54
        last = [np.array([1.0, 0.0, 0.0])]
        exact.emits_what_the_target_can_say(getattr(rules, name), [p, *last], [q], [x], [1 - 2**-53], 0)

    return Property(
        "where p and q are equal up to rounding, a rejection still finds a token",
        st.fixed_dictionaries({"below": st.lists(st.integers(0, 2), min_size=3, max_size=3), "x": st.integers(0, 2)}),
        holds,
        ({"below": [1, 1, 1], "x": 0},),
    )


def rule_law(holds: Any, found: bool = False, *corners: dict[str, Any]) -> Property:
    """The law of a rule, given the drafts."""
    return Property(
        "what is emitted has the probability that the rule gives it", exact.drafts(found=found), holds, corners
    )


FREE = {"target": [[1, 2]], "draft": [], "tokens": []}
REJECTED = {"target": [[1, 3], [1, 1]], "draft": [[3, 1]], "tokens": [0]}
ACCEPTED = {"target": [[1, 3], [3, 1]], "draft": [[3, 1]], "tokens": [1]}
UNSCALED = {"target": [[3, 3, 2], [4, 3, 1], [1, 1, 1]], "draft": [[4, 2, 2], [1, 1, 6]], "tokens": [0, 2]}
SELDOM = {"target": [[1, 10**6], [1, 1]], "draft": [[1, 1]], "tokens": [0]}
TWO = {"target": [[1, 3], [3, 1], [1, 1]], "draft": [[3, 1], [1, 3]], "tokens": [0, 1]}
KEPT = {"target": [[1, 1], [3, 1], [1, 3]], "draft": [[1, 1], [3, 1]], "tokens": [0, 0]}
CARRIED = {"target": [[3, 1], [1, 3], [1, 1], [1, 0]], "draft": [[1, 1], [3, 1], [1, 1]], "tokens": [1, 0, 1]}


TOKEN_WISE = rule_law(accepts_token_wise, False, FREE, REJECTED, ACCEPTED, SELDOM, TWO, KEPT)
BLOCK = rule_law(accepts_by_block, False, FREE, REJECTED, ACCEPTED, TWO, KEPT, CARRIED, UNSCALED)
POINT_MASS = rule_law(
    accepts_what_was_found,
    True,
    {"target": [[1, 2]], "tokens": []},
    {"target": [[1, 2], [1, 1]], "tokens": [0]},
    {"target": [[1, 2], [2, 1], [1, 1]], "tokens": [0, 1]},
)

# Prompt lookup


def finds_the_latest(tokens: list[int], max_ngram: int, min_ngram: int) -> None:
    """Against a search over lists of tokens."""
    drafter = PromptLookup(max_ngram=max_ngram, min_ngram=min_ngram)
    text = np.array(tokens, dtype=np.int32).tobytes()
    right = None
    for n in range(min_ngram, max_ngram + 1):
        for start in range(len(tokens) - n):
            if tokens[start : start + n] == tokens[len(tokens) - n :]:
                right = (n, start + n) if right is None or n >= right[0] else right
    came = drafter._find(text)
    wanted = None if right is None else right[1]
    if right is None:
        sentence = f"no end of {min_ngram} to {max_ngram} tokens occurred before, so None is wanted"
    else:
        sentence = f"an end of {right[0]} tokens occurred before, and what followed it last stands at {right[1]}"
    if not isinstance(came, int | np.integer | None):
        raise Broken("a position is a whole number", came, wanted)
    expect(came if came is None else int(came), wanted, sentence)


FINDS = Property(
    "the longest end of the text that occurred before is found where it occurred last",
    st.tuples(
        st.one_of(
            st.lists(st.integers(0, 2), max_size=10),
            st.lists(st.sampled_from([0, 1, 256, 257, 1 << 16, 1 << 24, (1 << 24) + 1]), max_size=10),
        ),
        st.integers(1, 4),
        st.integers(0, 3),
    ).map(lambda d: {"tokens": d[0], "max_ngram": d[1], "min_ngram": max(d[1] - d[2], 1)}),
    finds_the_latest,
    (
        {"tokens": [5, 7, 5], "max_ngram": 2, "min_ngram": 1},
        {"tokens": [5, 5, 5], "max_ngram": 2, "min_ngram": 1},
        {"tokens": [1, 2, 3, 2, 1, 2], "max_ngram": 3, "min_ngram": 2},
        {"tokens": [256, 0, 1], "max_ngram": 1, "min_ngram": 1},
        {"tokens": [3, 256, 0, 1, 0, 1], "max_ngram": 2, "min_ngram": 2},
        {"tokens": [1, 256, 0, 1], "max_ngram": 1, "min_ngram": 1},
        {"tokens": [1, 2, 3, 4], "max_ngram": 4, "min_ngram": 1},
        {"tokens": [], "max_ngram": 1, "min_ngram": 1},
    ),
)

# The cost


def is_the_best(alpha: tuple[int, int], c: tuple[int, int], max_gamma: int) -> None:
    """Against tokens a step counted draft by draft, and time counted step by step."""
    a, price = Fraction(alpha[0], alpha[1]), Fraction(*c)
    gains = []
    for gamma in range(max_gamma + 1):
        tokens, reached = Fraction(1), Fraction(1)
        for _ in range(gamma):
            reached *= a
            tokens += reached
        gains.append(tokens / (1 + gamma * price))
    right = gains.index(max(gains))
    said = [f"{float(g):.4g}" for g in gains]
    sentence = f"γ = 0, 1, … are {', '.join(said)} times as fast as no drafts"
    expect(cost.best_gamma(a, price, max_gamma), right, sentence)
    ahead = sorted(gains, reverse=True)
    if len(gains) == 1 or ahead[0] - ahead[1] > Fraction(1, 10**6):  # no tie that rounding might decide
        expect(cost.best_gamma(float(a), float(price), max_gamma), right, f"on floats, too: {sentence}")


def refuses_no_length(max_gamma: int) -> None:
    """A length below 0."""
    expect_error(lambda: cost.best_gamma(0.5, 0.1, max_gamma), "a max_gamma below 0 is an error")


BEST = Property(
    "the γ that is returned makes decoding fastest, and is the smallest of those",
    st.fixed_dictionaries({
        "alpha": st.integers(1, 10).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
        "c": st.tuples(st.integers(0, 6), st.sampled_from([10, 1, 3, 100])),
        "max_gamma": st.integers(0, 8),
    }),
    is_the_best,
    (
        {"alpha": (1, 2), "c": (1, 2), "max_gamma": 3},
        {"alpha": (9, 10), "c": (1, 20), "max_gamma": 5},
        {"alpha": (1, 1), "c": (0, 1), "max_gamma": 4},
        {"alpha": (0, 1), "c": (0, 1), "max_gamma": 4},
        {"alpha": (4, 5), "c": (1, 10), "max_gamma": 8},
    ),
)  # fmt: skip
REFUSES = Property("no length below 0", st.fixed_dictionaries({"max_gamma": st.integers(-3, -1)}), refuses_no_length)

# What comes of two drafts

P, Q = (Fraction(5, 10), Fraction(3, 10), Fraction(2, 10)), (Fraction(2, 10), Fraction(2, 10), Fraction(6, 10))
PRICE = 0.25


def two_drafts() -> tuple[dict[str, float], Trace]:
    """The law of a step of two drafts, and what it is worth."""
    with record("the distribution of a step of two drafts", only="law.") as trace:
        law = step_law(lambda _: P, lambda _: Q, 2, rules.token_wise)
    one = step_law(lambda _: P, lambda _: Q, 1, rules.token_wise)
    kept = sum((w for emitted, w in one.items() if len(emitted) == 2), Fraction(0))
    alone = {emitted[0]: w for emitted, w in one.items() if len(emitted) == 1}
    gamma = cost.best_gamma(float(kept), PRICE, 8)
    return {
        "kept": float(kept),
        "both": float(sum(w for emitted, w in law.items() if len(emitted) == 3)),
        "tokens": float(sum(w * len(emitted) for emitted, w in law.items())),
        "replacement": float(alone[0] / sum(alone.values())),
        "gamma": float(gamma),
        "speedup": float(cost.speedup(float(kept), gamma, PRICE)),
    }, trace


def in_words(rows: Sequence[Any]) -> str:
    """(0.5, 0.3, 0.2)."""
    return f"({', '.join(str(float(w)) for w in rows)})"


ASKED = """
        In a counterexample `target` and `draft` are written as whole numbers, which the judge divides by their sum:
        [3, 1] is the distribution (3/4, 1/4). Your function gets arrays, of exact fractions or of floats. Every outcome
        of `rng.uniform(i)` and `rng.choose(weights, i)` is followed, each with its probability. Two draws of a
        kind with the same i are the same draw.
"""

EXERCISES: tuple[Any, ...] = (
    Write(
        "06.residual",
        "what the target still has to give",
        """
        A draft was drawn from q and rejected. The token in its place is drawn from the part of p that exceeds q. `p`
        and `q` are arrays over the vocabulary. Return an array of the same shape; do not change `p` or `q`.

        The result is not divided by its sum: a draw from it does not need that. Where p is nowhere larger than q
        there is no excess at all. Then return p, because weights that are all 0 cannot be drawn from.

        p need not sum to one: block verification hands in w p with w ≤ 1. In a counterexample p and q are written as
        whole numbers, which the judge divides by their sum. It also divides p by `share`: if this is 2, p sums to 1/2.
        """,
        (
            "Compare p and q token by token. What should stand where q is larger?",
            "p − q is negative where q is larger: put 0 there. Then look whether anything is left.",
            "`np.maximum(p - q, 0)` is the excess. If any of it is above 0, it is the result, otherwise p. A "
            "threshold such as 1e-6 would be wrong: a small excess is still the right one.",
        ),
        5,
        rules,
        "residual",
        (RESIDUAL, SMALL),
    ),
    Write(
        "06.token_wise",
        "keep as much of a draft as the target allows",
        f"""
        The drafter drew γ tokens, `tokens[i]` from the distribution `draft[i]`. The target has read them:
        `target[i]` is its distribution at the place of `tokens[i]`, and `target[γ]` the one after the last draft.
        Return the drafts that are kept, from the first on, and one token more. That one replaces the first draft that
        is rejected; if none is rejected, it is the target's own next token.

        The target's distribution must come out whatever the drafter does, and no fewer drafts may be kept than the
        formula says. A token that the target never says must never be emitted.
        {ASKED}
        """,
        (
            "Go through the drafts from the first to the last. Each needs one number `rng.uniform(i)`, with its own i.",
            "Keep x where u < p(x) / q(x). At the first draft that is not kept the step ends: draw from the residual "
            "of that place, not from p.",
            "For each i, with p = target[i], q = draft[i], x = tokens[i]: if not rng.uniform(i) < ratio(p[x], q[x]), "
            "return the kept ones and rng.choose(residual(p, q), i). After the loop one token is drawn from target[γ]. "
            "The comparison is strict, because u can be 0.",
        ),
        20,
        rules,
        "token_wise",
        (
            TOKEN_WISE,
            on_floats("token_wise"),
            nearly_equal("token_wise"),
        ),
    ),
    Write(
        "06.point_mass",
        "judge drafts that were found, not drawn",
        f"""
        Prompt lookup draws nothing: it copies tokens that stood earlier in the text. There is no q, and `draft` is not
        to be read. Return the drafts that are kept and one token more, so that the target's distribution comes out.
        Think of a drafter that says `tokens[i]` with certainty.
        {ASKED}
        """,
        (
            "What is min(1, p(x) / q(x)) where q(x) = 1? And (p − q)⁺, where q is 0 everywhere else?",
            "The draft is kept with probability p(x). If it is rejected, x itself must not come: it had its chance.",
            "On a rejection copy target[i], set the copy to 0 at x, and draw from it. Where nothing is left (p(x) = 1, "
            "up to rounding), draw from target[i]. After the last draft draw from target[γ].",
        ),
        10,
        rules,
        "point_mass",
        (
            POINT_MASS,
            on_floats("point_mass", found=True),
            CERTAIN,
        ),
    ),
    Write(
        "06.block",
        "judge a draft as a whole",
        f"""
        `token_wise` wastes something: where p(x) is twice q(x), the draft is kept, and half of what the target
        wanted is forgotten. Block verification remembers it and uses it for later drafts. Arguments and result are
        those of `token_wise`.

        Every beginning of the draft has a number w and a chance h to pass, as the docstring gives them. Each is tried
        with its own random number. The longest beginning that passes is kept, even if shorter ones did not pass. If
        none passes, nothing is kept. The token after the kept beginning comes from what the target has left there.
        {ASKED}
        """,
        (
            "First compute all w_i, from w_0 = 1 on. w_i needs w_{i−1} and the i-th draft alone. It can be below 1 and "
            "rise again.",
            "The distributions after the first i drafts are target[i] and draft[i], so S_i needs i < γ. The last "
            "beginning passes with w_γ. Do not stop at a beginning that does not pass.",
            "Keep the largest i with rng.uniform(i) < h_i. The last token: from target[γ] where all is kept, otherwise "
            "from residual(w_i · target[i], draft[i]) with the w_i of the kept beginning. Where S_i + 1 − w_i is 0, "
            "h_i may be 0.",
        ),
        30,
        rules,
        "block",
        (BLOCK, on_floats("block")),
    ),
    Write(
        "06.lookup",
        "find where these tokens stood before",
        """
        Prompt lookup drafts what followed the last few tokens when they stood in the text before. `text` is the whole
        text as bytes, `TOKEN_BYTES` = 4 of them a token. Return the number of tokens before the place where the copy
        begins, that is, just after the earlier occurrence; None where there is none.

        A longer end is better than a shorter one: try the last `self.max_ngram` tokens first, and shorter ends down to
        `self.min_ngram`. Of several occurrences of the same end the latest counts. It may overlap the end, but it may
        not be the end itself.
        """,
        (
            "For one n: the last n tokens, searched from the right, in the text without its last token.",
            "`bytes.rfind` is fast, but it knows no tokens: what it finds may begin in the middle of one. The latest "
            "occurrence that begins with a whole token is wanted.",
            "`np.frombuffer(text, dtype=np.int32)` gives the tokens back. For n from max_ngram down to min_ngram, for "
            "start from len − n − 1 down to 0: if tokens[start : start + n] equals the last n, return start + n. n can "
            "be at most len − 1.",
        ),
        15,
        PromptLookup,
        "_find",
        (FINDS,),
    ),
    Write(
        "06.gamma",
        "how many drafts pay",
        """
        Each draft is accepted with probability `alpha`, whatever came before, if those before it were. A draft costs
        `c` steps of the target. One step of the target reads all drafts and always emits one token more than it
        accepts. Return the number of drafts, from 0 to `max_gamma`, with which the text grows fastest. If several are
        as fast, return the smallest.
        """,
        (
            "What does a step with γ drafts cost? How many tokens does it emit on average?",
            "It costs γ c + 1 and emits 1 + α + … + α^γ. `speedup` divides the one by the other.",
            "Take the γ in range(max_gamma + 1) with the largest `speedup(alpha, γ, c)`; `max` with a key returns the "
            "first. Before that raise ValueError for a max_gamma below 0.",
        ),
        5,
        cost,
        "best_gamma",
        (BEST, REFUSES),
    ),
    Predict(
        "06.accept",
        "what comes of two drafts",
        f"""
        At every place the target's distribution is p = {in_words(P)} and the drafter's q = {in_words(Q)}, over the
        tokens 0, 1, 2. A step has two drafts, judged by `token_wise`. Say what the package computes when it
        follows every outcome. An expression such as 1/3 is as good as a number.
        """,
        (
            "A token gets through with probability q(x) · min(1, p(x)/q(x)). Sum over the tokens.",
            "The second draft is judged only if the first was kept. A step emits one token more than it keeps.",
            "kept = Σ min(p, q). The replacement comes from (p − q)⁺ divided by its sum. For the last two compare "
            "(1 + α) / (1 + c), (1 + α + α²) / (1 + 2 c) and the next.",
        ),
        10,
        {
            "kept": Question(
                "With which probability is the first draft kept?",
                (
                    (0.38, "that is Σ p q, the chance that two independent draws agree"),
                    (1.0, "a draft can be rejected wherever q(x) > p(x)"),
                    (0.5, "sum min(p, q) over all three tokens"),
                ),
            ),
            "both": Question(
                "With which probability are both drafts kept?",
                ((0.6, "that is the first one alone"), (1.2, "the chances multiply; they do not add")),
            ),
            "tokens": Question(
                "How many tokens does a step emit on average?",
                (
                    (2.2, "the second draft is judged only if the first was kept: α² and not α"),
                    (0.96, "one token more than the drafts that are kept"),
                    (1.6, "that is a step with one draft"),
                ),
            ),
            "replacement": Question(
                "The first draft was rejected. With which probability is token 0 drawn in its place?",
                (
                    (0.5, "that is p(0): p counts again what acceptance has already let through"),
                    (0.3, "divide by the sum of the excess"),
                    (0.6, "the excess at 1 is 0.1, not 0.2"),
                ),
            ),
            "gamma": Question(
                "A draft costs a quarter of a step. Which γ, of 0 to 8, is the best at this acceptance?",
                (
                    (1.0, "a second draft gains α² = 0.36 tokens for 0.25 of a step"),
                    (3.0, "the third draft gains α³ = 0.216 tokens for 0.25 of a step"),
                    (8.0, "late drafts are seldom reached, and cost as much as early ones"),
                ),
            ),
            "speedup": Question(
                "How many times faster is that than no drafts?",
                ((1.96, "drafts are not free: divide by 1 + γ c"), (1.28, "that is γ = 1")),
            ),
        },
        two_drafts,
    ),
)
