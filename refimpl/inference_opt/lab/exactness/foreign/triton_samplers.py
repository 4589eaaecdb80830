"""Samplers written as Triton kernels: vLLM's two runners and SGLang's. They run under Triton's interpreter.

Each function returns a sampler as the kit takes it: (draft, target, tokens, uniforms) → what is emitted. Uniform
numbers reach the kernels as numbers; where a kernel draws a token by a race of noisy weights, the weights are read
and the token is chosen by `uniforms.choose`. `vllm_v2_seeded` leaves the kernels' own noise as it is.
"""

import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from inference_opt.lab.exactness.foreign.sources import Missing, Wheel, load
from inference_opt.lab.exactness.foreign.toys import tensor

VLLM = Wheel(
    "vllm",
    "0.33.0",
    "vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
    336,
)
VLLM_BEFORE = Wheel(
    "vllm",
    "0.28.0",
    "vllm-0.28.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    "addb0ffdaafd8155d75e9b3f5ddb3da28fdee9e8a7097ede91f7db2e9e1a3889",
    315,
)
VLLM_BETWEEN = Wheel(
    "vllm",
    "0.31.0",
    "vllm-0.31.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    "39132b433967f0962d03d8a5f633b9bee6b32708f566c7d5637b79f8d0ef3433",
    321,
)
SGLANG = Wheel(
    "sglang",
    "0.5.23",
    "sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl",
    "00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937",
    39,
)
KitSampler = Callable[[Any, Any, Any, Any], list[int]]


def interpreted(source: Wheel, *names: str, **more: Any) -> list[ModuleType]:
    """`load`, with the kernels decorated for Triton's interpreter."""
    try:
        import triton
        import triton.language as tl
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        raise Missing("Triton is not installed") from None
    if not isinstance(tl.sum, InterpretedFunction):
        raise Missing("Triton was imported to compile; set TRITON_INTERPRET=1 before the process starts")
    # The interpreter has no device library: log(1 + x) in double precision takes its place.
    device = SimpleNamespace(log1p=lambda x: tl.log(1.0 + x.to(tl.float64)).to(tl.float32))
    given = {"vllm.triton_utils": {"triton": triton, "tl": tl, "tldevice": device, "HAS_TRITON": True}}
    given["vllm.model_executor.warmup.jit_warmup_triton_helper"] = {"triton_kernel_dispatcher_with_warmup": _dispatcher}
    return load(source, *names, given=given, **more)


