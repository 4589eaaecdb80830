"""Solutions of chapter 06's exercises."""

from inference_opt.lab.exactness import mutants
from tests.explain.exercises.judging import renamed


def of_the_zoo(rule, name):
    """A rule of `lab/exactness/mutants.py`, handed in for another."""
    names = ", ".join(name for name in vars(mutants) if not name.startswith("_"))
    return f"from inference_opt.lab.exactness.mutants import {names}\n{renamed(rule, name)}"


WRONG = {
    "06.residual": {
        "no floor at 0": (("np.maximum(p - q, 0)", "p - q"),),
        "the absolute difference": (("np.maximum(p - q, 0)", "abs(p - q)"),),
        "q's excess": (("np.maximum(p - q, 0)", "np.maximum(q - p, 0)"),),
        "the common part": (("np.maximum(p - q, 0)", "np.minimum(p, q)"),),
        "nothing where p = q": (("return excess if excess.any() else p", "return excess"),),
        "q where p = q": (("else p", "else q"),),
        "a threshold": (("excess.any()", "excess.sum() > 1e-6"),),
        "divided by its sum": (("return excess if", "return excess / excess.sum() if"),),
        "p is overwritten": """
            def residual(p: Probs, q: Probs) -> Probs:
                kept = p.copy()
                p -= q
                p[p < 0] = 0
                return p if p.any() else kept
        """,
        "p where it is larger": """
            def residual(p: Probs, q: Probs) -> Probs:
                return np.where(p > q, p, 0 * p) if (p > q).any() else p
        """,
    },
    "06.token_wise": {
        "no residual": of_the_zoo(mutants.no_residual, "token_wise"),
        "residual at the token": of_the_zoo(mutants.residual_at_the_token, "token_wise"),
        "softmax of the residual": of_the_zoo(mutants.softmax_residual, "token_wise"),
        "lenient": of_the_zoo(mutants.lenient, "token_wise"),
        "typical": of_the_zoo(mutants.typical, "token_wise"),
        "one uniform": of_the_zoo(mutants.one_uniform, "token_wise"),
        "all accepted": of_the_zoo(mutants.accept_all, "token_wise"),
        "stale bonus": of_the_zoo(mutants.stale_bonus, "token_wise"),
        "at most": of_the_zoo(mutants.at_most, "token_wise"),
        "the same number everywhere": (("rng.uniform(i)", "rng.uniform(0)"),),
        "the ratio upside down": (("ratio(p[x], q[x])", "ratio(q[x], p[x])"),),
        "goes on behind a rejection": (
            ("            return [*emitted, rng.choose(residual(p, q), i)]\n        emitted.append(x)",
             "            emitted.append(rng.choose(residual(p, q), i))\n        else:\n            emitted.append(x)"),
        ),
        "no token for free": (("return [*emitted, rng.choose(target[len(emitted)], len(emitted))]", "return emitted"),),
        "bonus from the last place": (("choose(target[len(emitted)],", "choose(target[max(len(emitted) - 1, 0)],"),),
        "nothing is ever kept": """
            def token_wise(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                return [rng.choose(target[0], 0)]
        """,
        "greedy": """
            def token_wise(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                emitted = []
                for i, x in enumerate(tokens):
                    best = max(range(len(target[i])), key=target[i].__getitem__)
                    emitted.append(best)
                    if best != x:
                        return emitted
                return [*emitted, max(range(len(target[-1])), key=target[-1].__getitem__)]
        """,
        "replacement from a residual that may be empty": """
            import numpy as np
            def token_wise(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                for i, x in enumerate(tokens):
                    if rng.uniform(i) >= ratio(target[i][x], draft[i][x]):
                        return [*tokens[:i], rng.choose(np.maximum(target[i] - draft[i], 0), i)]
                return [*tokens, rng.choose(target[len(tokens)], len(tokens))]
        """,
        "the target is overwritten": (("    for i, (p,", "    target[0][:] = target[0] / 2\n    for i, (p,"),),
    },
    "06.point_mass": {
        "x may come again": (("            rest[x] = 0\n", ""),),
        "p is overwritten": (("rest = p.copy()", "rest = p"),),
        "nothing left is drawn from": (("rest if rest.any() else p", "rest"),),
        "at most": (("rng.uniform(i) < p[x]", "rng.uniform(i) <= p[x]"),),
        "always kept": (("if not rng.uniform(i) < p[x]", "if not p[x] > 0"),),
        "the same number everywhere": (("rng.uniform(i)", "rng.uniform(0)"),),
        "kept where it is likely": (("if not rng.uniform(i) < p[x]", "if not p[x] > 0.5"),),
        "kept with 1 − p": (("if not rng.uniform(i) < p[x]", "if rng.uniform(i) < p[x]"),),
        "no token for free": (("return [*emitted, rng.choose(target[len(emitted)], len(emitted))]", "return emitted"),),
        "the draft is read": (("        p = target[i]\n", "        p = target[i] - 0 * draft[i]\n"),),
        "the one behind": (("        p = target[i]\n", "        p = target[i + 1]\n"),),
        "uniform over the others": (("rest = p.copy()", "rest = p * 0 + 1"),),
    },
    "06.block": {
        "unscaled residual": of_the_zoo(mutants.block_unscaled, "block"),
        "token-wise": (
            ("        if rng.uniform(i) < h:\n            accepted = i",
             "        if not rng.uniform(i) < ratio(target[i - 1][x], draft[i - 1][x]):\n"
             "            break\n        accepted = i"),
        ),
        "stops at the first that fails": (
            ("            accepted = i\n", "            accepted = i\n        else:\n            break\n"),
        ),
        "w is not carried over": (("ratio(w[i - 1] * target", "ratio(target"),),
        "w is not cut at 1": (("w.append(ratio(w[i - 1] * target[i - 1][x], draft[i - 1][x]))",
                              "w.append(w[i - 1] * target[i - 1][x] / draft[i - 1][x])"),),
        "h is w": (("if i < len(tokens):", "if False:"),),
        "the last one hardly ever": (("rng.uniform(i) < h:", "rng.uniform(i) < (h if i < len(tokens) else h / 2):"),),
        "excess of the place before": (
            ("w[i] * target[i] - draft[i], 0)", "w[i] * target[i - 1] - draft[i - 1], 0)"),
        ),
        "unscaled excess": (("np.maximum(w[i] * target[i]", "np.maximum(target[i]"),),
        "residual of the last w": (("residual(w[accepted] * p", "residual(w[-1] * p"),),
        "the same number everywhere": (("rng.uniform(i)", "rng.uniform(0)"),),
        "no residual": (("residual(w[accepted] * p, draft[accepted])", "p"),),
        "residual behind everything": (("(tokens) else p", "(tokens) else residual(p, draft[-1]) if draft else p"),),
    },
    "06.lookup": {
        "across two tokens": (("while at > 0 and at % TOKEN_BYTES:", "while False:"),),
        "the first occurrence": (("rfind(end, 0, len(text) - TOKEN_BYTES)", "find(end, 0, len(text) - TOKEN_BYTES)"),),
        "the end finds itself": (("text.rfind(end, 0, len(text) - TOKEN_BYTES)", "text.rfind(end, 0, len(text))"),),
        "the shortest end first": (
            ("range(min(self.max_ngram, len(text) // TOKEN_BYTES - 1), self.min_ngram - 1, -1)",
             "range(self.min_ngram, min(self.max_ngram, len(text) // TOKEN_BYTES - 1) + 1)"),
        ),
        "the beginning of the occurrence": (("return at // TOKEN_BYTES + n", "return at // TOKEN_BYTES"),),
        "in bytes": (("return at // TOKEN_BYTES + n", "return at + n * TOKEN_BYTES"),),
        "the longest only": (("self.min_ngram - 1, -1", "min(self.max_ngram, len(text) // TOKEN_BYTES - 1) - 1, -1"),),
        "the shortest is never tried": (("self.min_ngram - 1, -1", "self.min_ngram, -1"),),
        "no overlap": (("rfind(end, 0, len(text) - TOKEN_BYTES)", "rfind(end, 0, len(text) - n * TOKEN_BYTES)"),),
        "an occurrence across tokens ends the search": (
            ("while at > 0 and at % TOKEN_BYTES:  # found across two tokens' bytes: search on, further left\n"
             "            at = text.rfind(end, 0, at + len(end) - 1)", "if at % TOKEN_BYTES:\n            at = -1"),
        ),
        "-1 for none": (("return None", "return -1"),),
        "an occurrence at the beginning does not count": (("if at >= 0:", "if at > 0:"),),
    },
    "06.gamma": {
        "at least one draft": (("range(max_gamma + 1)", "range(1, max_gamma + 1) if max_gamma else [0]"),),
        "one too few": (("range(max_gamma + 1)", "range(max(max_gamma, 1))"),),
        "no price": (("speedup(alpha, gamma, c)", "speedup(alpha, gamma, 0)"),),
        "the largest of equals": (("max(range(max_gamma + 1),", "max(reversed(range(max_gamma + 1)),"),),
        "the speed-up itself": (("return max(range(max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))",
                                 "return max(speedup(alpha, gamma, c) for gamma in range(max_gamma + 1))"),),
        "any length": (("if max_gamma < 0:", "if False:"), ("range(max_gamma + 1)", "range(max(max_gamma, 0) + 1)")),
        "as if all were judged": (("speedup(alpha, gamma, c)", "(1 + alpha * gamma) / (1 + c * gamma)"),),
        "all or nothing": (("return max(range(max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))",
                            "return max_gamma if alpha > c else 0"),),
        "the first that stops paying": (("speedup(alpha, gamma, c)", "-abs(alpha**gamma - c)"),),
    },
    "06.accept": {
        "Σ p q": {"kept": 0.38},
        "one kept": {"both": 0.6},
        "every draft is judged": {"tokens": 2.2},
        "p again": {"replacement": 0.5},
        "one draft": {"gamma": 1},
        "free drafts": {"speedup": 1.96},
    },
}  # fmt: skip

