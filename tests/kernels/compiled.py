"""Compiles the kernels for an H100, without one, at the widths given; prints the shared memory that they take.

A script of its own: under the interpreter, which the other tests run in, nothing is compiled.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from inference_opt.kernels.attention import attend_piece
from inference_opt.kernels.filters import filter_row
from inference_opt.kernels.hopper import gqa, mla
from inference_opt.kernels.hopper.tiles import SMEM
from inference_opt.kernels.philox import EXACT
from inference_opt.kernels.plan import choose_tile, padded, tile_bytes
from inference_opt.kernels.race import race_of_block

SIZES = {"bf16": 2, "fp32": 4}


def shared_memory(rows: int, group: int, dim: int, value_dim: int, latent: bool, dtype: str) -> int:
    """Bytes that a program takes with the tile that is chosen for `rows` rows."""
    tile = choose_tile(rows, *tile_bytes(dim, value_dim if latent else None, SIZES[dtype]))
    split, low, high, value = padded(dim, value_dim, latent)
    constants = {
        "HEADS": group, "KV_HEADS": 1, "D": dim, "V": value_dim, "SPLIT": split, "PAGE": 16, "V_IN_K": latent,
        "ROWS": tile.rows, "BLOCK": tile.block,
        "LOOK_AHEAD": tile.looks_ahead, "WIDEN": False,
        "DA": low, "DB": high, "DV": value, "PDL": True, "PDL_OVERLAP": False,
    }  # fmt: skip
    names = attend_piece.arg_names
    kinds = dict.fromkeys(("q", "k_pages", "v_pages", "out"), f"*{dtype}")
    kinds |= dict.fromkeys(("table", "pieces"), "*i32") | dict.fromkeys(("lse", "partial", "partial_lse"), "*fp32")
    kinds |= {"table_width": "i32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in kinds.items() if kind[0] == "*"}
    source = ASTSource(attend_piece, kinds, {(names.index(name),): value for name, value in constants.items()}, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def hopper_memory(kernel: str, dim: int, dtype: str) -> int:
    """Bytes that a program of a Gluon kernel takes."""
    tiles = {"mla": {"q_tiles": 128, "wide": 128, "narrow": 64}, "gqa": {"k_tiles": 64, "v_tiles": 64}}[kernel]
    grouped = {"HEADS": 9, "KV_HEADS": 3, "D": dim, "BOX": 16, "STAGES": 256 // dim, "PAGE": 16}
    constants = {"mla": {"HEADS": 128, "PAGE": 64}, "gqa": grouped}[kernel]
    rows = constants.get("BOX", 64)
    fn = {"mla": mla.mla_piece, "gqa": gqa.gqa_piece}[kernel]
    kinds = {name: f"tensordesc<{dtype}[{rows}, {width}],{SMEM.value!r}>" for name, width in tiles.items()}
    kinds |= dict.fromkeys({"mla": ("q_rows", "out"), "gqa": ("q", "out")}[kernel], f"*{dtype}")
    kinds |= dict.fromkeys(("table", "pieces"), "*i32") | dict.fromkeys(("lse", "partial", "partial_lse"), "*fp32")
    kinds |= {"table_width": "i32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = GluonASTSource(fn, kinds, {(fn.arg_names.index(name),): value for name, value in constants.items()}, {})
    options = {"num_warps": 4} | ({"maxnreg": 168} if kernel == "gqa" else {})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def draw_memory(kernel: str, block: int, dtype: str) -> int:
    """Bytes that a program of a race or of a filter takes."""
    fn = {"race": race_of_block, "filters": filter_row}[kernel]
    constants = {"BLOCK": block, "PDL": True}
    constants |= {"FILTERED": True} if kernel == "race" else {"SHIFT": {"bf16": 16, "fp16": 13, "fp32": 0}[dtype]}
    kinds = dict.fromkeys(fn.arg_names, "*fp32") | {"logits": f"*{dtype}", "N": "i32", "max_rows": "i32"}
    kinds |= dict.fromkeys(set(fn.arg_names) & {"how", "place", "last", "tokens"}, "*i64")
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn, kinds, {(fn.arg_names.index(name),): value for name, value in constants.items()}, {})
    options = {"num_warps": 4, "maxnreg": 96, **EXACT} if kernel == "race" else {"num_warps": 32}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


if __name__ == "__main__":
    kinds = {"mla": hopper_memory, "gqa": hopper_memory, "race": draw_memory, "filters": draw_memory}
    found = [kinds.get(case[0], shared_memory)(*case) for case in json.loads(sys.argv[1])]
    print(json.dumps(found))
