"""Scenarios of speculation: a step of the engine with drafts, and verdicts on laws that are written down."""

import numpy as np

from inference_opt.engine.engine import Engine
from inference_opt.sampling import Noise
from inference_opt.scenarios.toys import Counts, arrivals, spell, toy
from inference_opt.speculative import rules
from inference_opt.speculative.models import FirstLayers
from inference_opt.speculative.zoo import DRAFT, TARGET
from inference_opt.steps import Trace, record

RULES = {rule.__name__: rule for rule in (rules.token_wise, rules.coupled)}


def speculative_step(
    prompt: str = "guess and check",
    new_tokens: int = 10,
    gamma: int = 3,
    temperature: float = 0.7,
    seed: int = 3,
    rule: str = "token_wise",
) -> Trace:
    """Drafts are read all at once, kept as far as they pass, and the pages of the rest are given back.

    The drafter is the model's own first layer; the target has three.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r} judges drafts that are drawn: expected one of {', '.join(RULES)}")
    judge = RULES[rule]
    engine = Engine(
        toy(depth=3), radix=False, drafter=FirstLayers(1), gamma=gamma, page_size=2, num_pages=32, rule=judge
    )
    counts = Counts(engine)
    events = ("schedule.", "pool.", "engine.", "speculation.")
    with record(watch=[engine.scheduler, engine.pool, counts], label=spell, only=events) as trace:
        counts.requests = arrivals(engine, f"{prompt}: {new_tokens}", temperature=temperature, seed=seed)
        while engine.requests:
            engine.step()
    return trace


def _judge(temper: float, gamma: int, seed: int) -> Trace:
    """One verdict: drafts drawn from laws that lie between the target's and the drafter's."""
    text: tuple[int, ...] = ()
    noise, drafting = Noise(seed, 0), Noise(seed, 0, stream=1)
    target, draft, tokens = [np.array(TARGET(()), dtype=float)], [], []
    for i in range(gamma):
        q = (1 - temper) * target[-1] + temper * np.array(DRAFT(text), dtype=float)
        tokens.append(drafting.choose(q, i))
        text = (*text, tokens[-1])
        draft.append(q)
        target.append(np.array(TARGET(text), dtype=float))
    with record(label="abc".__getitem__) as trace:
        rules.token_wise(target, draft, tokens, noise)
    return trace


def full_acceptance(gamma: int = 4, seed: int = 0) -> Trace:
    """A draft that is drawn from the target's own law is kept whole, and one token more comes for free.

    Both laws are alike, so p/q is 1 and every u lies below it.
    """
    trace = _judge(0.0, gamma, seed)
    trace.ask(
        "speculation.bonus",
        "All drafts are kept. How many tokens does this one run of the target give?",
        "one more than there are drafts",
        ("as many as there are drafts", "one more than there are drafts"),
    )
    return trace


def rejection(gamma: int = 4, seed: int = 10) -> Trace:
    """Rejection at the first token: everything behind it goes, and the residual makes up for it.

    u · q(x) is a point under the draft's bar, anywhere with equal chance; it is kept where it lies under p as well.
    """
    trace = _judge(1.0, gamma, seed)
    if "speculation.replace" in trace.events():
        trace.ask(
            "speculation.replace",
            "From which law must the replacement be drawn, so that the whole comes out as p?",
            "from (p − q)⁺, what the target has in excess",
            ("from p", "from (p − q)⁺, what the target has in excess", "from p without the rejected token"),
        )
    return trace
