"""What each foreign sampler does, next to an enumeration of the rule that it should be, or turned out to be.

Two laws are compared for each: of what the foreign code emits, and of what a rule of ours emits, in fractions, on the
same pair of models. `bias` is the total variation of the foreign law from the target's own text, `difference` that
between the two laws. A finding stands where the difference is rounding and the bias is not.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import every_path
from inference_opt.lab.exactness.exact import joint_law, step_law, total_variation
from inference_opt.lab.exactness.foreign import mlx_samplers, torch_samplers, transformers_samplers, triton_samplers
from inference_opt.lab.exactness.foreign.sources import Checkout, Missing, Wheel
from inference_opt.lab.exactness.foreign.toys import whole
from inference_opt.lab.exactness.gtest import g_statistic, p_value
from inference_opt.lab.exactness.kit.integrate import integrate
from inference_opt.lab.exactness.noise_sharing import OnAGrid, by_position, same_stream
from inference_opt.lab.exactness.proposals import Model, Prefix, Propose, Rule, chain, siblings
from inference_opt.lab.exactness.zoo import DRAFT, NEVER_0, OFTEN_0, TARGET, Mutant, table
from inference_opt.speculative import rules

ROUNDING = 1e-5  # what float32 code may be off
Law = Mapping[Prefix, Any]


@dataclass(frozen=True)
class Finding:
    """One row: a sampler in one of its modes."""

    sampler: str
    version: str
    sha256: str
    mode: str
    verdict: str  # exact, biased, lossy by design; "control, …" where it was handed something wrong on purpose
    bias: float
    enumerated_as: str
    enumerated_bias: float
    difference: float
    method: str
    accepted: float | None = None  # drafts a step, on average
    zero_passes: bool | None = None  # does u = 0 let a token pass that the target never says?
    thread: str = ""
    samples: int | None = None
    p_of_target: float | None = None  # the counts' p value, if the target's law were the truth
    p_of_enumeration: float | None = None


def continued(law: Law, target: Model, length: int) -> dict[Prefix, Fraction]:
    """A step's law, each text continued by the target itself to the length."""
    texts: dict[Prefix, Fraction] = defaultdict(Fraction)
    for text, weight in law.items():
        rest = joint_law(behind(target, text), max(0, length - len(text)))
        for more, p in rest.items():
            texts[(*text, *more)[:length]] += Fraction(weight) * p
    return texts


def behind(target: Model, text: Prefix) -> Model:
    """The target, as a model of what follows a text."""
    return lambda more: target((*text, *more))


def found(
    source: Wheel | Checkout | None,
    mode: str,
    law: Law,
    ours: Law,
    enumerated_as: str,
    *,
    target: Model = TARGET,
    length: int = 3,
    method: str = "every path",
    lossy: bool = False,
    control: bool = False,  # handed something wrong on purpose: what comes out must be biased
    **more: Any,
) -> Finding:
    """Compare the law of a sampler, and that of our rule, with the target's text and with each other."""
    right = joint_law(target, length)
    exact = {text: Fraction(p) for text, p in law.items()}
    bias = float(total_variation(continued(exact, target, length), right))
    verdict = "exact" if bias < ROUNDING else "lossy by design" if lossy else "biased"
    verdict = f"control, {verdict}" if control else verdict
    return Finding(
        *name(source),
        mode,
        verdict,
        bias,
        enumerated_as,
        float(total_variation(continued(ours, target, length), right)),
        float(total_variation(exact, dict(ours))),
        method,
        **more,
    )


def name(source: Wheel | Checkout | None) -> tuple[str, str, str]:
    """Project, version, hash; None is the installed transformers."""
    if source is None:
        version = transformers_samplers.installed().__version__
        return "transformers", version, "installed"
    return source.project, source.version, source.sha256


def accepted(law: Law) -> float:
    """Drafts accepted in a step."""
    return float(sum(Fraction(p) * (len(text) - 1) for text, p in law.items()))


def rule_law(rule: Rule, propose: Propose = chain, gamma: int = 2) -> dict[Prefix, Fraction]:
    """A step behind the empty text, on the zoo's pair."""
    return step_law(TARGET, DRAFT, gamma, rule, (), propose)


def kit_law(sampler: Callable[..., Any], gamma: int = 2) -> dict[Prefix, float]:
    """The same of a sampler that takes numbers, integrated."""

    def program(uniforms: Any) -> Prefix:
        tokens: list[int] = []
        qs = []
        for _ in range(gamma):
            qs.append(np.array([float(q) for q in DRAFT(tuple(tokens))]))
            tokens.append(uniforms.choose(qs[-1]))
        ps = [np.array([float(p) for p in TARGET(tuple(tokens[:i]))]) for i in range(gamma + 1)]
        return tuple(int(x) for x in sampler(qs, ps, tokens, uniforms))

    return integrate(program).probability


