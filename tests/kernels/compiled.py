"""Compiles the attention kernel for an H100, without one, at the widths given; prints the shared memory it takes.

A script of its own: under the interpreter, which the other tests run in, nothing is compiled.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference_opt.kernels.attention import attend_piece
from inference_opt.kernels.work import PIECE, choose_tile, padded, tile_bytes

SIZES = {"bf16": 2, "fp32": 4}


def shared_memory(rows: int, group: int, dim: int, value_dim: int, latent: bool, dtype: str) -> int:
    """Bytes a program, of the tile that is chosen for so many rows."""
    tile = choose_tile(rows, *tile_bytes(dim, value_dim if latent else None, SIZES[dtype]))
    split, low, high, value = padded(dim, value_dim, latent)
    constants = {
        "HEADS": group, "KV_HEADS": 1, "D": dim, "V": value_dim, "SPLIT": split, "PAGE": 16, "SHARED": latent,
        "ROWS": tile.rows, "BLOCK": tile.block, "FIELDS": len(PIECE), "WIDEN": False,
        "DA": low, "DB": high, "DV": value, "EARLY": True,
    }  # fmt: skip
    names = attend_piece.arg_names
    kinds = dict.fromkeys(("q", "k_pages", "v_pages", "out"), f"*{dtype}")
    kinds |= dict.fromkeys(("table", "pieces"), "*i32") | dict.fromkeys(("lse", "partial", "partial_lse"), "*fp32")
    kinds |= {"table_width": "i32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in kinds.items() if kind[0] == "*"}
    source = ASTSource(attend_piece, kinds, {(names.index(name),): value for name, value in constants.items()}, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


if __name__ == "__main__":
    print(json.dumps([shared_memory(*case) for case in json.loads(sys.argv[1])]))
