"""Solutions of chapter 00's exercises."""

WRONG = {
    "00.evaluations": {
        "a cache evaluates the last token": {"cached": 16},
        "the text does not grow": {"naive": 60},
        "a cache has the prompt for nothing": {"cached_first": 1},
        "the naive way keeps the prompt": {"naive_second": 1},
        "the second is fed before it is known": {"naive_second": 12},
        "no answer": {"naive": ...},
        "no number": {"cached": "15"},
    },
    "00.draw": {
        "the last to arrive": (("np.argmin(exponential(uniforms", "np.argmax(exponential(uniforms"),),
        "no logarithm": (
            ("exponential(uniforms(words[near]))", "uniforms(words[near])"),
        ),
        "light tokens never win": (("contenders(words, heavy, weights[heavy], LIGHT * largest)", "heavy"),),
        "the noise of another draw": (("self.words(i, ARRIVAL", "self.words(0, ARRIVAL"),),
        "the noise of a uniform number": (("ARRIVAL, len", "1, len"),),
        "it changes the weights": (
            ("weights, largest = weights * 2.0**900, largest * 2.0**900", "weights *= 2.0**900; largest *= 2.0**900"),
        ),
        "small weights overflow": (("largest < 2.0**-900", "largest < 0"),),
        "nothing to choose is token 0": (
            ('raise ValueError("there is no token to choose: all weights are zero")', "return 0"),
        ),
        "a token of NumPy's": (("return int(near[", "return (near["),),
        "the most probable token": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                return int(np.argmax(weights))
        """,
        "times, not divided": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                return int(np.argmin(exponential(uniforms(self.words(i, ARRIVAL, len(weights)))) * weights))
        """,
        "zero is made small": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                e = exponential(uniforms(self.words(i, ARRIVAL, len(weights))))
                return int(np.argmin(e / (weights + 1e-12)))
        """,
        "the cumulative sum": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                sums = np.cumsum(weights)
                return int(np.searchsorted(sums, self.uniform(i) * sums[-1], side="right"))
        """,
        "a generator of its own": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                return int(np.random.default_rng(self.seed + i).choice(len(weights), p=weights / weights.sum()))
        """,
        "noise that nobody can override": """
            def choose(self, weights, i: int) -> int:
                if weights.max() == 0:
                    raise ValueError
                e = exponential(uniforms(type(self).__mro__[-2].words(self, i, ARRIVAL, len(weights))))
                with np.errstate(divide="ignore"):
                    return int(np.argmin(e / (weights / weights.max())))
        """,
    },
    "00.nucleus": {
        "the token that crosses goes": (("heavy.cumsum(0) - heavy <", "heavy.cumsum(0) <"),),
        "one too many on the boundary": (("- heavy < top_p", "- heavy <= top_p"),),
        "all of equal weight stay": (("if extra := int((heavy >= kept[-1]).sum()) - len(kept):", "if extra := 0:"),),
        "the highest ids stay": ((".flatten()[-extra:]", ".flatten()[:extra]"),),
        "the whole is taken for one": (("< top_p * whole).sum", "< top_p).sum"),),
        "another tensor": (("    whole, every", "    w = w.clone()\n    whole, every"),),
        "the lightest stay": (("descending=True", "descending=False"),),
        "renormalised": (("    _drop_below", "    w.div_(whole)\n    kept = kept / whole\n    _drop_below"),),
        "the sum is one afterwards": """
            def _keep_nucleus(w, top_p: float) -> None:
                order = w.sort(descending=True, stable=True)
                before = order.values.cumsum(0) - order.values
                w[order.indices[before >= top_p * w.sum()]] = 0
                w /= w.sum()
        """,
        "in the order of the ids": """
            def _keep_nucleus(w, top_p: float) -> None:
                w[w.cumsum(0) - w >= top_p * w.sum()] = 0
        """,
        "the tokens above a threshold": """
            def _keep_nucleus(w, top_p: float) -> None:
                w[w < (1 - top_p) * w.max()] = 0
        """,
    },
    "00.seed": {
        "still the same noise": (("Noise(seed, position)", "Noise(seed, 0)"),),
        "the seed is forgotten": (("Noise(seed, position)", "Noise(0, position)"),),
        "neighbours' noise": (("Noise(seed, position)", "Noise(seed + position, position)"),),
        "the sum of the two": (("Noise(seed, position)", "Noise(seed + position, 0)"),),
        "the other way round": (("Noise(seed, position)", "Noise(position, seed)"),),
        "one too far": (("Noise(seed, position)", "Noise(seed, position + 1)"),),
        "the position as the draw": """
            def sample(logits, params, position: int) -> int:
                if params.temperature == 0:
                    return int(logits.argmax())
                seed = secrets.randbits(63) if params.seed is None else params.seed
                return Noise(seed, 0).choose(logits.double().softmax(-1).numpy(), position)
        """,
        "seed 0 is no seed": (("if params.seed is None else params.seed", "if not params.seed else params.seed"),),
        "no seed is seed 0": (("secrets.randbits(63) if params.seed is None else params.seed", "params.seed or 0"),),
        "it changes the logits": (("_draw(logits,", "_draw(logits.add_(1),"),),
    },
}  # fmt: skip

RIGHT = {
    "00.draw": {
        "all logarithms, and divided by the largest": """
            def choose(self, weights, i: int) -> int:
                most = weights.max()
                if not most > 0:
                    raise ValueError("nothing to choose")
                noise = exponential(uniforms(self.words(i, ARRIVAL, len(weights))))
                with np.errstate(divide="ignore", over="ignore"):
                    return int(np.argmin(noise / (weights / most)))
        """,
        "Gumbel noise": """
            def choose(self, weights, i: int) -> int:
                if not weights.any():
                    raise ValueError("nothing to choose")
                u = uniforms(self.words(i, ARRIVAL, len(weights)))
                with np.errstate(divide="ignore"):
                    return int(np.argmax(np.log(weights) - np.log(-np.log1p(-u))))
        """,
        "a loop over fractions": """
            from fractions import Fraction

            def choose(self, weights, i: int) -> int:
                w = list(map(Fraction, weights.tolist()))
                e = list(map(Fraction, exponential(uniforms(self.words(i, ARRIVAL, len(w)))).tolist()))
                runners = [x for x in range(len(w)) if w[x]]
                if not runners:
                    raise ValueError("nothing to choose")
                best = runners[0]
                for x in runners:
                    if e[x] * w[best] < e[best] * w[x]:
                        best = x
                return best
        """,
    },
    "00.nucleus": {
        "a stable sort": """
            def _keep_nucleus(w, top_p: float) -> None:
                order = w.sort(descending=True, stable=True)
                before = order.values.cumsum(0) - order.values
                w[order.indices[before >= top_p * w.sum()]] = 0
        """,
        "a loop": """
            def _keep_nucleus(w, top_p: float) -> None:
                whole, mass = float(w.sum()), 0.0
                for x in sorted(range(len(w)), key=lambda x: (-float(w[x]), x)):
                    weight = float(w[x])
                    if mass >= top_p * whole:
                        w[x] = 0
                    mass += weight
        """,
    },
    "00.seed": {
        "in other words": """
            def sample(logits, params, position: int) -> int:
                if params.temperature == 0:
                    return int(logits.argmax())
                seed = params.seed
                if seed is None:
                    seed = secrets.randbits(63)
                noise = Noise(start=position, seed=seed)
                return noise.choose((logits.double() / params.temperature).softmax(-1).numpy(), 0)
        """,
    },
}