def text_law(program: Callable[[Any], Prefix]) -> dict[Prefix, Fraction]:
    """Of a whole loop, every path."""
    law: dict[Prefix, Fraction] = defaultdict(Fraction)
    for text, p in every_path(program):
        law[text] += p
    return dict(law)


def zero_passes(rule: Rule) -> bool:
    """Does a number that is exactly 0 let a token pass that the target never says? On the grid of 24 bits."""
    handed = [np.array(model(()), dtype=object) for model in (NEVER_0, OFTEN_0)]
    paths = every_path(lambda rng: rule([handed[0], handed[0]], [handed[1]], [0], OnAGrid(rng)))
    return any(emitted[0] == 0 for emitted, p in paths if p > 0)


def synthetic(rates: list[Fraction]) -> Rule:
    """Drafts pass at made-up rates; a rejection draws from the residual. Nothing is claimed of the text."""

    def rule(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
        emitted: list[int] = []
        for i, x in enumerate(tokens):
            if not rng.uniform(i) < rates[i]:
                return [*emitted, rng.choose(rules.residual(target[i], draft[i]), i)]
            emitted.append(x)
        return [*emitted, rng.choose(target[len(emitted)], len(emitted))]

    return rule


def bonus_at_temperature_one(temperature: float) -> Rule:
    """Siblings without replacement, right up to the last token: that is drawn without the temperature."""

    def rule(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
        winner, rest = rules.try_all(target[0], draft, tokens, rng, 0)
        if winner is None:
            return [rng.choose(rest, 0)]
        bonus = np.array([Fraction(float(p) ** temperature) for p in target[winner + 1]], dtype=object)  # ✗
        return [tokens[winner], rng.choose(bonus, 1)]

    return rule


def likeliest(target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Any) -> Any:
    """The gamma likeliest tokens of one position, in order: found, not drawn."""
    return siblings()(target, draft, prefix, gamma, lambda q, i: int(np.argmax(q.astype(float))))


def one_after_the_other(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
    """`multi_draft` with q a point mass at every candidate."""
    points = []
    for x in tokens:
        points.append(np.array([Fraction(int(v == x)) for v in range(len(target[0]))], dtype=object))
    return rules.multi_draft(target, points, tokens, rng)


def in_bfloat16(q: Any) -> Any:
    """What torch draws from, where logits are bfloat16."""
    return _fractions(torch.tensor([float(x) for x in q]).log().bfloat16().softmax(-1))


def of_bfloat16(q: Any) -> Any:
    """What the same logits say in float32."""
    return _fractions(torch.tensor([float(x) for x in q]).log().bfloat16().float().softmax(-1))


def _fractions(row: torch.Tensor) -> Any:
    exact = np.array([Fraction(x) for x in row.tolist()], dtype=object)
    return exact / exact.sum()


def marginals(scored: str) -> Propose:
    """A block whose positions do not see each other: drawn from their marginals ("independent"), likeliest ("argmax"),
    or drawn by the draft model token by token and reported as marginals ("joint")."""

    def propose(target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Any) -> Any:
        rows: list[Any] = []
        for i in range(gamma):
            texts = joint_law(lambda more: draft((*prefix, *more)), i + 1)
            rows.append(np.array([sum(p for t, p in texts.items() if t[-1] == v) for v in range(3)], dtype=object))
        tokens: list[int] = []
        for i in range(gamma):
            drawn = np.array(draft((*prefix, *tokens)), dtype=object) if scored == "joint" else rows[i]
            tokens.append(int(np.argmax(rows[i].astype(float))) if scored == "argmax" else choose(drawn, i))
            if scored == "argmax":
                rows[i] = np.array([Fraction(int(v == tokens[i])) for v in range(3)], dtype=object)
        ps = [np.array(target((*prefix, *tokens[:i])), dtype=object) for i in range(gamma + 1)]
        return ps, rows, tokens

    return propose


def gpt_fast() -> list[Finding]:
    """Whole steps."""
    law = rule_law(torch_samplers.gpt_fast(), whole)
    right = rule_law(rules.token_wise)
    return [found(torch_samplers.GPT_FAST, "speculative_decode", law, right, "token_wise", accepted=accepted(law))]


def deepspec() -> list[Finding]:
    """Whole steps: float32, bfloat16, with the confidence cut."""
    source, right = torch_samplers.DEEPSPEC, rule_law(rules.token_wise)
    law = rule_law(torch_samplers.deepspec(), whole)
    low = rule_law(torch_samplers.deepspec(torch.bfloat16), whole)
    mutant = rule_law(rules.token_wise, mutants.chain_of(in_bfloat16, of_bfloat16))
    cut = rule_law(torch_samplers.deepspec(confidence=lambda before: 0.9 if before in (0, 3) else 0.2), whole)
    shorter = rule_law(rules.token_wise, cut_before(lambda before: before in (0, 3)))
    return [
        found(source, "DSpark, float32 logits", law, right, "token_wise", accepted=accepted(law)),
        found(source, "DSpark, bfloat16 logits", low, mutant, "draft in low precision", thread="DeepSpec#31"),
        found(
            source,
            "DSpark, confidence cut",
            cut,
            shorter,
            "token_wise, stopped by earlier tokens",
            thread="vllm#48202",
            accepted=accepted(cut),
        ),
    ]


def cut_before(sure: Callable[[int], bool]) -> Propose:
    """A chain that ends before the first token whose predecessor makes the drafter unsure."""

    def propose(target: Model, draft: Model, prefix: Prefix, gamma: int, choose: Any) -> Any:
        tokens: list[int] = []
        while len(tokens) < gamma and sure([3, *prefix, *tokens][-1]):
            tokens.append(choose(np.array(draft((*prefix, *tokens)), dtype=object), len(tokens)))
        return chain(target, draft, prefix, len(tokens), lambda q, i: tokens[i])

    return propose


def dflash() -> list[Finding]:
    """Its rule with right drafts, with each way to draft a block, and with a token dropped after it was seen."""
    source, rule = torch_samplers.DFLASH, torch_samplers.dflash()
    zero = zero_passes(rule)
    law = rule_law(rule)
    rows = [
        found(source, "torch", law, rule_law(rules.token_wise), "token_wise", accepted=accepted(law), zero_passes=zero)
    ]
    for scored in ("independent", "argmax", "joint"):
        law = rule_law(rule, marginals(scored))
        ours = rule_law(rules.token_wise, marginals(scored))
        mode = f"torch, block drafted: {scored}"
        rows.append(
            found(
                source,
                mode,
                law,
                ours,
                "token_wise",
                accepted=accepted(law),
                thread="dflash#169",
                control=scored == "joint",
            )
        )
    for keep in (True, False):
        propose = mutants.stop_early(keep)
        law, ours = rule_law(rule, propose), rule_law(rules.token_wise, propose)
        mode = f"torch, draft ends at an unsure token, which is {'kept' if keep else 'dropped'}"
        rows.append(found(source, mode, law, ours, "token_wise", thread="vllm#48202", control=not keep))
    return rows


def eagle() -> list[Finding]:
    """Both verifications: of drawn candidates (2024), of the likeliest (today)."""
    old, new = torch_samplers.EAGLE_1, torch_samplers.EAGLE_3
    rows = [
        found(
            new,
            "evaluate_posterior, likeliest candidates",
            rule_law(torch_samplers.eagle_3(), likeliest),
            rule_law(one_after_the_other, likeliest),
            "multi_draft, point masses",
            length=2,
        )
    ]
    for temperature, ours in ((1.0, rules.multi_draft), (0.5, bonus_at_temperature_one(0.5))):
        law = rule_law(torch_samplers.eagle_1(temperature), siblings())
        as_ = "multi_draft" if temperature == 1 else "last token drawn without the temperature"
        mode = f"evaluate_posterior, drawn candidates, temperature {temperature:g}"
        rows.append(found(old, mode, law, rule_law(ours, siblings()), as_, length=2))
    return rows


def mlx() -> list[Finding]:
    """MLX-LM whole, dflash's MLX rule by numbers."""
    law = text_law(mlx_samplers.mlx_lm(TARGET, DRAFT, 2))
    rows = [
        found(mlx_samplers.MLX_LM, "speculative_generate_step", law, joint_law(TARGET, 2), "plain decoding", length=2)
    ]
    numbers = kit_law(mlx_samplers.dflash_mlx())
    right = rule_law(rules.token_wise)
    more: dict[str, Any] = {"method": "numbers, integrated", "accepted": accepted(numbers)}
    rows.append(found(torch_samplers.DFLASH, "MLX", numbers, right, "token_wise", **more))
    return rows


def transformers() -> list[Finding]:
    """`generate` of the installed release, and three drafters of three releases."""
    right = joint_law(TARGET, 3)
    rows = []
    settings: dict[str, Any] = {}
    for mode in ("assistant", "assistant, confidence cut at 0.4"):
        settings = {"confidence": 0.4} if "cut" in mode else {}
        law = text_law(transformers_samplers.assisted(TARGET, DRAFT, 3, **settings))
        thread = "vllm#48202" if settings else ""
        rows.append(found(None, f"generate, {mode}", law, right, "plain decoding", thread=thread))
    settings = {"prompt_lookup_num_tokens": 2, "prompt": [3, 0, 1, 2, 0]}
    law = text_law(transformers_samplers.assisted(TARGET, None, 2, **settings))
    after_0 = behind(TARGET, (0,))
    rows.append(
        found(None, "generate, prompt lookup", law, joint_law(after_0, 2), "plain decoding", target=after_0, length=2)
    )
    for source in (transformers_samplers.BEFORE, None, transformers_samplers.AFTER):
        try:
            rows += drafters(source)
        except Missing:
            continue
    return rows


def drafters(source: Wheel | None) -> list[Finding]:
    """What two drafters report of what they drew, judged by the installed verification."""

    def best_two(p: Any) -> Any:
        kept = np.zeros(len(p))
        order = np.argsort(-p.astype(float))[:2]
        kept[order] = p[order]
        return kept / kept.sum()

    filtered: Model = lambda text: list(mutants.top(2)(np.array(TARGET(text), dtype=object)))  # noqa: E731
    step = transformers_samplers.drafted_and_verified(transformers_samplers.dflash_drafter(source, 2), best_two)
    law = step_law(TARGET, DRAFT, 1, step, (), whole)
    told = step_law(filtered, DRAFT, 1, rules.token_wise, (), mutants.chain_of(mutants.top(2), mutants.top(2)))
    raw = step_law(filtered, DRAFT, 1, rules.token_wise, (), mutants.chain_of(mutants.top(2), mutants.as_is))
    honest = total_variation(law, told) < total_variation(law, raw)
    ours, as_ = (told, "token_wise") if honest else (raw, "top-k draft, raw q")
    thread = "transformers#47932"
    rows = [found(source, "DFlash drafter, top-k 2", law, ours, as_, target=filtered, length=2, thread=thread)]
    drafter = transformers_samplers.single_position_drafter(source)
    law = rule_law(transformers_samplers.drafted_and_verified(drafter, lambda p: p), whole, gamma=1)
    ours = rule_law(rules.token_wise, mutants.chain_of(mutants.top(1), mutants.as_is), gamma=1)
    mode = "single-position drafter, sampled"
    return [*rows, found(source, mode, law, ours, "argmax draft, softmax q", length=2, thread=thread)]


def vllm() -> list[Finding]:
    """Both runners of the release of today, in their modes."""
    source, method = triton_samplers.VLLM, "numbers, integrated"
    rates = [0.5, 0.5]
    made = synthetic([Fraction(1, 2)] * 2)
    rows = []
    for mode, sampler, ours, as_, thread in (
        ("runner 1", triton_samplers.vllm_v1(), rules.token_wise, "token_wise", ""),
        ("runner 1, q withheld", triton_samplers.vllm_v1(told=False), rules.point_mass, "point_mass", "vllm#40149"),
        ("runner 1, synthetic", triton_samplers.vllm_v1(synthetic=rates), made, "made-up acceptance", ""),
        ("runner 2", triton_samplers.vllm_v2(), rules.token_wise, "token_wise", ""),
        ("runner 2, q withheld", triton_samplers.vllm_v2(told=False), rules.point_mass, "point_mass", "vllm#40149"),
        ("runner 2, block", triton_samplers.vllm_v2(block=True), rules.block, "block", ""),
        ("runner 2, synthetic", triton_samplers.vllm_v2(synthetic=rates), made, "made-up acceptance", ""),
    ):
        gamma = 2 if mode in ("runner 1", "runner 2", "runner 2, block") else 1  # the interpreter is slow
        law = kit_law(sampler, gamma)
        more: dict[str, Any] = {"method": method, "accepted": accepted(law), "thread": thread}
        rows.append(found(source, mode, law, rule_law(ours, gamma=gamma), as_, lossy="synthetic" in mode, **more))
    return rows


def sglang() -> list[Finding]:
    """Its chain kernel, token by token and in blocks."""
    rows = []
    for block, ours in ((False, rules.token_wise), (True, rules.block)):
        law = kit_law(triton_samplers.sglang_chain(block))
        mode = "chain kernel, block" if block else "chain kernel"
        more: dict[str, Any] = {"method": "numbers, integrated", "accepted": accepted(law)}
        rows.append(found(triton_samplers.SGLANG, mode, law, rule_law(ours), ours.__name__, **more))
    return rows


# The pairs on which shared noise shows in the fewest samples, found by search.
SHARED = Mutant(
    "draft and target share noise",
    "",
    (),
    rules.token_wise,
    sharing=same_stream,
    target=table(start="1 16 8"),
    draft=table(start="16 16 1"),
    gamma=1,
    length=1,
)
BY_POSITION = Mutant(
    "block, noise by position",
    "",
    (),
    rules.block,
    sharing=by_position,
    target=table(start="8 8", after_0="1 1", after_1="1 8"),
    draft=table(start="1 8", after_0="4 4", after_1="8 8"),
    gamma=2,
    length=2,
)


def vllm_noise(samples: int = 2000) -> list[Finding]:
    """The second runner's own noise, before and after it was made independent: by samples."""
    rows = []
    for mutant, thread, block, sources in (
        (SHARED, "vllm#54282, vllm#47386", False, (triton_samplers.VLLM_BEFORE, triton_samplers.VLLM)),
        (BY_POSITION, "", True, (triton_samplers.VLLM_BETWEEN, triton_samplers.VLLM)),
    ):
        for source in sources:
            try:
                step = triton_samplers.vllm_v2_seeded(source, block)
            except Missing:
                continue
            rows.append(_sampled(mutant, step, source, block, thread, samples if not block else samples // 4))
    return rows


def _sampled(mutant: Mutant, step: Any, source: Wheel, block: bool, thread: str, samples: int) -> Finding:
    texts: list[Prefix] = [()] * samples
    while short := [i for i, text in enumerate(texts) if len(text) < mutant.length]:
        behind = [texts[i] for i in short]
        for i, emitted in zip(
            short, step(mutant.target, mutant.draft, behind, mutant.gamma, [7919 + i for i in short])
        ):
            texts[i] = (*texts[i], *emitted)[: mutant.length]
    counts = Counter(texts)
    right, wrong = mutant.compared()
    cells = sorted({*mutant.true_law(), *mutant.law()})
    observed = [counts[text] for text in cells]
    p_right, p_wrong = (p_value(g_statistic(observed, law), len(cells)) for law in (right, wrong))
    share = np.array(observed) / samples
    biased = p_right < 1e-3
    return Finding(
        *name(source),
        f"runner 2{', block' if block else ''}, its own noise, whole text",
        "biased" if biased else "no bias seen",
        float(np.abs(share - np.array(right)).sum() / 2),
        mutant.name if biased else "plain decoding",
        float(mutant.bias()) if biased else 0.0,
        float(np.abs(share - np.array(wrong if biased else right)).sum() / 2),
        "samples",
        thread=thread,
        samples=samples,
        p_of_target=p_right,
        p_of_enumeration=p_wrong,
    )


ALL: dict[str, Callable[[], list[Finding]]] = {
    "transformers": transformers,
    "gpt-fast": gpt_fast,
    "DeepSpec": deepspec,
    "dflash": dflash,
    "EAGLE": eagle,
    "MLX": mlx,
    "SGLang": sglang,
    "vLLM": vllm,
    "vLLM's noise": vllm_noise,
}
SOURCES = (
    torch_samplers.DFLASH,
    torch_samplers.EAGLE_1,
    mlx_samplers.MLX_LM,
    *mlx_samplers.MLX,
    transformers_samplers.BEFORE,
    transformers_samplers.AFTER,
    triton_samplers.SGLANG,
    triton_samplers.VLLM,
    triton_samplers.VLLM_BEFORE,
    triton_samplers.VLLM_BETWEEN,
)
NOT_RUN = {
    "llama.cpp": "its binding is published as sources only, and would have to be compiled",
    "SGLang, tree": "the kernel is CUDA, in sgl_kernel; it has no CPU version",
    "gpt-fast, newest": "at 32971d3 speculative decoding stops with an error (gpt-fast#209); judged at bc04265",
}


def judge_all(names: tuple[str, ...] = tuple(ALL), say: Callable[[str], None] = print) -> dict[str, Any]:
    """All of them: {"findings": […], "skipped": {name: reason}}."""
    findings: list[dict[str, Any]] = []
    skipped = dict(NOT_RUN)
    for each in names:
        try:
            for finding in ALL[each]():
                row = {key: value for key, value in asdict(finding).items() if value not in (None, "")}
                findings.append({"project": each, **row})
                say(f"{finding.sampler} {finding.version}, {finding.mode}: {finding.verdict}, {finding.bias:.2g}")
        except Missing as reason:
            skipped[each] = str(reason)
            say(f"{each}: skipped, {reason}")
    return {"findings": findings, "skipped": skipped}
