"""Attention on paged keys and values: Triton kernels on CUDA, plain PyTorch elsewhere, the same results."""

from inference_opt.kernels.batch import Batch, common_stems, plan_batch
from inference_opt.kernels.paged import merge_states, paged_attention, paged_decode, paged_prefill, write_kv

__all__ = [
    "Batch",
    "common_stems",
    "merge_states",
    "paged_attention",
    "paged_decode",
    "paged_prefill",
    "plan_batch",
    "write_kv",
]
