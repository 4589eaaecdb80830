"""Grammar and speculation: masking token by token, compared with the model's own texts that fit the grammar.

Asked for text of a grammar, an engine masks: tokens that the grammar does not allow next get probability 0, and the
rest is divided by its sum. That is the distribution

    local(x | t) = p(x | t) [x allowed after t] / Σ_y p(y | t) [y allowed after t],

and speculation with masked drafts and a masked target samples exactly that. But the model's distribution, given that
the text fits, is another. It weighs a token by the probability that the text can still be completed,

    conditional(x | t) = p(x | t) W(t x) / W(t),    W(t) = probability that p completes t to a text of the grammar.

(Park et al. 2405.21047 show the difference without speculation, Nie et al. 2605.07698 with it.) Where the language is
finite, W is a sum over the rest of the text, by dynamic programming. Then the second is a model like any other, and any
exact rule can speculate on it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from inference_opt.lab.exactness.exact import joint_law, output_law, total_variation
from inference_opt.lab.exactness.proposals import Model, Prefix, Propose, chain, probs_behind
from inference_opt.lab.exactness.zoo import DRAFT, TARGET, Mutant
from inference_opt.speculative import rules
from inference_opt.speculative.rules import Probs

State = Hashable
DONE: State = "done"  # after the end token; only end tokens follow, as padding


@dataclass(frozen=True, eq=False)
class Automaton:
    """Which tokens may follow in a state, and the state after each. From every state an end can be reached."""

    follow: Mapping[State, Mapping[int, State]]
    start: State

    @classmethod
    def of(cls, start: State, end: int, follow: Callable[[Any], Mapping[int, State]]) -> "Automaton":
        """Explore `follow` from the start, and drop what cannot end. ValueError where nothing can."""
        found: dict[State, dict[int, State]] = {DONE: {end: DONE}}
        waiting = [start]
        while waiting:
            state = waiting.pop()
            if state not in found:
                found[state] = dict(follow(state))
                waiting += found[state].values()
        live: set[State] = {DONE}
        while more := {s for s, to in found.items() if s not in live and live & {*to.values()}}:
            live |= more
        if start not in live:
            raise ValueError(f"no text leads from {start!r} to an end: the grammar is empty")
        kept = {s: {x: to for x, to in found[s].items() if to in live} for s in found if s in live}
        return cls(kept, start)


class Matcher:
    """Where a text stands in a grammar. Drafts move it on, and a rejection takes it back."""

    def __init__(self, automaton: Automaton, text: Sequence[int] = ()) -> None:
        self.automaton = automaton
        self.states = [automaton.start]
        for token in text:
            self.advance(token)

    def mask(self, probs: Probs) -> Probs:
        """A distribution without the tokens that may not follow, normalised. ValueError if nothing is left."""
        masked = np.array([Fraction(0)] * len(probs), dtype=object)
        for token in self.automaton.follow[self.states[-1]]:
            masked[token] = Fraction(probs[token])
        if not masked.any():
            raise ValueError(f"in state {self.states[-1]!r} the model gives no probability to any token allowed")
        return masked / masked.sum()

    def advance(self, token: int) -> None:
        """Go on by one token. ValueError if it is not allowed; the matcher stays where it was."""
        allowed = self.automaton.follow[self.states[-1]]
        if token not in allowed:
            raise ValueError(f"token {token} may not follow in state {self.states[-1]!r}: it allows {sorted(allowed)}")
        self.states.append(allowed[token])

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back. ValueError if there are fewer."""
        if not 0 <= count < len(self.states):
            raise ValueError(f"{count} tokens cannot be taken back, there are {len(self.states) - 1}")
        del self.states[len(self.states) - count :]


def locally(model: Model, automaton: Automaton) -> Model:
    """The model, masked token by token."""
    return lambda text: tuple(Matcher(automaton, text).mask(probs_behind(model, text)))


def masked_chain(automaton: Automaton) -> Propose:
    """As an engine speculates: one matcher masks drafts and the target's rows, and is rolled back at the end."""

    def propose(
        target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Callable[[Probs, int], int]
    ) -> tuple[Sequence[Probs], Sequence[Probs], Sequence[int]]:
        matcher = Matcher(automaton, prefix)
        text = prefix
        ps, qs = [matcher.mask(probs_behind(target, text))], []
        for i in range(gamma):
            qs.append(matcher.mask(probs_behind(draft, text)))
            text = (*text, choose(qs[-1], i))
            matcher.advance(text[-1])
            ps.append(matcher.mask(probs_behind(target, text)))
        matcher.rollback(gamma)  # the rule will decide which of them stay
        return ps, qs, text[len(prefix) :]

    return propose


