"""MLX-LM's speculative decoding, and dflash's sampler for MLX, on MLX's own CPU build."""

import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from inference_opt.lab.exactness.foreign.sources import Missing, Wheel, load
from inference_opt.lab.exactness.foreign.torch_samplers import DFLASH
from inference_opt.lab.exactness.foreign.toys import Toy

MLX_LM = Wheel(
    "mlx-lm",
    "0.32.2",
    "mlx_lm-0.32.2-py3-none-any.whl",
    "5c0991248cfff5872503d74f466d2532dd8cb7fb3670cb9be7a06d7305dadc04",
    1,
)
MLX = (
    Wheel(
        "mlx",
        "0.32.4",
        "mlx-0.32.4-cp311-cp311-manylinux_2_35_x86_64.whl",
        "6267be0db81a9d850b3ecd9bf0cf7dd0f439408db9fbc59237e37fda3f7676b0",
        1,
    ),
    Wheel(
        "mlx-cpu",
        "0.32.4",
        "mlx_cpu-0.32.4-py3-none-manylinux_2_35_x86_64.whl",
        "0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee",
        11,
    ),
)


def mlx() -> ModuleType:
    """`mlx.core`, from the registry's CPU build. Missing where it does not fit the machine."""
    for wheel in MLX:
        path = str(wheel.unpacked(("",), "mlx"))
    if path not in sys.path:
        sys.path.append(path)
    try:
        import mlx.core as core
    except ImportError as error:
        raise Missing(f"mlx 0.32.4 for Python 3.11 on Linux does not load here: {error}") from None
    return core


class _Model:
    """A toy as mlx-lm wants a model: it makes its own cache, which holds tokens and can be trimmed."""

    layers = ()

    def __init__(self, model: Any) -> None:
        self.model = model

    def make_cache(self) -> list[Any]:
        return [_Cache()]

    def __call__(self, tokens: Any, cache: Any) -> Any:
        [seen] = cache
        new = tokens[0].tolist()
        toy = Toy(self.model)
        toy.text[:] = [*seen.tokens]
        rows = toy(new, len(seen.tokens))
        seen.tokens += new
        return mlx().array(rows.numpy())[None]


class _Cache:
    state: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        if n:
            del self.tokens[-n:]
        return n


def mlx_lm(target: Any, draft: Any, length: int, gamma: int = 2) -> Any:
    """`speculative_generate_step`, whole, as a program: rng → the first `length` tokens. Its sampler is ours."""
    core = mlx()
    [module] = load(MLX_LM, "mlx_lm.generate", stubs=("huggingface_hub", "transformers"), real=("mlx_lm.models.cache",))

    def program(rng: Any) -> tuple[int, ...]:
        def sampler(logprobs: Any) -> Any:
            rows = np.exp(np.array(logprobs, dtype=np.float64)).reshape(-1, logprobs.shape[-1])
            weights = [np.array([Fraction(w) for w in row], dtype=object) for row in rows]
            return core.array([rng.choose(row, i) for i, row in enumerate(weights)], dtype=core.uint32)

        steps = module.speculative_generate_step(
            core.array([len(target(()))]),
            _Model(target),
            _Model(draft),
            core.default_stream(core.cpu),
            num_draft_tokens=gamma,
            max_tokens=length,
            sampler=sampler,
        )
        return tuple(int(token) for token, *_ in steps)

    return program


def dflash_mlx() -> Any:
    """dflash's rejection sampling for MLX, as the kit takes it: (draft, target, tokens, uniforms) → what is emitted."""
    core = mlx()
    [module] = load(DFLASH, "dflash.model_mlx", stubs=("mlx_lm", "huggingface_hub"))

    def sampler(draft: Any, target: Any, tokens: Any, uniforms: Any) -> list[int]:
        def uniform(shape: Any) -> Any:
            return core.array([float(uniforms()) for _ in range(int(np.prod(shape)))]).reshape(shape)

        def choose(probs: Any) -> Any:
            return core.array([uniforms.choose(np.array(row)) for row in probs])

        rows = [
            core.array(np.array([[float(x) for x in row] for row in given], dtype=np.float32))
            for given in (target, draft)
        ]
        with (
            patch.object(module, "_sample_probs", choose),
            patch.object(module, "mx", SimpleNamespace(**{**vars(core), "random": SimpleNamespace(uniform=uniform)})),
        ):
            accepted, last = module._rejection_sample(core.array([[*tokens]]), rows[0][None], rows[1][None])
        return [*tokens[:accepted], last]

    return sampler
