"""Writing new keys and values into their pages: one program a token, both tensors in one launch."""

import triton
import triton.language as tl


@triton.jit
def write_token(
    k,  # [tokens, …]: K numbers a token, which lie together
    v,  # [tokens, …]: V numbers a token
    k_pages,  # [slots, K]
    v_pages,  # [slots, V]
    slots,  # [tokens]
    k_stride,
    v_stride,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDE: tl.constexpr,  # the larger of K and V, as a power of two
):
    """Write one token's key and value into its slot, page · page_size + offset. A slot below 0: write nowhere."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        i = tl.arange(0, WIDE)
        tl.store(k_pages + slot * K + i, tl.load(k + token.to(tl.int64) * k_stride + i, mask=i < K), mask=i < K)
        if V > 0:
            tl.store(v_pages + slot * V + i, tl.load(v + token.to(tl.int64) * v_stride + i, mask=i < V), mask=i < V)
