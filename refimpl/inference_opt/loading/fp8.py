"""Weights stored as 8-bit floats with one scale for each block, as in DeepSeek-V3 (2412.19437, §3.3.2 and Fig. 7b).

    W[i, j] = w[i, j] · s[⌊i / b⌋, ⌊j / c⌋]        w: `weight`, float8_e4m3fn        s: `weight_scale_inv`, float32

A block has b × c weights (128 × 128 in released models); blocks at the lower and right edge may be cut. The product is
rounded to float32, as in DeepSeek's own conversion, and then to the model's dtype. Activations are not quantised: they
stay in the model's dtype.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from inference_opt.model.fields import OBJECT, PAIR, TEXT, Fields

SUFFIX = "_scale_inv"  # "weight" and "weight_scale_inv"
_SCALE_DTYPES = ("F32", "BF16", "F16")  # each of them exact in float32
_VALUES = {
    "quant_method": ("fp8",),
    "activation_scheme": ("dynamic",),  # "static" has factors of the activations, too
    "fmt": ("e4m3",),
    "expert_dtype": ("fp8",),
    "scale_fmt": ("float", "ue8m0"),  # how scales were rounded; as long as they are stored as floats, nothing changes
}
# Lists of what is and is not quantised, and what `transformers` shall do: each tensor's own type says it here.
_IGNORED = {"weight_block_size", "modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize"}


def block_size(fields: Fields) -> tuple[int, int] | None:
    """Rows and columns of a block, from a config.json; None for weights that are not quantised.

    ValueError for any other quantisation.
    """
    given = Fields(fields.get("quantization_config", OBJECT, {}), "quantization_config.")
    if not given.values:
        return None
    if given.need("quant_method", TEXT) != "fp8" or "weight_block_size" not in given.values:
        raise ValueError(
            "quantization_config is set: of quantised safetensors, only quant_method 'fp8' with a weight_block_size is "
            f"read here, got {given.values['quant_method']!r}: take the unquantised model"
        )
    for name, accepted in _VALUES.items():
        if (value := given.get(name, TEXT, accepted[0])) not in accepted:
            raise ValueError(
                f"quantization_config.{name} is {value!r}: only {' or '.join(map(repr, accepted))} is read here: take "
                "the unquantised model"
            )
    if unknown := given.values.keys() - _VALUES - _IGNORED:
        raise ValueError(f"quantization_config.{min(unknown)} is not known here: take the unquantised model")
    return given.need("weight_block_size", PAIR)


def check_scale(
    name: str, shape: tuple[int, ...], block: tuple[int, int], scale_dtype: str, scale_shape: tuple[int, ...]
) -> None:
    """ValueError unless a matrix of this name and shape, in blocks of this size, can have such a scale."""
    expected = tuple(-(-n // size) for n, size in zip(shape, block, strict=True))
    if scale_shape != expected or scale_dtype not in _SCALE_DTYPES:
        raise ValueError(
            f"{name}{SUFFIX}: expected shape {expected} in {', '.join(_SCALE_DTYPES)}, one scale for each "
            f"{block[0]} × {block[1]} block of a weight of shape {shape}; the file holds {scale_shape} in "
            f"{scale_dtype}: correct weight_block_size in config.json, or fetch the file again"
        )


def dequantize(
    weight: Float[Tensor, "rows columns"], scale: Float[Tensor, "row_blocks column_blocks"], block: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    """w · s in float32. ValueError for a scale that is not a positive number."""
    scale = scale.float()
    if not bool(((scale > 0) & (scale < torch.inf)).all()):
        wrong = scale[~((scale > 0) & (scale < torch.inf))][0].item()
        raise ValueError(f"expected scales that are positive numbers, found {wrong}: fetch the file again")
    whole = torch.empty(weight.shape)
    # One row of blocks at a time, so that no second matrix of this size is made.
    for into, stored, factors in zip(whole.split(block[0]), weight.split(block[0]), scale, strict=True):
        torch.mul(stored.float(), factors.repeat_interleave(block[1])[: weight.shape[1]], out=into)
    return whole
