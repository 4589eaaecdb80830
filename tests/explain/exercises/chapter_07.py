"""Solutions of chapter 07's exercises."""

from inference_opt.lab.exactness import mutants
from tests.explain.exercises.chapter_06 import of_the_zoo

KEEP, KEPT = "    for j, x", "    whole = p\n    for j, x"
BONUS = "return [*emitted, rng.choose(target[len(emitted)], len(emitted))]"

WRONG = {
    "07.coupled": {
        "all drafts are kept": (("        if emitted[i] != x:\n            return emitted\n", ""),),
        "the draft is emitted": (("            return emitted\n", "            return [*emitted[:-1], x]\n"),),
        "draw 0 everywhere": (("rng.choose(target[i], i)", "rng.choose(target[i], 0)"),),
        "one token a step": (("        if emitted[i] != x:\n    ", ""),),
        "none for free": ((BONUS, "return emitted"),),
        "the rejected place is left open": (("            return emitted\n", "            return emitted[:-1]\n"),),
        "the last place twice": ((BONUS, "return [*emitted, rng.choose(target[len(tokens) - 1], len(tokens))]"),),
        "the draw behind": ((BONUS, "return [*emitted, rng.choose(target[len(emitted)], len(emitted) + 1)]"),),
        "greedy": (("rng.choose(target[i], i)", "int(target[i].argmax())"),),
        "token-wise": """
            from inference_opt.speculative.rules import token_wise
            def coupled(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                return token_wise(target, [p * 0 + 1 for p in target], tokens, rng)
        """,
        "drawn anew after a rejection": (
            ("            return emitted\n", "            return [*emitted[:-1], rng.choose(target[i], i + 1)]\n"),
        ),
    },
    "07.try_all": {
        "p is not replaced": (("        p = residual(p, q)\n        p = p / p.sum()\n", ""),),
        "not normalised": (("        p = p / p.sum()\n", ""),),
        "the first q for all": (("q = draft[j]", "q = draft[0]"),),
        "one number for all": (("rng.uniform(tried + j)", "rng.uniform(tried)"),),
        "numbers from 0": (("rng.uniform(tried + j)", "rng.uniform(j)"),),
        "the token and not its index": (("return j, p", "return x, p"),),
        "the last that is accepted": (
            ("    for j, x", "    won = None\n    for j, x"),
            ("            return j, p\n", "            won = j\n            continue\n"),
            ("return None, p", "return won, p"),
        ),
        "at most": (("< ratio(", "<= ratio("),),
        "the candidate is taken out of p": (("p = residual(p, q)", "p = p.copy()\n        p[x] = 0"),),
        "q less p": (("residual(p, q)", "residual(q, p)"),),
        "p is overwritten": ((KEEP, KEPT), ("        p = p / p.sum()\n", "        whole[:] = p = p / p.sum()\n")),
        "the best first": (
            ("in enumerate(candidates)", "in sorted(enumerate(candidates), key=lambda each: -p[each[1]])"),
        ),
        "all of p is left": (("return None, p", "return None, whole"), (KEEP, KEPT)),
        "a leaf has a winner": (("return None, p", "return (None if len(candidates) else 0), p"),),
        "the ratio of the first p": ((KEEP, KEPT), ("ratio(p[x]", "ratio(whole[x]")),
    },
    "07.law": {
        "the drafter's": {"right": 0.75},
        "no residual is right": {"no_residual": 0.5},
        "lenience is right": {"lenient": 0.5},
        "one draft": {"both": 0.75},
        "two numbers": {"one_number": 0.5625},
        "either": {"one_number": 0.75},
    },
    "07.zero": {
        "still at most": (("< ratio(p[x], q[x])", "<= ratio(p[x], q[x])"),),
        "zero is turned into a small number": (("rng.uniform(i) <", "max(rng.uniform(i), 1e-3) <="),),
        "a test of q": (("< ratio(p[x], q[x])", "<= ratio(p[x], q[x]) or not q[x] > 0"),),
        "the other way round": (("if not rng.uniform(i) <", "if rng.uniform(i) <"),),
        "only likely tokens": (("< ratio(p[x], q[x])", "<= ratio(p[x], q[x]) or p[x] < 0.3"),),
        "everything with p(x) > 0": (("rng.uniform(i) < ratio(p[x], q[x])", "p[x] > 0"),),
        "replaced by a draw from p": (("residual(p, q)", "p"),),
        "no residual": of_the_zoo(mutants.no_residual, "token_wise"),
    },
    "07.siblings": {
        "still the first distribution": (
            ("probs.append(q / q.sum())", "probs.append(probs[0] if probs else q / q.sum())"),
            ("choose(probs[-1],", "choose(q / q.sum(),"),
        ),
        "drawn from the first distribution": (("choose(probs[-1],", "choose(probs[0],"),),
        "not normalised": (("probs.append(q / q.sum())", "probs.append(q)"),),
        "q is changed": (("            q = q.copy()\n", ""),),
        "always without replacement": (("if not replacement", "if True"),),
        "always with replacement": (("if not replacement", "if False"),),
        "one too many": (("len(tokens) < count", "len(tokens) <= count"),),
        "does not end": ((" and q.any()", ""),),
        "the uniform law": (("probs.append(q / q.sum())", "probs.append((q > 0) / Fraction(int((q > 0).sum())))"),),
        "what is left afterwards": (("    return probs, tokens", "    return [*probs[1:], q][: len(tokens)], tokens"),),
    },
    "07.biased": {
        "still unscaled": (("residual(w[accepted] * p, draft[accepted])", "residual(p, draft[accepted])"),),
        "scaled by the last w": (("residual(w[accepted]", "residual(w[-1]"),),
        "scaled by the next w": (("residual(w[accepted]", "residual(w[accepted + 1]"),),
        "q scaled": (("residual(w[accepted] * p, draft[accepted])", "residual(p, w[accepted] * draft[accepted])"),),
        "both scaled": (("* p, draft[accepted])", "* p, w[accepted] * draft[accepted])"),),
        "a draw from p": (("residual(w[accepted] * p, draft[accepted])", "p"),),
        "nothing is kept": """
            def block(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                return [rng.choose(target[0], 0)]
        """,
        "token-wise": """
            from inference_opt.speculative.rules import token_wise
            def block(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                return token_wise(target, draft, tokens, rng)
        """,
    },
}  # fmt: skip

