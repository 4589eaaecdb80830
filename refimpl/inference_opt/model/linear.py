"""Matrix products with weights stored in the order in which the processor reads them fastest.

Decoding one token multiplies every weight by one number, so a step takes as long as reading the weights. On a CPU,
`torch.nn.functional.linear` reads rows of W as they lie in memory and reaches at most a third of the memory's
bandwidth. oneDNN, which is part of torch, reorders W once into blocks that fit the vector registers. It then reads at
full bandwidth for 1 row of x, and takes hardly longer for 8 rows: that is why speculative decoding pays on a CPU.

    W [out, in]  --pack()-->  the same numbers in blocks (a tensor of layout torch._mkldnn)  --unpack()-->  W [out, in]

Packing is exact, because only the order in memory changes. It is for inference: a packed weight has no gradient. To be
copied, saved, loaded or moved to another dtype or device, a packed weight is made dense for the moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The product with a packed weight, as torch's own compiler calls it: (x, packed, bias, "none", [], "") → x Wᵀ + b.
_packed_linear = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has a packed product for this dtype here (float32 on every CPU, bfloat16 on some)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def dense(weight: Tensor) -> Tensor:
    """A weight as a matrix [out, in], however it is stored."""
    return weight.detach().to_dense() if weight.is_mkldnn else weight.detach()


def packed(weight: Tensor) -> Tensor:
    """A dense weight's numbers in oneDNN's order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


class Linear(nn.Module):
    """y = x Wᵀ + b, with W dense or packed."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """The product, however the weight is stored. ValueError if a packed weight requires a gradient."""
        if _packed_linear is None or not self.weight.is_mkldnn:
            return nn.functional.linear(x, self.weight, self.bias)
        if self.weight.requires_grad:
            raise ValueError("a packed weight has no gradient: call requires_grad_() of the model, which unpacks it")
        if torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            return nn.functional.linear(x, dense(self.weight), self.bias)  # oneDNN's product has no backward
        return _packed_linear(x, self.weight, self.bias, "none", [], "")

    def pack(self) -> None:
        """Store the weight in oneDNN's order if there is one for it; the dense copy is freed."""
        if not self.weight.is_mkldnn and can_pack(self.weight.dtype, self.weight.device):
            self.weight = nn.Parameter(packed(self.weight), requires_grad=False)

    def unpack(self) -> None:
        """Store the weight densely again, as training and conversion need it."""
        if self.weight.is_mkldnn:
            self.weight = nn.Parameter(dense(self.weight))

    # A packed tensor has no storage that torch can copy, save or convert: the next methods make it dense for that.

    def __getstate__(self) -> dict[str, Any]:
        weight = self._parameters["weight"]
        if weight is None or not weight.is_mkldnn:
            return self.__dict__
        parameters = self._parameters | {"weight": nn.Parameter(dense(weight), requires_grad=False)}
        return self.__dict__ | {"_parameters": parameters, "_repack": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        repack = state.pop("_repack", False)
        super().__setstate__(state)
        if repack:
            self.pack()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[f"{prefix}weight"] = dense(self.weight)

    def _load_from_state_dict(self, *args: Any) -> None:
        with self._dense_for_now():
            super()._load_from_state_dict(*args)

    def _apply(self, fn: Any, recurse: bool = True) -> "Linear":
        with self._dense_for_now():
            return super()._apply(fn, recurse)

    @contextmanager
    def _dense_for_now(self) -> Iterator[None]:
        """The weight is dense within; a packed one is packed again afterwards, if it still can be."""
        if not self.weight.is_mkldnn:
            yield
            return
        self.weight = nn.Parameter(dense(self.weight), requires_grad=False)
        try:
            yield
        finally:
            self.pack()


@torch.inference_mode(False)
@torch.no_grad()
def stacked(weights: Sequence[nn.Parameter]) -> Float[Tensor, "all_rows columns"]:
    """Weights with as many columns in one tensor, of which each becomes a view.

    The first call lays them one behind the other; it takes memory for them, for the moment. Later calls find them so,
    unless they were replaced.
    """
    first, item = weights[0], weights[0].element_size()
    begins = list(accumulate((weight.numel() * item for weight in weights), initial=first.data_ptr()))
    together = all(weight.data_ptr() == begin for weight, begin in zip(weights, begins))
    # Neighbours by chance lie in storages of their own.
    if not together or first.untyped_storage().nbytes() != begins[-1] - begins[0]:
        whole = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, whole.split([len(weight) for weight in weights])):
            weight.data = part
    rows = sum(map(len, weights))
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
