"""Which rule a sampler behaves like: those of the zoo and the right ones, on the pairs that it was judged on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.gtest import p_value
from inference_opt.lab.exactness.kit.pairs import Pair
from inference_opt.lab.exactness.kit.sampled import g_of
from inference_opt.lab.exactness.kit.subject import Subject, total_variation
from inference_opt.lab.exactness.noise_sharing import Sharing, by_position, independent, on_a_grid, same_stream
from inference_opt.lab.exactness.proposals import Prefix, Propose, Rule, branching, chain, siblings
from inference_opt.lab.exactness.zoo import ZOO, Mutant
from inference_opt.speculative import rules

COMPARED = 3  # pairs of the panel: more would tell no two rules apart that these do not


@dataclass(frozen=True)
class Known:
    """A rule with a name: how it drafts, judges and draws."""

    name: str
    rule: Rule
    propose: Propose = chain
    sharing: Sharing = independent
    mutant: Mutant | None = None  # of the zoo

    def law(self, pair: Pair, subject: Subject) -> dict[Prefix, float]:
        """What a step emits, or the text, as the subject's."""
        if subject.whole and self.mutant:
            shape = replace(self.mutant, target=pair.target, draft=pair.draft, gamma=subject.gamma)
            law = replace(shape, length=subject.length).law()
        elif subject.whole:
            return subject.right(pair)
        else:
            law = {}
            for emitted, probability in every_path(partial(self._step, pair=pair, gamma=subject.gamma)):
                law[emitted] = law.get(emitted, 0) + probability
        return {text: float(probability) for text, probability in law.items()}

    def _step(self, branching: Branching, pair: Pair, gamma: int) -> Prefix:
        drafter, judge = self.sharing(branching)(0)
        given = self.propose(pair.target, pair.draft, (), gamma, drafter.choose)
        return tuple(self.rule(*given, judge))


RIGHT = [
    Known("token-wise", rules.token_wise),
    Known("block", rules.block),
    Known("point mass, or sample and match", rules.point_mass),
    Known("coupled", rules.coupled, sharing=same_stream),
    Known("candidates without replacement", rules.multi_draft, siblings()),
    Known("candidates with replacement", rules.multi_draft, siblings(replacement=True)),
    Known("tree", rules.tree, branching()),
]
WRONG = [Known(each.name, each.rule, each.propose, each.sharing, each) for each in ZOO]


def nearest(
    laws: Mapping[Pair, Mapping[Prefix, float]], subject: Subject, tolerance: float, candidates: list[Known]
) -> tuple[tuple[str, ...], float]:
    """The rules that emit the same on every pair, and 0; else the one nearest on the first, and how far it is off."""
    alike, first = candidates, next(iter(laws))
    for pair, law in laws.items():
        far = {known.name: total_variation(law, known.law(pair, subject)) for known in alike}
        alike = [known for known in alike if far[known.name] <= tolerance]
        if pair is first:
            best = min(far, key=lambda name: far[name])
            distance = far[best]
        if not alike:
            return (best,), distance
    return tuple(known.name for known in alike), 0.0


def likeliest(
    counts: Mapping[Pair, Mapping[Prefix, int]], subject: Subject, level: float, candidates: list[Known]
) -> tuple[tuple[str, ...], float]:
    """The rules that the counts do not refute at the level, the best first; else the nearest one, and its distance."""
    fit, alike, far = {}, set(), {}
    for known in candidates:
        laws = {pair: known.law(pair, subject) for pair in counts}
        tests = [g_of(counts[pair], laws[pair]) for pair in counts]
        fit[known.name] = sum(g for g, _ in tests)
        far[known.name] = max(total_variation(_shares(counts[pair]), laws[pair]) for pair in counts)
        if all(p_value(g, cells) >= level / len(tests) for g, cells in tests):
            alike.add(known.name)
    order = sorted(fit, key=lambda name: (fit[name], far[name]))
    return (tuple(name for name in order if name in alike), 0.0) if alike else ((order[0],), far[order[0]])


def candidates_for(subject: Subject, exact: bool, at_ends: bool = False) -> list[Known]:
    """Right rules or wrong ones. Of whole texts all right ones have one law; of a step none shows what steps share."""
    if exact:
        return [Known("a right rule", rules.token_wise)] if subject.whole else RIGHT
    # A rule that is wrong only where a number is 0 is recognised by this, not by its distribution.
    seen = [known for known in WRONG if (known.sharing is on_a_grid) is at_ends]
    return [known for known in seen if subject.whole or known.sharing is not by_position]


def _shares(counts: Mapping[Prefix, int]) -> dict[Prefix, float]:
    return {text: count / sum(counts.values()) for text, count in counts.items()}
