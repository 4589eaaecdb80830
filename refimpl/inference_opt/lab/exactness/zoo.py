"""The zoo: acceptance rules, drafters and noise that look right and are wrong, each with the right one.

Every entry says what is wrong, where it was met, and on which models its distribution is computed exactly:

    for each in ZOO: print(each.name, float(each.bias()), each.samples())

`bias` is the total variation between the distribution of the emitted texts and the target's; `samples` is the number of
texts that a statistical test (`gtest.py`) needs to find it.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Literal

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import Branching, every_path
from inference_opt.lab.exactness.exact import joint_law, total_variation
from inference_opt.lab.exactness.gtest import samples_needed
from inference_opt.lab.exactness.mutants import chain_of
from inference_opt.lab.exactness.noise_sharing import Sharing, by_position, independent, on_a_grid, same_stream
from inference_opt.lab.exactness.proposals import Model, Prefix, Propose, Rule, chain, siblings
from inference_opt.speculative import rules


def table(**rows: str) -> Model:
    """A model that looks at the last token: start="5 3 2" is (1/2, 3/10, 1/5); after_0 is the row after a 0."""
    weights = {name: [int(w) for w in text.split()] for name, text in rows.items()}

    def model(prefix: Prefix) -> tuple[Fraction, ...]:
        row = weights["start"] if not prefix else weights.get(f"after_{prefix[-1]}", weights["start"])
        return tuple(Fraction(w, sum(row)) for w in row)

    return model


# The pair of models for all entries that do not name another.
TARGET = table(start="5 3 2", after_0="2 5 3", after_1="3 2 5", after_2="5 3 2")
DRAFT = table(start="8 7 5", after_0="4 3 3", after_1="6 1 3", after_2="3 2 5")
# And a pair in which the target never emits a token that the draft proposes half of the time. All p / q are floats.
NEVER_0, OFTEN_0 = table(start="0 1 1"), table(start="2 1 1")


# What was found at its sources. Right: they only ask about it. Harmless: the code does it, but does not judge by q.
There = Literal["a bug", "right", "harmless", "lossy by design", "found here"]


@dataclass(frozen=True)
class Mutant:
    """One entry: how it drafts, judges and draws, and how it should."""

    name: str
    what: str  # is wrong
    sources: tuple[str, ...]  # where it was met, or asked about
    rule: Rule
    propose: Propose = chain
    sharing: Sharing = independent
    right_rule: Rule = rules.token_wise
    right_propose: Propose = chain
    right_sharing: Sharing = independent
    target: Model = TARGET
    draft: Model = DRAFT
    gamma: int = 2
    length: int = 3
    there: There = "a bug"

    @cache  # noqa: B019 (entries live as long as the module)
    def law(self) -> dict[Prefix, Fraction]:
        """The exact distribution of the first `length` tokens."""
        return self._law(self.rule, self.propose, self.sharing)

    def right_law(self) -> dict[Prefix, Fraction]:
        """The same for the right rule, drafter and noise."""
        return self._law(self.right_rule, self.right_propose, self.right_sharing)

    def true_law(self) -> dict[Prefix, Fraction]:
        """The target's own distribution."""
        return joint_law(self.target, self.length)

    def bias(self) -> Fraction:
        """Total variation between the emitted texts and the target's."""
        return total_variation(self.law(), self.true_law())

    def samples(self, alarm: float = 1e-3, power: float = 0.9) -> int:
        """How many texts a G-test needs to find it with probability `power`, with false alarms at the rate `alarm`."""
        return samples_needed(*self.compared(), alarm, power)

    def compared(self) -> tuple[list[float], list[float]]:
        """The target's probabilities and those of the entry, for the same texts, in the same order."""
        right, wrong = self.true_law(), self.law()
        texts = sorted({*right, *wrong})
        return [float(right.get(t, 0)) for t in texts], [float(wrong.get(t, 0)) for t in texts]

    def _law(self, rule: Rule, propose: Propose, sharing: Sharing) -> dict[Prefix, Fraction]:
        def decode(branching: Branching, text: Prefix, steps: int) -> Prefix:
            noise = sharing(branching)
            while len(text) < self.length and steps > 0:
                drafter, judge = noise(len(text))
                text = (*text, *rule(*propose(self.target, self.draft, text, self.gamma, drafter.choose), judge))
                steps -= 1
            return text[: self.length]

        # If steps share nothing, equal texts are added up after each. If they share noise, texts are run as a whole.
        steps = self.length if sharing is by_position else 1
        done: dict[Prefix, Fraction] = {}
        texts: dict[Prefix, Fraction] = {(): Fraction(1)}
        while texts:
            text = min(texts, key=len)
            weight = texts.pop(text)
            for longer, probability in every_path(partial(decode, text=text, steps=steps)):
                into = done if len(longer) == self.length else texts
                into[longer] = into.get(longer, Fraction(0)) + weight * probability
        return done


GITHUB = "https://github.com/"
ARXIV = "https://arxiv.org/abs/"


def _thread(*paths: str) -> tuple[str, ...]:
    return tuple(path if path.startswith("https") else GITHUB + path for path in paths)


