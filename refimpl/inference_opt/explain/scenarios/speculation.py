"""Scenarios of speculation: a step of the engine with drafts, and rules at work on distributions written down."""

import numpy as np

from inference_opt.engine.engine import Engine
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import Counts, arrivals, spell, toy
from inference_opt.lab.exactness.proposals import Model, Propose, Rule, branching, chain, siblings
from inference_opt.lab.exactness.zoo import DRAFT, TARGET
from inference_opt.sampling import Noise
from inference_opt.speculative import rules
from inference_opt.speculative.models import FirstLayers
from inference_opt.speculative.rules import Probs
from inference_opt.trace import Trace, watched

RULES = {rule.__name__: rule for rule in (rules.token_wise, rules.block, rules.coupled)}
MOST_NODES = 40  # of a tree that is shown


def speculative_step(
    prompt: str = "guess and check",
    new_tokens: int = 10,
    gamma: int = 3,
    temperature: float = 0.7,
    seed: int = 3,
    rule: str = "token_wise",
) -> Trace:
    """All drafts are read in one step, kept as far as they pass, and the pages of the others are given back.

    The drafter is the model's own first layer; the target has three.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r} judges drafts that are drawn: expected one of {', '.join(RULES)}")
    judge = RULES[rule]
    engine = Engine(
        toy(depth=3), radix=False, drafter=FirstLayers(1), gamma=gamma, page_size=2, num_pages=32, rule=judge
    )
    return _decode(engine, f"{prompt}: {new_tokens}", temperature, seed)


def tree_step(
    prompt: str = "try them all", new_tokens: int = 8, gamma: int = 6, temperature: float = 0.5, seed: int = 8
) -> Trace:
    """A tree of drafts in the engine: one step reads all its nodes, and the path that is kept becomes text.

    The nodes lie in consecutive slots. The keys and values of the path that is kept move to the first of these slots.
    """
    drafter = FirstLayers(3)
    engine = Engine(toy(depth=4), radix=False, drafter=drafter, gamma=gamma, page_size=2, num_pages=32, rule=rules.tree)
    return _decode(engine, f"{prompt}: {new_tokens}", temperature, seed)


def _decode(engine: Engine, prompt: str, temperature: float, seed: int) -> Trace:
    counts = Counts(engine)
    events = ("schedule.", "pool.", "engine.", "speculation.")
    with record(watch=[engine.scheduler, engine.pool, counts], label=spell, only=events) as trace:
        counts.requests = arrivals(engine, prompt, temperature=temperature, seed=seed)
        while engine.requests:
            engine.step()
    return trace


class Floats(Noise):
    """Noise that draws from fractions, too."""

    def choose(self, weights: Probs, i: int) -> int:
        """A token, drawn as `Noise` draws from floats."""
        return super().choose(np.array(weights, dtype=float), i)


def _judge(rule: Rule, draft: Model, gamma: int, seed: int, propose: Propose = chain) -> Trace:
    """Record one run of a rule, on drafts drawn from distributions that are written down, by seeded noise."""
    noise = Floats(seed, 0)
    drafting = Floats(seed, 0, lane=1)
    target, probs, tokens = propose(TARGET, draft, (), gamma, drafting.choose)
    if isinstance(tokens, dict):  # a tree whose nodes are drawn as they are asked for: ask for all
        paths: list[tuple[int, ...]] = [()]
        for path in paths:
            paths += [(*path, x) for x in tokens[path]]
    with record(label="abc".__getitem__, only="speculation.") as trace:
        watched(rule)(target, probs, tokens if isinstance(tokens, dict) else list(tokens), noise)
    return trace


def full_acceptance(gamma: int = 4, seed: int = 0) -> Trace:
    """A draft that is drawn from the target's own distribution is kept whole, and one token more costs nothing.

    p and q are equal, so p/q is 1 and every u lies below it.
    """
    return _judge(rules.token_wise, TARGET, gamma, seed)


def rejection(gamma: int = 4, seed: int = 10) -> Trace:
    """Rejection at the first token: all drafts after it are lost, and the residual makes up for it.

    u · q(x) is a point under the draft's bar, anywhere with equal chance; it is kept where it lies under p as well.
    """
    return _judge(rules.token_wise, DRAFT, gamma, seed)


def block_verification(gamma: int = 3, seed: int = 12) -> Trace:
    """The draft is judged as a whole: where one beginning fails, a longer one may still be kept.

    w carries over what earlier tokens had in excess; a beginning stays with probability h, decided by the number u.
    """
    return _judge(rules.block, DRAFT, gamma, seed)


def several_candidates(candidates: int = 3, seed: int = 10) -> Trace:
    """Several candidates for one position are tried in turn, each against what those before it left of p.

    They were drawn without replacement: q of each is the drafter's distribution, less the candidates before it.
    """
    return _judge(rules.multi_draft, DRAFT, candidates, seed, siblings())


def draft_tree(depth: int = 2, width: int = 2, seed: int = 10) -> Trace:
    """A tree of drafts: at every node, candidates are tried in turn, and the walk goes on below the one that is kept.

    The target has read all nodes at once. What is below a rejected candidate is never looked at.
    """
    if sum(min(width, 3) ** level for level in range(1, min(depth, 9) + 1)) > MOST_NODES:
        raise ValueError(
            f"a tree of depth {depth} and width {width} has more than {MOST_NODES} nodes, too many to show"
        )
    return _judge(rules.tree, DRAFT, depth, seed, branching(width))