RIGHT = {
    "06.residual": {
        "where": """
            def residual(p: Probs, q: Probs) -> Probs:
                if (p <= q).all():
                    return p.copy()
                return np.where(p > q, p - q, 0 * p)
        """,
        "a loop": """
            def residual(p: Probs, q: Probs) -> Probs:
                rest = p.copy()
                for x in range(len(p)):
                    rest[x] = p[x] - q[x] if p[x] > q[x] else 0
                return rest if any(rest) else p
        """,
        "the common part taken away": (("np.maximum(p - q, 0)", "p - np.minimum(p, q)"),),
    },
    "06.token_wise": {
        "without a division": """
            import numpy as np
            def token_wise(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                n = 0
                while n < len(tokens) and rng.uniform(n) * draft[n][tokens[n]] < target[n][tokens[n]]:
                    n += 1
                if n == len(tokens):
                    return list(tokens) + [rng.choose(target[n], n)]
                rest = np.clip(target[n] - draft[n], 0.0, None)
                rest = rest / rest.sum() if rest.sum() > 0 else target[n]
                return list(tokens[:n]) + [rng.choose(rest, n)]
        """,
        "from the other side of the number, by recursion": """
            def token_wise(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                def go(i):
                    if i == len(tokens):
                        return [rng.choose(target[i], 100 + i)]
                    p, q, x = target[i], draft[i], tokens[i]
                    if p[x] > 0 and 1 - rng.uniform(10 + i) <= min(1.0, p[x] / q[x]):
                        return [x, *go(i + 1)]
                    return [rng.choose(residual(p, q), 0)]
                return go(0)
        """,
    },
    "06.point_mass": {
        "a mask": """
            import numpy as np
            def point_mass(target: Sequence[Probs], draft: Any, tokens: Sequence[int], rng: Randomness) -> list[int]:
                for i, x in enumerate(tokens):
                    if rng.uniform(i) >= target[i][x]:
                        rest = target[i] * (np.arange(len(target[i])) != x)
                        return [*tokens[:i], rng.choose(rest if rest.sum() > 0 else target[i], i)]
                return [*tokens, rng.choose(target[-1], len(tokens))]
        """,
        "by token_wise": """
            import numpy as np
            from inference_opt.speculative.rules import token_wise
            def point_mass(target: Sequence[Probs], draft: Any, tokens: Sequence[int], rng: Randomness) -> list[int]:
                q = [np.zeros_like(p) for p in target[:-1]]
                for each, x in zip(q, tokens):
                    each[x] = 1
                return token_wise(target, q, tokens, rng)
        """,
    },
    "06.block": {
        "from the end": """
            def block(
                target: Sequence[Probs], draft: Sequence[Probs], tokens: Sequence[int], rng: Randomness
            ) -> list[int]:
                n = len(tokens)
                w = [1.0]
                for p, q, x in zip(target, draft, tokens):
                    w.append(min(1.0, w[-1] * p[x] / q[x]))
                if rng.uniform(n) < w[n]:
                    return [*tokens, rng.choose(target[n], n)]
                for i in range(n - 1, 0, -1):
                    s = sum(max(w[i] * a - b, 0) for a, b in zip(target[i], draft[i]))
                    if s > 0 and rng.uniform(i) * (s + 1 - w[i]) < s:
                        return [*tokens[:i], rng.choose(residual(w[i] * target[i], draft[i]), i)]
                return [rng.choose(residual(target[0], draft[0]), 0)]
        """,
        "h where nothing is to divide": (("> 0 else 0", "> 0 else 1"),),
    },
    "06.lookup": {
        "on tokens": """
            def _find(self, text: bytes) -> int | None:
                tokens = [text[i : i + TOKEN_BYTES] for i in range(0, len(text), TOKEN_BYTES)]
                for n in reversed(range(self.min_ngram, min(self.max_ngram, len(tokens) - 1) + 1)):
                    for start in reversed(range(len(tokens) - n)):
                        if tokens[start : start + n] == tokens[-n:]:
                            return start + n
                return None
        """,
        "arrays": """
            import numpy as np
            def _find(self, text: bytes) -> int | None:
                tokens = np.frombuffer(text, dtype=np.int32)
                for n in range(self.max_ngram, self.min_ngram - 1, -1):
                    if n < len(tokens):
                        windows = np.lib.stride_tricks.sliding_window_view(tokens, n)[:-1]
                        hits = np.flatnonzero((windows == tokens[-n:]).all(axis=1))
                        if len(hits):
                            return int(hits[-1]) + n
                return None
        """,
    },
    "06.gamma": {
        "while a draft gains": """
            def best_gamma(alpha: Any, c: Any, max_gamma: int) -> int:
                if max_gamma < 0:
                    raise ValueError("max_gamma must not be negative")
                gamma, tokens = 0, 1
                while gamma < max_gamma and alpha ** (gamma + 1) * (gamma * c + 1) > tokens * c:
                    gamma += 1
                    tokens = tokens + alpha**gamma
                return gamma
        """,
        "sorted": (
            ("return max(range(max_gamma + 1), key=lambda gamma: speedup(alpha, gamma, c))",
             "return sorted(range(max_gamma + 1), key=lambda gamma: (-speedup(alpha, gamma, c), gamma))[0]"),
        ),
    },
}  # fmt: skip
