"""Scenarios: real code on small input, recorded; what `inference-opt step` and the notebooks play.

    trace = play("diverging-insert")                 # a Trace
    trace = play("page-pool", page_size=2)           # the same on other input

A scenario is a function whose parameters, all with defaults, are what a reader may edit. What the player asks in it, a
function of the same name in `questions.py` says.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference_opt.explain.scenarios import (
    decoding,
    kernels,
    latent,
    law,
    pages,
    questions,
    schedule,
    speculation,
    tree,
)
from inference_opt.trace import Trace


@dataclass(frozen=True)
class Scenario:
    """A function that records, and what it is called."""

    name: str
    run: Callable[..., Trace]

    @property
    def sentence(self) -> str:
        """What there is to see."""
        return (inspect.getdoc(self.run) or "").split("\n")[0]

    @property
    def about(self) -> str:
        """The rest of what is said of it."""
        return " ".join((inspect.getdoc(self.run) or "").split("\n")[1:]).strip()

    @property
    def parameters(self) -> dict[str, Any]:
        """What may be edited: {name: default}."""
        return {name: each.default for name, each in inspect.signature(self.run).parameters.items()}


RUNS: tuple[Callable[..., Trace], ...] = (
    decoding.naive_decoding,
    decoding.kv_cache,
    pages.page_pool,
    pages.paged_attention,
    tree.diverging_insert,
    tree.sglang_tree,
    schedule.continuous_batching,
    schedule.equal_prompts,
    schedule.preemption,
    latent.latent_attention,
    speculation.speculative_step,
    speculation.full_acceptance,
    speculation.rejection,
    speculation.block_verification,
    speculation.several_candidates,
    speculation.draft_tree,
    speculation.tree_step,
    law.exact_law,
    law.biased_rule,
    kernels.pieces_of_attention,
)
SCENARIOS = {name: Scenario(name, run) for run in RUNS for name in [run.__name__.replace("_", "-")]}


def play(name: str, **changes: Any) -> Trace:
    """Record a scenario. ValueError for one that there is not, and for parameters that it has not."""
    if name not in SCENARIOS:
        raise ValueError(f"there is no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    scenario = SCENARIOS[name]
    if unknown := set(changes) - set(scenario.parameters):
        known = ", ".join(scenario.parameters)
        raise ValueError(f"scenario {name!r} has no {', '.join(sorted(unknown))}; what may be changed: {known}")
    if not 0 <= (seed := changes.get("seed", 0)) < 2**63:
        raise ValueError(f"seed must be a whole number of at least 0 and below 2^63, got {seed}")
    trace = scenario.run(**changes)
    if not trace.steps:
        raise ValueError(f"scenario {name!r} recorded no step on this input")
    ask = getattr(questions, scenario.run.__name__, None)
    if ask and not trace.cut:
        ask(trace)
    trace.title, trace.about = scenario.sentence.rstrip("."), trace.about or scenario.about
    return trace