def _dispatcher(kernel: Any, warmup_inputs: Any) -> Any:
    """vLLM's decorator of what launches a kernel: the function says the grid and the constants."""

    def decorate(dispatch: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            values = inspect.signature(dispatch).bind(*args, **kwargs)
            values.apply_defaults()
            grid, constants = dispatch(*args, **kwargs)
            known = {**values.arguments, **constants}
            kernel[grid](*(known[name.removesuffix("_ptr")] for name in inspect.signature(kernel.fn).parameters))

        return launch

    return decorate


def vllm_v1(source: Wheel = VLLM, told: bool = True, synthetic: list[float] | None = None) -> KitSampler:
    """`rejection_sample` of vLLM's first runner. `told`: it is given q (else it takes the draft for a found one).

    `synthetic`: the acceptance rates of the mode that benchmarks use.
    """
    [module] = interpreted(source, "vllm.v1.sample.rejection_sampler")

    known: dict[Any, np.ndarray] = {}  # weights, by what they depend on

    def sampler(draft: Any, target: Any, tokens: Any, uniforms: Any) -> list[int]:
        gamma = len(tokens)
        p = torch.stack([tensor(row) for row in target]).float()
        q = torch.stack([tensor(row) for row in draft]).float()
        drafted = torch.tensor([*tokens], dtype=torch.int32)
        numbers = torch.tensor([float(uniforms()) for _ in range(gamma)], dtype=torch.float64)

        def run(recovered: list[int], bonus: int) -> list[int]:
            with (
                patch.object(module, "generate_uniform_probs", lambda *a: numbers),
                patch.object(module, "sample_recovered_tokens", lambda *a: torch.tensor(recovered, dtype=torch.int32)),
            ):
                out = module.rejection_sample(
                    drafted,
                    [gamma],
                    gamma,
                    torch.tensor([gamma], dtype=torch.int32),
                    q if told else None,
                    p[:gamma].log(),
                    torch.tensor([[bonus]], dtype=torch.int32),
                    SimpleNamespace(
                        all_greedy=False, all_random=True, temperature=torch.ones(1), generators={}, top_k=None
                    ),
                    synthetic_mode=synthetic is not None,
                    synthetic_conditional_rates=synthetic and torch.tensor(synthetic),
                )
            return out[0].tolist()

        # The place of the last token is found with tokens that no model says; then that one is drawn.
        emitted = run([-7] * gamma, -8)
        length = next(i + 1 for i, x in enumerate(emitted) if x < -1)
        if emitted[length - 1] == -8:
            return [*emitted[: length - 1], uniforms.choose(target[gamma])]
        key = (tuple(tokens), length, p.numpy().tobytes(), q.numpy().tobytes())
        if key not in known:
            known[key] = residual_weights(module, drafted, q if told else None, p, length - 1)
        return [*emitted[: length - 1], uniforms.choose(known[key])]

    return sampler


def residual_weights(module: ModuleType, drafted: Any, q: Any, p: Any, place: int) -> np.ndarray:
    """What the kernel of recovered tokens draws from: token v against token 0 … by the noise that makes them draw.

    The kernel takes the argmax of weight / noise. With two tokens in the race and all others far behind, bisection of
    one's noise gives the ratio of their weights.
    """
    gamma, vocab = len(drafted), p.shape[1]

    def winner(inverse: list[float]) -> int:
        noise = 1 / torch.tensor([inverse], dtype=torch.float64)
        with patch.object(torch.Tensor, "exponential_", lambda self, *a, **kw: self.copy_(noise)):
            metadata = SimpleNamespace(generators={})
            args = (gamma, [gamma], torch.tensor([gamma], dtype=torch.int32), drafted, q, p[:gamma].contiguous())
            return int(module.sample_recovered_tokens(*args, metadata, torch.device("cpu"), True)[place])

    def alone(*racing: tuple[int, float]) -> list[float]:
        return [dict(racing).get(v, 1e-30) for v in range(vocab)]

    first = winner([1.0] * vocab)  # the heaviest
    weights = np.zeros(vocab)
    weights[first] = 1.0
    for v in range(vocab):
        if v == first or winner(alone((first, 1e-9), (v, 1e9))) == first:
            continue
        low, high = 1.0, 1e18  # 1 / noise of v at which it wins lies between
        while high / low > 1 + 1e-9:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if winner(alone((first, 1.0), (v, middle))) == v else (middle, high)
        weights[v] = 1 / high
    return weights


def vllm_v2(
    source: Wheel = VLLM, told: bool = True, block: bool = False, synthetic: list[float] | None = None
) -> KitSampler:
    """`rejection_sample` of vLLM's second runner: token by token, in blocks, or with made-up acceptance rates."""
    sample, sampling, _ = _vllm_v2(source)

    def sampler(draft: Any, target: Any, tokens: Any, uniforms: Any) -> list[int]:
        seen: dict[str, Any] = {}

        def number(seed: Any, position: Any, includes_zero: Any) -> Any:
            return _constant(uniforms[int(np.asarray(position.handle.data).item())])

        def argmax(logits: Any, block: Any, mask: Any, *rest: Any, **kw: Any) -> Any:
            values, inside = (np.asarray(x.handle.data).reshape(-1) for x in (logits, mask))
            seen["weights"] = np.exp(values[inside.astype(bool)])
            return sampling.tl.max(logits, axis=0, return_indices=True)

        with patch.object(sampling, "tl_rand32", number), patch.object(sampling, "gumbel_block_argmax", argmax):
            q = torch.stack([tensor(row) for row in draft])[None] if told and len(tokens) else None
            [emitted] = sample(target, q, [tuple(tokens)], [0], [0], block, synthetic)
        return [*emitted[:-1], uniforms.choose(np.nan_to_num(seen["weights"]))]

    return sampler


def vllm_v2_seeded(source: Wheel = VLLM, block: bool = False) -> Callable[..., list[tuple[int, ...]]]:
    """The same with the kernels' own noise, and drafts drawn by the kernel that its drafters use.

    (target, draft, texts, gamma, seeds) → what a step emits behind each text. Noise is keyed by seed and position.
    """
    sample, _, gumbel = _vllm_v2(source)
    drafting = {"is_drafting": True} if "is_drafting" in inspect.signature(gumbel.gumbel_sample).parameters else {}

    def step(target: Any, draft: Any, texts: list[Any], gamma: int, seeds: list[int]) -> list[tuple[int, ...]]:
        longer = [tuple(text) for text in texts]
        qs = []
        for i in range(gamma):
            qs.append(torch.stack([tensor(draft(text)) for text in longer]))
            mixed = [seed ^ (i << 32) if hasattr(gumbel, "spec_step_seed") else seed for seed in seeds]
            drawn = gumbel.gumbel_sample(
                qs[-1].log().float(),
                torch.arange(len(texts), dtype=torch.int32),
                torch.ones(len(texts)),
                torch.tensor(mixed),  # as it mixes them where a drafter's logits are kept
                torch.tensor([len(text) for text in texts]) + i,  # the position of the logit that judges this token
                apply_temperature=True,
                **drafting,
            )
            longer = [(*text, int(x)) for text, x in zip(longer, drawn)]
        ps = [target(text[: len(text) - gamma + i]) for text in longer for i in range(gamma + 1)]
        drafts = [text[len(text) - gamma :] for text in longer]
        return sample(ps, torch.stack(qs, dim=1), drafts, seeds, [len(text) for text in texts], block, None)

    return step


def _vllm_v2(source: Wheel) -> tuple[Callable[..., list[tuple[int, ...]]], ModuleType, ModuleType]:
    sampling, gumbel = interpreted(
        source,
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils",
        "vllm.v1.worker.gpu.sample.gumbel",
    )

    def sample(
        target: Any, draft: Any, drafts: Any, seeds: Any, positions: Any, block: bool, rates: list[float] | None
    ) -> list[tuple[int, ...]]:
        count, gamma = len(drafts), len(drafts[0])
        local = torch.arange(gamma + 1, dtype=torch.int32).repeat(count)
        request = torch.arange(count, dtype=torch.int32)
        emitted, lengths = sampling.rejection_sample(
            torch.stack([tensor(p) for p in target]).log().float(),
            None if draft is None or not gamma else draft.log().float(),
            torch.tensor([x for tokens in drafts for x in (0, *tokens)], dtype=torch.int32),
            torch.arange(count + 1, dtype=torch.int32) * (gamma + 1),
            torch.tensor(positions).repeat_interleave(gamma + 1) + local,
            request,
            request.repeat_interleave(gamma + 1),
            local,
            torch.ones(count),
            torch.tensor(seeds),
            gamma,
            synthetic_conditional_rates=rates and torch.tensor(rates),
            use_block_verification=block,
        )
        return [tuple(row[:length]) for row, length in zip(emitted.tolist(), lengths.tolist())]

    return sample, sampling, gumbel


def _constant(value: float) -> Any:
    """A number, as Triton's interpreter has it."""
    import triton.language as tl

    return tl.full((), float(value), tl.float32)


def sglang_chain(block: bool = False) -> KitSampler:
    """SGLang's chain verification: its kernel takes every uniform number, that of the last draw too."""
    [module] = interpreted(SGLANG, "sglang.kernels.ops.speculative.reject_sampling")

    def sampler(draft: Any, target: Any, tokens: Any, uniforms: Any) -> list[int]:
        slots = len(tokens) + 1
        predicted = torch.full((slots,), -1, dtype=torch.int32)
        accepted = torch.full((1, slots), -1, dtype=torch.int32)
        count = torch.zeros(1, dtype=torch.int32)
        numbers = torch.tensor([[*(float(uniforms()) for _ in tokens), 0.0]], dtype=torch.float32)
        module.chain_speculative_sampling_triton(
            predicted,
            accepted,
            count,
            torch.tensor([[0, *tokens]]),
            torch.arange(slots)[None],
            None,
            None,
            numbers,
            torch.tensor([float(uniforms())], dtype=torch.float32),
            torch.stack([tensor(p) for p in target]).float()[None],
            torch.stack([tensor(q) for q in draft] or [tensor(target[0])]).float()[None],
            1.0,
            1.0,
            True,
            block_verification=block,
        )
        return predicted[: int(count[0]) + 1].tolist()

    return sampler
