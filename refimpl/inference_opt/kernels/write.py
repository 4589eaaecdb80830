"""New keys and values into their pages: one program a token, both tensors in one launch."""

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


# [write]
@triton.jit
def write_token(
    k,  # [tokens, ...], K numbers a token that lie together
    v,  # [tokens, ...], V numbers a token
    k_pages,  # [slots, K]
    v_pages,  # [slots, V]
    slots,  # [tokens]
    k_stride,
    v_stride,
    K: tl.constexpr,
    V: tl.constexpr,
    WIDE: tl.constexpr,  # a power of two, at least K and V
):
    """One token's key and value to its slot; a slot below 0: nowhere."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        i = tl.arange(0, WIDE)
        tl.store(k_pages + slot * K + i, tl.load(k + token.to(tl.int64) * k_stride + i, mask=i < K), mask=i < K)
        if V > 0:
            tl.store(v_pages + slot * V + i, tl.load(v + token.to(tl.int64) * v_stride + i, mask=i < V), mask=i < V)


# [/write]


def write_kv(
    k: Float[Tensor, "tokens kv_heads dim"],
    v: Float[Tensor, "tokens kv_heads value_dim"] | None,
    k_pages: Float[Tensor, "pages page_size kv_heads dim"],
    v_pages: Float[Tensor, "pages page_size kv_heads value_dim"] | None,
    slots: Int[Tensor, "tokens"],
) -> None:
    """As `reference.write_kv`. The tokens of k and v may lie apart (views of one projection), a token's numbers not."""

    def together(x: Tensor) -> Tensor:
        return x if x[:1].is_contiguous() else x.contiguous()

    if v is None or v_pages is None:
        args, wide = (k, k, k_pages, k_pages), (k[0].numel(), 0)
    else:
        args, wide = (k, v, k_pages, v_pages), (k[0].numel(), v[0].numel())
    k, v, *pages = map(together, args)
    write_token[(len(k),)](k, v, *pages, slots, k.stride(0), v.stride(0), *wide, triton.next_power_of_2(max(wide)))
