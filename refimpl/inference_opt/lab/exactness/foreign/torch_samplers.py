"""Samplers written in plain torch: gpt-fast, DeepSpec, dflash, EAGLE; every path of them is run.

Each function here gives a rule: (target, draft, tokens, rng) → what is emitted. Whole steps, which draft by themselves,
get the models, and (prefix, gamma) in place of the tokens (see `toys.whole`).
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from inference_opt.lab.exactness.foreign.scripted import scripted
from inference_opt.lab.exactness.foreign.sources import Checkout, Wheel, load
from inference_opt.lab.exactness.foreign.toys import Toy, logits, tensor

GPT_FAST = Checkout(
    "pytorch-labs/gpt-fast",
    "bc04265df30c7b927d38f34198e0e33a63cb893e",
    {"generate.py": "ac3603db88518ff8f987d73922f5410efb14bf7ab3996e28053bdda86e88a924"},
)
DEEPSPEC = Checkout(
    "deepseek-ai/DeepSpec",
    "afdfa7c9382a3341a3e6f17756dd816da79f132c",
    {
        "deepspec/eval/base_evaluator.py": "137098951c15816f79c0ba433132709fabbda5ac2bf081e20461fc08ad753977",
        "deepspec/utils/sampling.py": "8f8ff58387e70526452672372628d1b2fbacb778a89f1a46abc9e2b7639d215a",
        "deepspec/eval/dspark/draft_ops.py": "9d07a301fa643ee3b558a093647ff3db2918a47c96267d3546081eb9df44b799",
        "deepspec/modeling/dspark/markov_head.py": "6659bcdc12d923d4fc16cc2280c03078c2110a4792305e1f3f42b5468f75ef46",
    },
)
DFLASH = Wheel(
    "dflash",
    "0.1.0",
    "dflash-0.1.0-py3-none-any.whl",
    "b3fe38d9413efc30a952c8b38b34f1dcc696ba6d7b865acbf540a34cc53afaa2",
    1,
)
EAGLE_1 = Wheel(
    "eagle-llm",
    "1.2.1",
    "eagle_llm-1.2.1-py3-none-any.whl",
    "e4a6d611a16d05ecee1f8afb24ce86f7d64b07a39999739309c51615313480ec",
    1,
)
EAGLE_3 = Checkout(
    "SafeAILab/EAGLE",
    "cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b",
    {"eagle/model/utils.py": "68dadf1977dd76624f87d0dc5ce9f840783ccaeb7554861f1206daa664367fe9"},
)
Sampler = Callable[[Any, Any, Any, Any], list[int]]


def gpt_fast(**sampling: Any) -> Sampler:
    """`speculative_decode` of gpt-fast, whole: it drafts, verifies and draws."""
    [module] = load(GPT_FAST, "generate", stubs=("model", "tokenizer"))

    def step(target: Any, draft: Any, where: Any, rng: Any) -> list[int]:
        prefix, gamma = where

        def forward(toy: Toy) -> Any:
            return lambda x, position: toy(x[0].tolist(), int(position.reshape(-1)[0]))[None]

        models = [forward(Toy(model, prefix)) for model in (target, draft)]
        last = torch.tensor([[len(target(())), *prefix][-1]])
        with scripted(rng):
            out = module.speculative_decode(*models, last, len(prefix), gamma, temperature=1.0, **sampling)
        return out.reshape(-1).tolist()

    return step


def deepspec(dtype: torch.dtype = torch.float32, confidence: Any = None) -> Sampler:
    """DeepSpec's evaluation, whole: the DSpark block by its Markov head, the confidence cut, the verification.

    `dtype`: of the draft's logits. `confidence`: (token before, threshold of the cut) → a number in [0, 1], or None.
    """
    evaluator, markov, drafting = load(
        DEEPSPEC,
        "deepspec.eval.base_evaluator",
        "deepspec.modeling.dspark.markov_head",
        "deepspec.eval.dspark.draft_ops",
        real=("deepspec.utils.sampling",),
        stubs=("datasets", "prettytable", "tqdm", "transformers"),
    )

    def step(target: Any, draft: Any, where: Any, rng: Any) -> list[int]:
        prefix, gamma = where
        text = [len(target(())), *prefix]

        def bias(tokens: torch.Tensor) -> torch.Tensor:  # the head looks at the token before, as the toy does
            ends = [() if x == text[0] else (x,) for x in tokens.reshape(-1).tolist()]
            return torch.stack([logits(draft, end) for end in ends]).to(dtype)

        head = SimpleNamespace(apply_step_logits=lambda flat, token_ids, hidden_states: flat + bias(token_ids))
        sure = confidence or (lambda before: 1.0)
        model = SimpleNamespace(
            compute_logits=lambda hidden: torch.zeros(1, gamma, len(text[:1]) + text[0], dtype=dtype),
            sample_draft_tokens=lambda base, **kw: markov.VanillaMarkov.sample_block_tokens(head, base, **kw),
            confidence_head=confidence,
            predict_confidence_step=lambda hidden, prev_token_ids: torch.tensor(
                [[[sure(x)] for x in prev_token_ids[0].tolist()]]
            ).logit(),
        )
        verifier = Toy(target, prefix)

        def forward(input_ids: torch.Tensor, **kw: Any) -> Any:
            return SimpleNamespace(logits=verifier(input_ids[0].tolist(), len(prefix))[None])

        with scripted(rng):
            proposal = drafting.build_dspark_proposal(
                model,
                draft_input_ids=torch.tensor([text[-1:]]),
                block_hidden=torch.zeros(1, gamma, 1),
                block_size=gamma,
                temperature=1.0,
                confidence_threshold=0.5,
            )
            result = evaluator.verify_draft_tokens(
                target_model=forward,
                proposal=proposal,
                position_ids=torch.arange(99)[None],
                start=len(prefix),
                past_key_values_target=None,
                temperature=1.0,
                max_proposal_tokens=gamma,
            )
        return result.committed_tokens[0].tolist()

    return step


def dflash() -> Sampler:
    """dflash's rejection sampling, torch version; the drafts are ours, and so is what it is told of them."""
    [module] = load(DFLASH, "dflash.model")

    def rule(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
        tokens = list(tokens)
        if not tokens:  # its loop then draws from the target
            return [rng.choose(target[0], 0)]
        with scripted(rng):
            accepted, last = module._rejection_sample(
                torch.tensor([tokens]),
                torch.stack([tensor(p) for p in target])[None],
                torch.stack([tensor(q) for q in draft])[None],
            )
        return [*tokens[:accepted], int(last)]

    return rule


def eagle_3() -> Sampler:
    """EAGLE's verification of today, of candidates that are the likeliest of a node, not drawn."""
    [module] = load(EAGLE_3, "eagle.model.utils")

    def rule(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
        tokens = list(tokens)
        candidates = torch.tensor([[0, x] for x in tokens])
        behind = [torch.stack([tensor(target[0]), tensor(target[j + 1])]).log() for j in range(len(tokens))]
        with scripted(rng):
            best, accepted, p = module.evaluate_posterior(torch.stack(behind), candidates, lambda ids, scores: scores)
            last = torch.multinomial(p, 1)
        return [*candidates[best, 1 : accepted + 1].tolist(), int(last)]

    return rule


def eagle_1(temperature: float = 1.0) -> Sampler:
    """EAGLE's verification as released in 2024: candidates drawn without replacement, each with its conditional q.

    The target's distributions are those at the temperature: the logits handed in are multiplied by it, and EAGLE's own
    warper divides by it.
    """
    [module] = load(EAGLE_1, "eagle.model.utils")

    def rule(target: Any, draft: Any, tokens: Any, rng: Any) -> list[int]:
        tokens = list(tokens)
        count = len(tokens)
        candidates = torch.tensor([[0, x] for x in tokens])
        behind = [torch.stack([tensor(target[0]), tensor(target[j + 1])]).log() for j in range(count)]
        conditional = torch.tensor([[1.0, float(draft[j][x])] for j, x in enumerate(tokens)])
        with scripted(rng):
            best, accepted, p = module.evaluate_posterior(
                torch.stack(behind) * temperature,
                candidates,
                lambda ids, scores: scores / temperature,
                conditional,
                [tensor(draft[0])[None]],
                [[-1, 0]] * count,  # which row of q a candidate was drawn from
                torch.tensor([[0, *tokens]]),
                [[[], list(range(1, j + 1))] for j in range(count)],  # its earlier siblings
            )
            last = torch.multinomial(p, 1)
        return [*candidates[best, 1 : accepted + 1].tolist(), int(last)]

    return rule
