"""Compiles the kernels for an H100, without one, at the widths given; prints the shared memory that they take.

A script of its own: under the interpreter, which the other tests run in, nothing is compiled.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from inference_opt.kernels import draft_head, draft_steps, experts, latents
from inference_opt.kernels.attention import attend_piece
from inference_opt.kernels.filters import filter_row
from inference_opt.kernels.hopper import few_rows, gqa, mla
from inference_opt.kernels.hopper.tiles import SMEM
from inference_opt.kernels.philox import EXACT
from inference_opt.kernels.plan import choose_tile, padded, tile_bytes
from inference_opt.kernels.race import race_of_block

SIZES = {"bf16": 2, "fp32": 4}


def shared_memory(rows: int, group: int, dim: int, value_dim: int, latent: bool, dtype: str, tree: bool = False) -> int:
    """Bytes that a program takes with the tile that is chosen for `rows` rows."""
    own = (value_dim, SIZES[dtype]) if latent else (None, SIZES[dtype], value_dim)
    tile = choose_tile(rows, *tile_bytes(dim, *own))
    split, low, high, value = padded(dim, value_dim, latent)
    constants = {
        "HEADS": group, "KV_HEADS": 1, "D": dim, "V": value_dim, "SPLIT": split, "PAGE": 16, "V_IN_K": latent,
        "TREE": tree,
        "ROWS": tile.rows, "BLOCK": tile.block,
        "LOOK_AHEAD": tile.looks_ahead, "WIDEN": False,
        "DA": low, "DB": high, "DV": value, "PDL": True, "PDL_OVERLAP": False,
    }  # fmt: skip
    names = attend_piece.arg_names
    kinds = dict.fromkeys(("q", "k_pages", "v_pages", "out"), f"*{dtype}")
    kinds |= dict.fromkeys(("table", "pieces"), "*i32") | dict.fromkeys(("lse", "partial", "partial_lse"), "*fp32")
    kinds |= {"seen_bits": "*i64", "table_width": "i32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in kinds.items() if kind[0] == "*"}
    source = ASTSource(attend_piece, kinds, {(names.index(name),): value for name, value in constants.items()}, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def hopper_memory(kernel: str, dim: int, dtype: str) -> int:
    """Bytes that a program of a Gluon kernel takes."""
    tiles = {"mla": {"q_tiles": 128, "wide": 128, "narrow": 64}, "gqa": {"k_tiles": 64, "v_tiles": 64}}[kernel]
    wide = min(dim, 128)
    grouped = {"HEADS": 9, "KV_HEADS": 3, "D": wide, "E": dim - wide, "BOX": 16, "STAGES": 256 // wide, "PAGE": 16}
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
    kinds = dict.fromkeys(fn.arg_names, "*fp32") | {
        "logits": f"*{dtype}",
        "N": "i32",
        "max_rows": "i32",
        "times": "i32",
    }
    kinds = {name: kinds[name] for name in fn.arg_names}
    kinds |= dict.fromkeys(set(fn.arg_names) & {"how", "place", "last", "tokens"}, "*i64")
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn, kinds, {(fn.arg_names.index(name),): value for name, value in constants.items()}, {})
    options = {"num_warps": 4, "maxnreg": 96, **EXACT} if kernel == "race" else {"num_warps": 32}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def compiled(fn: triton.runtime.JITFunction, constants: dict, dtype: str, options: dict) -> int:
    """Bytes that a program takes of a kernel whose pointers are to `dtype`, but for those of known names."""
    constants = {"PDL": True, "WIDEN": False} | constants
    constants = {name: value for name, value in constants.items() if name in fn.arg_names}
    numbers = ("tokens", "pairs", "stride", "q_stride", "kept_stride")
    kinds = dict.fromkeys(fn.arg_names, f"*{dtype}") | dict.fromkeys(numbers, "i32") | {"eps": "fp32", "factor": "fp32"}
    kinds |= dict.fromkeys(("chosen", "order", "first"), "*i32") | dict.fromkeys(("positions", "slots"), "*i64")
    kinds |= dict.fromkeys(("weights", "logits", "correction"), "*fp32") | dict.fromkeys(constants, "constexpr")
    kinds = {name: kinds[name] for name in fn.arg_names}
    aligned = {(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name, kind in kinds.items() if kind[0] == "*"}
    kind = GluonASTSource if fn.is_gluon() else ASTSource
    source = kind(fn, kinds, {(fn.arg_names.index(name),): value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def drafts_memory(_: str, gamma: int, dtype: str) -> int:
    """The most bytes that a program takes of the kernels around a draft head, and around a tree of drafts."""
    numbers = dict.fromkeys(("depth", "before", "slots", "up", "gamma", "width", "longest", "pages", "places"), "i32")
    numbers |= dict.fromkeys(("max_rows", "N", "listed", "most", "table_width"), "i32")
    words = dict.fromkeys(("known", "limit", "queries", "fed", "read", "place", "follow", "token_ids", "how"), "*i64")
    words |= dict.fromkeys(("last", "columns", "children", "depths", "parents", "most", "drafted", "tokens"), "*i64")
    words |= dict.fromkeys(("chosen", "drawn", "began", "step", "notes", "offsets"), "*i64")
    halves = dict.fromkeys(("text", "path", "draft", "table", "emitted"), "*i32")
    floats = dict.fromkeys(("least", "values", "tops", "scores", "scored"), "*fp32")
    sizes = {"DIM": 576, "BLOCK": 1024, "PAGE": 16, "FEW": 3, "SAMPLED": True, "FILTERED": True, "LISTED": 32}
    sizes |= {"WIDTH": 8193, "SPAN": triton.next_power_of_2(gamma + 1), "PDL": True}

    def taken(fn: triton.runtime.JITFunction, **own: object) -> int:
        constants = {name: value for name, value in (sizes | own).items() if name in fn.arg_names}
        kinds = dict.fromkeys(fn.arg_names, f"*{dtype}") | words | numbers | halves | floats
        kinds |= {"embed_eps": "fp32", "feature_eps": "fp32"} | {k: v for k, v in own.items() if isinstance(v, str)}
        kinds |= dict.fromkeys((name for name in constants if not isinstance(constants[name], str)), "constexpr")
        kinds = {name: kinds[name] for name in fn.arg_names}
        fixed = {(fn.arg_names.index(name),): value for name, value in constants.items() if name.isupper()}
        return triton.compile(ASTSource(fn, kinds, fixed, {}), target=GPUTarget("cuda", 90, 32)).metadata.shared

    return max(
        taken(draft_head.enter_slot),
        taken(draft_head.few_of_block, scores=f"*{dtype}"),
        taken(draft_head.place_few),
        taken(draft_steps.feed, most="*i64", pages="i32"),
        taken(draft_steps.commit),
        taken(draft_steps.keep_path, pages=f"*{dtype}", WIDTH=192),
    )


def few_rows_memory(_: str, rows: int, dtype: str) -> int:
    """The most bytes that a program takes of a product of few rows."""
    joined = {"NORM": True, "RESIDUAL": False, "GATED": True, "ROWS": rows}
    added = joined | {"NORM": False, "RESIDUAL": True, "GATED": False}
    return max(
        compiled(few_rows.project_few, joined | {"N": 1536, "K": 576, "BLOCK": 256}, dtype, {"num_warps": 4}),
        compiled(few_rows.project_few, joined | {"N": 8192, "K": 2048, "BLOCK": 512}, dtype, {"num_warps": 4}),
        compiled(few_rows.project_few, added | {"N": 4096, "K": 4096, "BLOCK": 256}, dtype, {"num_warps": 4}),
        compiled(few_rows.project_few, added | {"N": 2048, "K": 8192, "BLOCK": 256}, dtype, {"num_warps": 8}),
    )


def experts_memory(_: str, rows: int, dtype: str) -> int:
    """The most bytes that a program takes of a mixture as wide as DeepSeek-V3's, of `rows` rows for each expert."""
    tile = experts.tile_for(64 * rows, 64, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    assert tile.rows == rows
    sizes = {"EXPERTS": 64, "CHOSEN": 8, "SHARED": 1, "WIDE": 64, "ROWS": rows, "BLOCK": tile.block}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return max(
        compiled(experts.up_tile, sizes | {"N": 2048, "K": 7168, "COLUMNS": tile.columns}, dtype, options),
        compiled(experts.down_tile, sizes | {"N": 7168, "K": 2048, "COLUMNS": tile.down_columns}, dtype, options),
    )


def routing_memory(_: str, number: int, dtype: str) -> int:
    """The most bytes that a program takes of the kernels around the products, and of those for few tokens."""
    route = {"GROUPS": 8, "SIZE": number // 8, "KEPT": 4, "CHOSEN": 8, "CORRECTED": True, "NORMALISED": True}
    route |= {"WIDE_GROUPS": 8, "WIDE_SIZE": number // 8, "WIDE_CHOSEN": 8}
    row = {"CHOSEN": 8, "SHARED": 1, "NORM": True, "ROWS": 4, "BLOCK": 512}
    return max(
        compiled(experts.route_token, route, dtype, {"num_warps": 4}),
        compiled(experts.sort_expert, {"EXPERTS": number, "BLOCK": 1024}, dtype, {"num_warps": 4}),
        compiled(experts.join_token, {"CHOSEN": 8, "SHARED": 1, "N": 7168, "BLOCK": 1024}, dtype, {}),
        compiled(experts.up_row, row | {"N": 2048, "K": 7168}, dtype, {"num_warps": 2}),
        compiled(experts.down_row, row | {"N": 7168, "K": 2048}, dtype, {"num_warps": 2}),
    )


def latent_memory(_: str, rows: int, dtype: str) -> int:
    """The most bytes that a program takes of the kernels around latent attention, of `rows` tokens a program."""
    sizes = {"HEADS": 16, "GROUP": 1, "PLAIN": 128, "ROPE": 64, "LATENT": 512, "VALUE": 128, "NORM": True, "WIDE": 128}
    sizes |= {"FRONT": 512, "WIDE_HEADS": 16, "WIDE_ROPE": 64, "WIDE_LATENT": 512, "ROWS": rows, "BLOCK": 128}
    absorbed, valued = {16: (64, 16), 64: (128, 64)}[rows]
    return max(
        compiled(latents.rotate_latent, sizes, dtype, {}),
        compiled(latents.absorb_tile, sizes | {"COLUMNS": absorbed}, dtype, {}),
        compiled(latents.value_tile, sizes | {"COLUMNS": valued}, dtype, {"num_stages": 4}),
    )


if __name__ == "__main__":
    kinds = {"mla": hopper_memory, "gqa": hopper_memory, "race": draw_memory, "filters": draw_memory}
    kinds |= {"experts": experts_memory, "routing": routing_memory, "latents": latent_memory, "few": few_rows_memory}
    kinds |= {"drafts": drafts_memory}
    found = [kinds.get(case[0], shared_memory)(*case) for case in json.loads(sys.argv[1])]
    print(json.dumps(found))
