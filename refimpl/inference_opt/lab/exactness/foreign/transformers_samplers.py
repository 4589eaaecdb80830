"""Transformers' assisted generation: `generate` as it is, with toy models; and what its drafters report.

The installed release is judged whole. Of others, the files of their drafters are taken from their wheels: what a
drafter draws from, and what it hands to the verification as q.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from inference_opt.lab.exactness.foreign.scripted import scripted
from inference_opt.lab.exactness.foreign.sources import Missing, Wheel, load
from inference_opt.lab.exactness.foreign.toys import logits, tensor

BEFORE = Wheel(
    "transformers",
    "5.15.0",
    "transformers-5.15.0-py3-none-any.whl",
    "d7f007736f67749ae9490c4f8cb5d30b452ae2d68c8675e50ba8d63ea7feb107",
    12,
)
AFTER = Wheel(
    "transformers",
    "5.24.0",
    "transformers-5.24.0-py3-none-any.whl",
    "ff5ebedf9359f94bb63772b6380eba6e7104d010cbbb2cb82c788817ea7486f6",
    14,
)


def installed() -> Any:
    """The installed package. Missing where there is none."""
    try:
        import transformers
    except ImportError:
        raise Missing("transformers is not installed: pip install -e '.[test]'") from None
    return transformers


def toy_model(model: Callable[..., Any]) -> Any:
    """A model of ours that looks at the last token, as transformers wants one, with a cache that knows its length."""
    transformers = installed()
    from transformers.modeling_outputs import CausalLMOutputWithPast

    vocab = len(model(()))
    rows = torch.stack([*(logits(model, (x,)) for x in range(vocab)), logits(model, ())])  # the last: behind BOS

    bases: Any = (transformers.PreTrainedModel, transformers.GenerationMixin)

    class ToyModel(*bases):  # type: ignore[misc]
        config_class = transformers.PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: Any, past_key_values: Any = None, **_: Any) -> Any:
            if past_key_values is not None:
                empty = torch.zeros(1, 1, input_ids.shape[1], 1)
                past_key_values.update(empty, empty, 0)
            return CausalLMOutputWithPast(logits=rows[input_ids], past_key_values=past_key_values)

    sizes = {"vocab_size": vocab + 1, "num_hidden_layers": 1, "hidden_size": 1, "num_attention_heads": 1}
    config = transformers.PretrainedConfig(**sizes, eos_token_id=None)
    return ToyModel(config).eval()


def assisted(target: Any, draft: Any, length: int, gamma: int = 2, **settings: Any) -> Callable[[Any], tuple[int, ...]]:
    """`generate` with an assistant (or, where draft is None, by `settings`) as a program: rng → `length` tokens."""
    model, assistant = toy_model(target), draft and toy_model(draft)
    bos = len(target(()))
    model.generation_config.pad_token_id = bos
    if assistant:
        assistant.generation_config.pad_token_id = bos
        assistant.generation_config.num_assistant_tokens = gamma
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        settings["assistant_model"] = assistant
    asked = {"top_k": 0, **settings}
    confidence = asked.pop("confidence", 0.0)
    if assistant:
        assistant.generation_config.assistant_confidence_threshold = confidence
    start = asked.pop("prompt", [bos])

    def program(rng: Any) -> tuple[int, ...]:
        with scripted(rng), torch.no_grad():
            out = model.generate(torch.tensor([start]), do_sample=True, max_new_tokens=length, **asked)
        return tuple(out[0, len(start) :].tolist())

    return program


def verification() -> Any:
    """The acceptance rule of the installed release, as a function of logits."""
    installed()
    from transformers.generation.utils import _speculative_sampling

    return _speculative_sampling


def dflash_drafter(source: Wheel | None, top_k: int) -> Callable[..., Any]:
    """`DFlashTokenCandidateGenerator` of a release (None: the installed one) with a top-k filter.

    (rows of draft logits, rng) → (the tokens drawn, the logits it reports).
    """
    module = _generators(source)

    def draw(rows: torch.Tensor, rng: Any) -> tuple[list[int], torch.Tensor]:
        gamma = len(rows)

        def top(ids: Any, scores: torch.Tensor) -> torch.Tensor:
            kept = scores.topk(top_k).values[..., -1:]
            return scores.masked_fill(scores < kept, -torch.inf)

        states = torch.cat([torch.zeros_like(rows[:1]), rows])[None]  # of the anchor, then of the drafts
        stand = _stand_in(module.DFlashTokenCandidateGenerator, _get_noise_embeds=lambda self, ids: ids, device="cpu")
        vars(stand).update(
            block_size=gamma + 1,
            main_model_max_length=99,
            is_main_model_prefill=True,
            target_layer_ids=[0],
            cache=SimpleNamespace(set_previous_accepted_tokens=lambda n: None, crop=lambda n: None),
            noise_ids_mask=torch.zeros(1, gamma, dtype=torch.long),
            assistant_model=_Answers(lambda **kw: SimpleNamespace(last_hidden_state=states)),
            main_model_output_embeddings=_Answers(lambda states: states.clone()),
            main_model_input_embeddings=SimpleNamespace(weight=torch.zeros(2, 1)),  # older releases embed by themselves
            logits_processor=top,
            do_sample=True,
        )
        text = torch.zeros(1, 2, dtype=torch.long)
        with scripted(rng):
            ids, reported = stand.get_candidates(
                text,
                model_kwargs={"position_ids": torch.arange(2)[None], "attention_mask": torch.ones(1, 2)},
                model_outputs=SimpleNamespace(hidden_states=[torch.zeros(1, 2, 1)] * 2),
                is_first_iteration=False,
                n_last_matches=0,
            )
        return ids[0, 2:].tolist(), reported

    return draw


class _Answers:
    """A module whose forward is given."""

    device = torch.device("cpu")
    weight = SimpleNamespace(device=device)

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def _stand_in(cls: type, **replaced: Any) -> Any:
    """An instance without what its `__init__` asks for."""
    return type("StandIn", (cls,), {"__init__": lambda self: None, **replaced})()


def single_position_drafter(source: Wheel | None) -> Callable[..., Any]:
    """`SinglePositionMultiTokenCandidateGenerator` of a release, likewise; it draws nothing, it takes the likeliest."""
    module = _generators(source)

    def draw(rows: torch.Tensor, rng: Any) -> tuple[list[int], torch.Tensor]:
        stand = _stand_in(module.SinglePositionMultiTokenCandidateGenerator)
        states = iter(rows)

        def assistant(**_: Any) -> Any:
            return SimpleNamespace(logits=next(states)[None, None].clone(), last_hidden_state=torch.zeros(1, 1, 1))

        vars(stand).update(
            num_assistant_tokens=len(rows),
            main_model_max_length=99,
            is_main_model_prefill=True,
            eos_token_id=None,
            target_model_input_embeddings=_Answers(lambda ids: torch.zeros(1, 1, 1)),
            assistant_model=_Answers(assistant),
        )
        text = torch.zeros(1, 2, dtype=torch.long)
        outputs = SimpleNamespace(hidden_states=[torch.zeros(1, 2, 1)] * 2, shared_kv_states={})
        kwargs = {"position_ids": torch.arange(2)[None], "attention_mask": None}
        with scripted(rng):
            ids, reported = stand.get_candidates(
                text, model_kwargs=kwargs, model_outputs=outputs, is_first_iteration=False, n_last_matches=0
            )
        return ids[0, 2:].tolist(), reported

    return draw


def _generators(source: Wheel | None) -> Any:
    if source is None:
        installed()
        from transformers.generation import candidate_generator

        return candidate_generator
    return load(source, "transformers.generation.candidate_generator", stubs=("sklearn",))[0]


def drafted_and_verified(draw: Callable[..., Any], processed: Callable[[Any], Any]) -> Callable[..., list[int]]:
    """A step: a drafter of a release drafts from rows of our draft model, and the verification judges what it reports.

    The draft's rows do not depend on each other's tokens (both drafters are parallel, or have one row here). The target
    is `processed` as the user asked, as `generate` does before it verifies.
    """
    verify = verification()

    def step(target: Any, draft: Any, where: Any, rng: Any) -> list[int]:
        prefix, gamma = where
        rows = torch.stack([tensor(draft(prefix)).log().float()] * gamma)
        tokens, reported = draw(rows, rng)
        ps = [processed(np.array([float(p) for p in target((*prefix, *tokens[:i]))])) for i in range(gamma + 1)]
        new = torch.stack([tensor(p) for p in ps]).log().float()[None]
        with scripted(rng):
            valid, _ = verify(torch.tensor([tokens]), reported, gamma, new)
        return valid[0].tolist()

    return step
