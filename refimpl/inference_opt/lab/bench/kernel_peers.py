"""Other projects' paged decoding kernels. Each function gets our inputs and returns a call to time.

FlashInfer (`flashinfer-python`), FlashMLA (`flash_mla`) and SGLang's Triton kernel (`sglang`). A function returns None
if its kernel does not support the case or is not installed.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def flashinfer(case: Any, inputs: Any) -> Callable[[], Tensor] | None:
    """FlashInfer: tensor cores for grouped queries, the fa3 backend for latent attention."""
    if _module("flashinfer") is None:
        return None
    counts, lengths = (torch.tensor(each, dtype=torch.int32) for each in zip(*case.sequences))
    used = -(-lengths // case.page)
    first, start = (torch.nn.functional.pad(each.cumsum(0), (1, 0)).int() for each in (counts, used))
    pages = torch.cat([row[:n] for row, n in zip(inputs.table, used.tolist())])
    workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    if case.shared:
        mla = _module("flashinfer.mla").BatchMLAPagedAttentionWrapper(workspace, backend="fa3")
        rest = case.dim - case.value_dim
        mla.plan(
            first.cuda(),
            start.cuda(),
            pages,
            lengths.cuda(),
            case.heads,
            case.value_dim,
            rest,
            case.page,
            True,
            inputs.scale,
            torch.bfloat16,
            torch.bfloat16,
        )
        q = inputs.q
        pages = inputs.k_pages.squeeze(2)
        parts = [x.contiguous() for t in (q, pages) for x in t.split((case.value_dim, rest), dim=-1)]
        return lambda: mla.run(*parts)
    last = lengths - (used - 1) * case.page
    table = start.cuda(), pages, last.cuda()
    sizes = case.heads, case.kv_heads, case.dim, case.page
    types = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16, "sm_scale": inputs.scale}
    if max(counts) == 1:
        wrapper = _module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(*table, *sizes, **types)
    else:
        wrapper = _module("flashinfer").BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(first.cuda(), *table, *sizes, causal=True, **types)
    return lambda: wrapper.run(inputs.q, (inputs.k_pages, inputs.v_pages))


def flash_mla(case: Any, inputs: Any) -> Callable[[], Tensor] | None:
    """FlashMLA, DeepSeek's own kernel: latent attention on pages of 64."""
    module = _module("flash_mla")
    if module is None or not case.shared or case.page != 64 or case.queries > 2:
        return None
    lengths = torch.full((case.batch,), case.length, dtype=torch.int32, device="cuda")
    plan = module.get_mla_metadata(lengths, case.queries * case.heads, 1)
    q = inputs.q.view(case.batch, case.queries, case.heads, case.dim)
    return lambda: module.flash_mla_with_kvcache(
        q, inputs.k_pages, inputs.table, lengths, case.value_dim, *plan, softmax_scale=inputs.scale, causal=True
    )[0]


def sglang(case: Any, inputs: Any) -> Callable[[], Tensor] | None:
    """SGLang's Triton kernel. It addresses tokens, so any size of page will do."""
    module = _module("sglang.srt.layers.attention.triton_ops.decode_attention")
    if module is None or case.queries > 1 or case.others:
        return None
    offsets = torch.arange(case.page, device="cuda", dtype=torch.int32)
    slots = (inputs.table[:, :, None] * case.page + offsets).view(case.batch, -1)[:, : case.length].flatten()
    start = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda") * case.length
    keys = inputs.k_pages.flatten(0, 1)
    values = keys[..., : case.value_dim] if case.shared else inputs.v_pages.flatten(0, 1)
    out = torch.empty(case.batch, case.heads, case.value_dim, dtype=torch.bfloat16, device="cuda")
    max_splits = 8
    parts = torch.empty(case.batch, case.heads, max_splits, case.value_dim, dtype=torch.float32, device="cuda")
    sums = torch.empty(case.batch, case.heads, max_splits, dtype=torch.float32, device="cuda")
    splits = torch.full((case.batch,), max_splits, dtype=torch.int32, device="cuda")

    def run() -> Tensor:
        module.decode_attention_fwd(
            inputs.q, keys, values, out, start, slots, parts, sums, splits, max_splits, inputs.scale
        )
        return out

    return run


PEERS = {"FlashInfer": flashinfer, "FlashMLA": flash_mla, "SGLang": sglang}
