"""A GGUF file's metadata and tensors, read with the `gguf` library and checked, which the library does not do."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from inference_opt.loading.folder import check_file, named
from inference_opt.model.fields import COUNT, Fields


class _Reader(gguf.GGUFReader):
    """The library's reader, kept within the file, and on a plain array: slices of numpy's memmap are slow."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The file's bytes, memory-mapped."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = np.asarray(mapped)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> np.ndarray:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        self._check(end)
        return super()._get(offset, dtype, count, override_order)

    def _check(self, end: int) -> None:
        if end > len(self._bytes):
            raise ValueError(f"it ends at byte {len(self._bytes)}, but says that it goes on to byte {end}")

    def _strings(self, begin: int, count: int) -> tuple[list[np.ndarray], int]:
        """The bytes of strings that stand one after another, each behind its length; and how many bytes all that is."""
        length = np.dtype(np.uint64).newbyteorder(self.byte_order)
        data = self.data
        parts: list[np.ndarray] = []
        at = begin
        for _ in range(count):
            text = at + length.itemsize
            self._check(text)
            at = text + int(data[at:text].view(length)[0])
            self._check(at)
            parts.append(data[text:at])
        return parts, at - begin

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> tuple[int, list[np.ndarray], list[int], list[Any]]:
        """Parts of a field. An array of numbers is one part here, a string another, its length none.

        The library makes an object for every number, and several for a length: most of a vocabulary's time.
        """
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind = self._get(orig_offs, np.uint32)
            count = self._get(orig_offs + 4, np.uint64)
            if kind[0] == gguf.GGUFValueType.STRING:
                parts, size = self._strings(int(orig_offs) + 12, int(count[0]))
                types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
                return size + 12, parts, list(range(len(parts))), types
            if number := self.gguf_scalar_to_np.get(gguf.GGUFValueType(kind[0])):
                parts = [kind, count, self._get(orig_offs + 12, number, count[0])]
                types = [gguf.GGUFValueType(raw_type), gguf.GGUFValueType(kind[0])]
                return sum(p.nbytes for p in parts), parts, [2], types
        return super()._get_field_parts(orig_offs, raw_type)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Metadata as Python values, and tensors by name, not yet read. ValueError for a file that is not whole."""
    check_file(path)
    try:
        with np.errstate(over="ignore"):  # sizes that overflow are found below
            reader = _Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, RecursionError) as error:
        hint = ": load the folder that holds it" if path.suffix == ".safetensors" else ""
        raise ValueError(f"{path} is not a whole GGUF file: {error}{hint}") from error
    with named(path):
        if (parts := Fields(fields).get("split.count", COUNT, 1)) > 1:
            raise ValueError(
                f"split.count: it is one of {parts} parts, join them first: `llama-gguf-split --merge FIRST-PART WHOLE`"
            )
        _check_tensors(reader)
    return fields, {t.name: t for t in reader.tensors}


def _check_tensors(reader: gguf.GGUFReader) -> None:
    """ValueError unless each tensor follows the last without a gap, as in llama.cpp, and has a readable type."""
    offset = 0
    align = int(reader.alignment)
    for t in reader.tensors:
        if int(t.field.parts[5][0]) != offset:
            raise ValueError(
                f"the tensor {t.name!r} is said to begin at byte {t.field.parts[5][0]} of the data, expected {offset}: "
                "tensors must neither overlap nor leave gaps"
            )
        offset += -(-int(t.n_bytes) // align) * align
        try:  # with one block of zeros
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[t.tensor_type][1]), np.uint8), t.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"the tensor {t.name!r} holds {t.tensor_type.name}, which is not read here") from error
        swappable = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        if reader.byte_order == "S" and t.tensor_type not in swappable:
            raise ValueError(
                f"the tensor {t.name!r} holds {t.tensor_type.name} in a big-endian file: only F32 and F16 are read "
                "from big-endian files"
            )