ZOO = [
    Mutant(
        "argmax draft, softmax q",
        "the draft is always the most probable token, and is judged as if it had been drawn",
        _thread("jaymody/speculative-sampling/issues/3", "huggingface/transformers/issues/32867"),
        rules.token_wise,
        propose=chain_of(mutants.top(1), mutants.as_is),
        right_propose=chain_of(mutants.top(1), mutants.top(1)),
    ),
    Mutant(
        "top-k draft, raw q",
        "drafts are drawn after a top-k filter (here k = 2), and judged by the distribution before it",
        _thread("huggingface/transformers/issues/47932"),
        rules.token_wise,
        propose=chain_of(mutants.top(2), mutants.as_is),
        right_propose=chain_of(mutants.top(2), mutants.top(2)),
    ),
    Mutant(
        "cold draft, raw q",
        "drafts are drawn at temperature ½ and judged by the distribution at 1",
        _thread("huggingface/transformers/issues/47932"),
        rules.token_wise,
        propose=chain_of(mutants.cold, mutants.as_is),
        right_propose=chain_of(mutants.cold, mutants.cold),
    ),
    Mutant(
        "draft in low precision",
        "drafts are drawn from rounded logits and judged by exact ones",
        _thread("deepseek-ai/DeepSpec/issues/31"),
        rules.token_wise,
        propose=chain_of(mutants.coarse, mutants.as_is),
        right_propose=chain_of(mutants.coarse, mutants.coarse),
    ),
    Mutant(
        "beam search, q",
        "the draft is the most probable continuation, found by search, and is judged as if it had been drawn",
        _thread("apple/ml-recurrent-drafter/issues/6"),
        rules.token_wise,
        propose=mutants.beam,
        right_rule=rules.point_mass,
        right_propose=mutants.beam,
    ),
    Mutant(
        "unsure token dropped",
        "a token of low q ends the draft and is dropped: the other tokens were then drawn from another distribution",
        _thread("ikawrakow/ik_llama.cpp/pull/1820"),  # there drafts are compared, not judged by p / q
        rules.token_wise,
        propose=mutants.stop_early(keep=False),
        right_propose=mutants.stop_early(keep=True),
        there="harmless",
    ),
    Mutant(
        "no residual",
        "a rejected token is replaced by a draw from p",
        _thread("eth-sri/language-model-arithmetic/issues/14", "NJUNLP/MCSD/issues/5"),
        mutants.no_residual,
        there="right",
    ),
    Mutant(
        "residual at the token only",
        "q is subtracted from p at the rejected token only",
        _thread("SafeAILab/EAGLE/issues/20"),
        mutants.residual_at_the_token,
    ),
    Mutant(
        "softmax of the residual",
        "(p − q)⁺ goes through a softmax instead of being divided by its sum",
        _thread("huggingface/transformers/pull/28508"),
        mutants.softmax_residual,
    ),
    Mutant(
        "lenience ½",
        "a draft is accepted with probability min(1, 2 p / q); offered as lossy",
        _thread(ARXIV + "2211.17192"),
        mutants.lenient,
        there="lossy by design",
    ),
    Mutant(
        "typical acceptance",
        "a draft is accepted if its p is large enough; offered as lossy",
        _thread(ARXIV + "2401.10774", "vllm-project/vllm/pull/5131"),
        mutants.typical,
        there="lossy by design",
    ),
    Mutant(
        "one uniform number",
        "the generator is seeded again before every draw, so one number judges all positions",
        _thread("feifeibear/LLMSpeculativeSampling"),
        mutants.one_uniform,
    ),
    Mutant(
        "everything accepted",
        "all drafts count as accepted, or the number compared with p / q is always 0",
        _thread(
            "huggingface/transformers/pull/28508",
            "vllm-project/vllm-ascend/issues/13730",
            "vllm-project/vllm-ascend/pull/13766",
        ),
        mutants.accept_all,
    ),
    Mutant(
        "stale bonus",
        "after full acceptance the last token is drawn from the residual of the position before",
        _thread("SafeAILab/EAGLE/pull/47", "SafeAILab/EAGLE/issues/50"),
        mutants.stale_bonus,
    ),
    Mutant(
        "block, unscaled residual",
        "block verification that draws the replacement from (p − q)⁺ instead of (w p − q)⁺",
        _thread("vllm-project/vllm-ascend/pull/7808"),
        mutants.block_unscaled,
        right_rule=rules.block,
    ),
    Mutant(
        "siblings, original q",
        "candidates are drawn without replacement, and each is judged by q before any was taken",
        _thread("SafeAILab/EAGLE/issues/74"),
        rules.multi_draft,
        propose=mutants.original_q,
        right_rule=rules.multi_draft,
        right_propose=siblings(),
        there="right",
    ),
    Mutant(
        "draft and target share noise",
        "the replacement of a rejected draft is drawn with the noise that drew the draft",
        _thread("vllm-project/vllm/pull/47386", "vllm-project/vllm/pull/54282"),
        rules.token_wise,
        sharing=same_stream,
    ),
    Mutant(
        "block, noise by position",
        "block verification looks at drafts that it rejects, and their noise draws again for the same positions",
        (),  # found here, by enumeration: token_wise stays exact
        rules.block,
        sharing=by_position,
        right_rule=rules.token_wise,
        right_sharing=by_position,
        length=2,
        there="found here",
    ),
    Mutant(
        "u ≤ p / q, and u = 0",
        "one number in 2²⁴ is 0, and accepts a token that the target never emits",
        (),  # read in older kernels of vLLM and SGLang
        mutants.at_most,
        sharing=on_a_grid,
        right_sharing=on_a_grid,
        target=NEVER_0,
        draft=OFTEN_0,
    ),
]