def conditional(model: Model, automaton: Automaton, look: Callable[[Prefix], Hashable] = lambda text: text) -> Model:
    """The model, given that its text fits the grammar.

    `look`: what of a text the model's distribution depends on (by default all of it); W is computed once for each state
    and look. ValueError if the language is not finite, or if the model gives none of its texts a probability.
    """
    worth: dict[tuple[State, Hashable], Fraction | None] = {}

    def complete(state: State, text: Prefix) -> Fraction:
        """W(text), where the automaton is in that state."""
        if state == DONE:
            return Fraction(1)
        key = state, look(text)
        if key not in worth:
            worth[key] = None  # being computed
            probs = probs_behind(model, text)
            follow = automaton.follow[state].items()
            worth[key] = sum((probs[x] * complete(to, (*text, x)) for x, to in follow if probs[x] > 0), Fraction(0))
        found = worth[key]
        if found is None:
            raise ValueError(f"the language is not finite: state {state!r} comes back, and a sum would never end")
        return found

    def given(text: Prefix) -> tuple[Fraction, ...]:
        state = Matcher(automaton, text).states[-1]
        follow, probs = automaton.follow[state], probs_behind(model, text)
        if state == DONE:
            return tuple(Fraction(x in follow) for x in range(len(probs)))
        weights = [
            probs[x] * complete(follow[x], (*text, x)) if x in follow else Fraction(0) for x in range(len(probs))
        ]
        if not any(weights):
            raise ValueError(f"after {text} the model has no text of the grammar")
        return tuple(w / sum(weights) for w in weights)

    return given


END = 2  # of the three tokens of the zoo's models


def _even(state: tuple[int, int]) -> Mapping[int, State]:
    """Up to four tokens, an even number of them 0."""
    zeros, length = state
    go_on = {0: (1 - zeros, length + 1), 1: (zeros, length + 1)} if length < 4 else {}
    return go_on if zeros else {**go_on, END: DONE}


def _brackets(state: tuple[int, int]) -> Mapping[int, State]:
    """Balanced brackets, 0 opens and 1 closes, at most four tokens."""
    depth, length = state
    go_on: dict[int, State] = {0: (depth + 1, length + 1)} if depth + length < 4 else {}
    return {**go_on, 1: (depth - 1, length + 1)} if depth else {**go_on, END: DONE}


def _long_or_short(state: str) -> Mapping[int, State]:
    """A text of 0, or a keyword of four tokens that begins with 1: rare, but masking sees only how it begins."""
    if state == "":
        return {0: "short", 1: "1"}
    return {END: DONE} if state in ("short", "1011") else {int("1011"[len(state)]): "1011"[: len(state) + 1]}


GRAMMARS = {
    "an even number of 0": Automaton.of((0, 0), END, _even),
    "brackets": Automaton.of((0, 0), END, _brackets),
    "a word or a keyword": Automaton.of("", END, _long_or_short),
}
LENGTH = 5  # the longest text of each, its end included
KEYWORD = GRAMMARS["a word or a keyword"]
# An entry as in the zoo. It stands apart: rule and drafter are right, but the target is not the one that was meant.
# That is the conditional model; the rule is handed the masked one.
MASKED = Mutant(
    "grammar, masked token by token",
    "the target is masked token by token: what is allowed next counts, and not whether the text can still be completed",
    ("https://arxiv.org/abs/2405.21047", "https://arxiv.org/abs/2605.07698"),
    rules.token_wise,
    propose=lambda target, *rest: masked_chain(KEYWORD)(TARGET, *rest),
    right_propose=chain,
    target=conditional(TARGET, KEYWORD),
    draft=locally(DRAFT, KEYWORD),
    length=LENGTH,
)


@dataclass(frozen=True)
class Measured:
    """Of one grammar: the probability that the model's text fits, and how far masking is from p given that it fits."""

    fits: Fraction
    bias: Fraction
    speculation_is_local: bool  # masked speculation gives the same distribution as masking alone
    speculation_is_exact: bool  # on the conditional model it gives the conditional distribution


def measure(automaton: Automaton, target: Model, draft: Model, gamma: int = 2, length: int = LENGTH) -> Measured:
    """All by enumeration, in fractions."""
    exact, local = conditional(target, automaton), locally(target, automaton)
    right = joint_law(exact, length)
    masked = output_law(target, draft, gamma, rules.token_wise, length, propose=masked_chain(automaton))
    on_exact = output_law(exact, locally(draft, automaton), gamma, rules.token_wise, length)
    fits = sum((_probability(target, text) for text in right), Fraction(0))
    return Measured(fits, total_variation(masked, right), masked == joint_law(local, length), on_exact == right)


def _probability(model: Model, text: Prefix) -> Fraction:
    """What a model gives a text up to its end."""
    probability = Fraction(1)
    for i, x in enumerate(text[: text.index(END) + 1]):
        probability *= probs_behind(model, text[:i])[x]
    return probability
