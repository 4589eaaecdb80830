"""Attention on paged keys and values: Triton kernels on CUDA, plain PyTorch elsewhere, the same results."""

from inference_opt.kernels.batch import Batch, SharedPrefix, plan_batch, shared_prefixes
from inference_opt.kernels.paged import merge_states, paged_attention, paged_decode, paged_prefill, write_kv

__all__ = [
    "Batch",
    "SharedPrefix",
    "merge_states",
    "paged_attention",
    "paged_decode",
    "paged_prefill",
    "plan_batch",
    "shared_prefixes",
    "write_kv",
]