RIGHT = {
    "07.coupled": {
        "by recursion": """
            def coupled(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                def go(i):
                    y = rng.choose(target[i], i)
                    return [y, *go(i + 1)] if i < len(tokens) and y == tokens[i] else [y]
                return go(0)
        """,
        "all drawn at once": """
            def coupled(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                own = [rng.choose(p, i) for i, p in enumerate(target)]
                agree = 0
                while agree < len(tokens) and own[agree] == tokens[agree]:
                    agree += 1
                return own[: agree + 1]
        """,
    },
    "07.try_all": {
        "by recursion": """
            import numpy as np
            def try_all(
                p: Probs, draft: Sequence[Probs], candidates: Sequence[int], rng: Randomness, tried: int
            ) -> tuple[int | None, Probs]:
                if len(candidates) == 0:
                    return None, p
                q, x = draft[0], candidates[0]
                if rng.uniform(tried) * q[x] < p[x]:
                    return 0, p
                rest = np.where(p > q, p - q, 0 * p)
                rest = rest if rest.any() else p
                winner, left = try_all(rest / rest.sum(), draft[1:], candidates[1:], rng, tried + 1)
                return (None if winner is None else winner + 1), left
        """,
        "what is left is not divided by its sum": (
            ("        p = p / p.sum()\n", ""), ("ratio(p[x], q[x])", "ratio(p[x] / p.sum(), q[x])"),
            ("residual(p, q)", "residual(p / p.sum(), q) * 3"),
        ),
    },
    "07.zero": {
        "p is asked first": (("not rng.uniform(i) < ratio(", "p[x] <= 0 or rng.uniform(i) > ratio("),),
        "without a division": (("if not rng.uniform(i) < ratio(p[x], q[x])", "if rng.uniform(i) * q[x] >= p[x]"),),
    },
    "07.siblings": {
        "from the tokens": """
            def _candidates(
                q: Probs, count: int, choose: Callable[[Probs, int], int], replacement: bool
            ) -> tuple[list[Probs], list[int]]:
                probs, tokens = [], []
                for i in range(count):
                    left = q.copy()
                    if not replacement:
                        left[tokens] = Fraction(0)
                    if left.sum() == 0:
                        break
                    tokens.append(choose(left, i))
                    probs.append(left / left.sum())
                return probs, tokens
        """,
    },
    "07.biased": {
        "by hand": (
            ("residual(w[accepted] * p, draft[accepted])", "np.maximum(p - draft[accepted] / w[accepted], 0)"),
            ("    return [*tokens[:accepted]", "    rest = rest if rest.any() else p\n    return [*tokens[:accepted]"),
        ),
    },
}  # fmt: skip
