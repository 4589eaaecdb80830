"""Numbers for many buffers on the device, sent together: one copy and one launch, whatever their number.

    parts     for each buffer, or each row of one: its address, where its numbers begin, how many words they are
    words     the numbers of all

A replayed step works on buffers that stay where they are. What the host has to say to it is little, but is spread over
a dozen buffers, and a copy to each would take longer than a step of a small model.
"""

from types import TracebackType
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from inference_opt.kernels.transfer import sent

DTYPES = {torch.int32: np.int32, torch.int64: np.int64, torch.float32: np.float32}
PROGRAMS = 8  # of each part


@triton.jit
def deliver(letter, BLOCK: tl.constexpr):
    """Put one part of a letter into place."""
    part = letter.to(tl.pointer_type(tl.int64)) + 3 * tl.program_id(0)
    into, first, count = tl.load(part).to(tl.pointer_type(tl.int32)), tl.load(part + 1), tl.load(part + 2)
    for begin in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        i = begin + tl.arange(0, BLOCK)
        tl.store(into + i, tl.load(letter + first + i, mask=i < count), mask=i < count)


class Letter:
    """`put` numbers for one buffer after another; they are sent when the `with` block ends without an error."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: list[tuple[Tensor, NDArray[np.generic]]] = []

    def put(self, into: Tensor, numbers: Any) -> None:
        """`numbers` (an array or a list of its shape, or a single one for all) for a buffer or rows of one."""
        own = np.empty(into.shape, dtype=DTYPES[into.dtype])
        own[...] = numbers
        if own.size:
            self.parts.append((into, own))

    def packed(self) -> tuple[Tensor, int]:
        """The whole letter, as 32-bit words, and how many parts it has."""
        words = [own.reshape(-1).view(np.int32) for _, own in self.parts]
        rows = [1 if into.is_contiguous() else len(into) for into, _ in self.parts]
        count = np.repeat([len(own) // n for own, n in zip(words, rows)], rows)
        heads = np.zeros((len(count), 3), dtype=np.int64)
        heads[:, 0] = np.concatenate(
            [
                into.data_ptr() + np.arange(n) * into.stride(0) * into.element_size()
                for (into, _), n in zip(self.parts, rows)
            ]
        )
        heads[:, 1], heads[:, 2] = 2 * heads.size + np.cumsum(count) - count, count
        return torch.from_numpy(np.concatenate([heads.reshape(-1).view(np.int32), *words])), len(heads)

    def __enter__(self) -> "Letter":
        return self

    def __exit__(self, error: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if error is not None or not self.parts:
            return
        if self.device.type == "cuda":
            letter, parts = self.packed()
            deliver[(parts, PROGRAMS)](sent(letter, self.device), 1024)
            return
        for into, own in self.parts:
            into.copy_(torch.from_numpy(own))
