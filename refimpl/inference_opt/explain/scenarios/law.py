"""Scenarios of exactness: the distribution of what a rule emits, summed up path by path in rational numbers."""

from inference_opt.explain.record import record
from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.exact import output_law
from inference_opt.lab.exactness.proposals import Rule
from inference_opt.lab.exactness.zoo import table
from inference_opt.speculative import rules
from inference_opt.trace import Trace

TARGET = table(start="2 1", after_0="1 3", after_1="1 1")
DRAFT = table(start="1 1", after_0="1 1", after_1="3 1")


def _grow(rule: Rule, gamma: int, length: int) -> Trace:
    with record(label="ab".__getitem__, only="law.") as trace:
        output_law(TARGET, DRAFT, gamma, rule, length)
    return trace


def exact_law(gamma: int = 2, length: int = 2) -> Trace:
    """Every path of random outcomes is followed, and their sum is exactly the target's distribution.

    A path is a sequence of outcomes: the drafter draws, the number u is below p/q or not, a token is drawn.
    """
    return _grow(rules.token_wise, gamma, length)


def biased_rule(gamma: int = 2, length: int = 2) -> Trace:
    """A rule that looks right and is not: after a rejection it draws from p instead of the residual.

    The texts look fluent, and no single run shows the mistake. The sum over all paths does.
    """
    return _grow(mutants.no_residual, gamma, length)
