"""A sampler under judgement, as a program of its randomness: what it is given, and what its text is worth."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.kit.integrate import Law, integrate
from inference_opt.lab.exactness.kit.pairs import Pair, panel
from inference_opt.lab.exactness.kit.uniforms import Races, Uniforms
from inference_opt.lab.exactness.proposals import Prefix, Propose

Choose = Callable[[Any, int], int]
Noise = Literal["uniforms", "seed", "generator"]


@dataclass(frozen=True)
class Subject:
    """What is judged: what it is handed on a pair of models, drawn by `choose`, and what it makes of that."""

    hand: Callable[[Pair, Choose], Any]
    run: Callable[[Any, Any], Prefix]
    vocab: int
    gamma: int
    length: int
    whole: bool  # a text, or else what a step emits

    def hands(self, pair: Pair) -> Iterator[tuple[Any, Races, float]]:
        """Everything that can be handed in on a pair, with its probability, and the noise that drew it, as races."""

        def once(rng: Branching) -> tuple[Any, Races]:
            # By race, so that the sampler can share the noise of place i. A tree's nodes share none with each other.
            handed = self.hand(pair, lambda weights, i: (rng.choose if i in rng.won else rng.race)(weights, i))
            return handed, {i: (np.array(weights, dtype=float), winner) for i, (weights, winner) in rng.won.items()}

        for (handed, races), probability in every_path(once):
            yield handed, races, float(probability)

    def law(self, pair: Pair) -> Law:
        """What comes out, computed: whatever is handed in, in turn, and for each the sampler integrated."""
        law = Law()
        for handed, races, probability in self.hands(pair):
            part = integrate(partial(self.run, handed), races)
            for outcome, share in part.probability.items():
                law.probability[outcome] = law.probability.get(outcome, 0.0) + probability * share
            law.at_ends |= part.at_ends
            law.runs += part.runs
            law.numbers = max(law.numbers, part.numbers)
        return law

    def right(self, pair: Pair) -> dict[Prefix, float]:
        """The target's own distribution of the text."""
        return continued({(): 1.0}, pair, self.length)

    def pairs(self) -> list[Pair]:
        """The panel."""
        return panel(self.vocab, self.length if self.whole else self.gamma)


def drafted(pair: Pair, propose: Propose, gamma: int, choose: Choose) -> tuple[Any, Any, Any]:
    """(draft, target, tokens) as a sampler gets them: arrays and a list, or mappings where drafts are a tree."""
    target, draft, tokens = propose(pair.target, pair.draft, (), gamma, choose)
    if isinstance(tokens, Mapping):
        paths: list[Prefix] = [()]
        for path in paths:  # grows as it is read: the whole tree is drawn
            paths += sorted({(*path, x) for x in tokens[path]})
        q, p = ({path: np.array(each[path], dtype=float) for path in paths} for each in (draft, target))
        return q, p, {path: list(tokens[path]) for path in paths}
    tokens = list(tokens)
    behind = np.array([target[i] for i in range(len(tokens) + 1)], dtype=float)
    drawn_from = np.array([draft[i] for i in range(len(tokens))], dtype=float)
    return drawn_from.reshape(len(tokens), behind.shape[1]), behind, tokens


def emitted_by(sampler: Callable[..., Any], arguments: Any, vocab: int, least: int, most: int | None) -> Prefix:
    """What a sampler returns, as a tuple. ValueError where these are not tokens, or are too few or too many."""
    tokens = sampler(*arguments)
    text = tuple(int(x) for x in (tokens.tolist() if hasattr(tokens, "tolist") else tokens))
    if not all(0 <= x < vocab for x in text) or len(text) < least or (most and len(text) > most):
        count = f"{least} to {most}" if most else f"at least {least}"
        seen = arguments[-1].read if isinstance(arguments[-1], Uniforms) else arguments[-1]
        raise ValueError(
            f"the sampler returned {list(text)}: expected {count} tokens from 0 to {vocab - 1}. Its noise was {seen}"
        )
    return text


def probability_of(text: Prefix, pair: Pair) -> float:
    """What the target gives a text."""
    return float(np.prod([float(pair.target(text[:i])[x]) for i, x in enumerate(text)]))


def continued(law: Mapping[Prefix, float], pair: Pair, length: int) -> dict[Prefix, float]:
    """What was emitted, cut or continued by the target to `length` tokens."""
    done: dict[Prefix, float] = defaultdict(float)
    texts = list(law.items())
    while texts:
        text, weight = texts.pop()
        if len(text) >= length:
            done[text[:length]] += weight
        else:
            texts += [((*text, x), weight * float(p)) for x, p in enumerate(pair.target(text)) if p > 0]
    return dict(done)


def total_variation(a: Mapping[Prefix, float], b: Mapping[Prefix, float]) -> float:
    """Half the sum of |a − b|."""
    return sum(abs(a.get(text, 0.0) - b.get(text, 0.0)) for text in {*a, *b}) / 2
