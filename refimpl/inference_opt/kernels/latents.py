"""Latent attention's small operations and its products by head, joined: between its projections and attention.

    rotate     RMSNorm of the latent, RoPE of the shared key, both into their slot; RoPE of each head's query
    absorb     the same, and W_UKᵀ q_C of each head: the query meets latents as they are     [tokens, heads, d_c + d_R]
    values     W_UV of each head's mixture of latents, behind attention                      [tokens, heads · d_v]
    expand     or, for long prompts: the keys and values of every head, in pages of their own

The equations are those of `model/mla.py`. `cache/fused_forward.py` puts them between `fused.project` and attention.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.kernels.attention import dot
from inference_opt.kernels.pdl import INTERPRETED, launch_options


@triton.jit
def rotate_latent(
    q,  # [tokens, HEADS, PLAIN + ROPE], a token each `q_stride`
    kept,  # [tokens, LATENT + ROPE], a token each `kept_stride`
    norm,  # [LATENT], with NORM
    cos,  # [positions, ROPE]
    sin,  # [positions, ROPE], its first half negative
    positions,
    slots,
    out,  # [tokens, HEADS, FRONT + ROPE]: the rotated part of each query is written behind FRONT columns
    pages,  # [slots, LATENT + ROPE]
    eps,
    q_stride,
    kept_stride,
    HEADS: tl.constexpr,
    PLAIN: tl.constexpr,
    ROPE: tl.constexpr,
    LATENT: tl.constexpr,
    FRONT: tl.constexpr,
    NORM: tl.constexpr,
    WIDE_HEADS: tl.constexpr,  # HEADS, ROPE and LATENT as powers of two
    WIDE_ROPE: tl.constexpr,
    WIDE_LATENT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rotate one token's queries and its key; write what is kept into its slot. A slot below 0: write nowhere."""
    # Positions and slots, as part of the plan, were there before the kernel in front, and so were norm and angles.
    token = tl.program_id(0).to(tl.int64)
    h, d, c = tl.arange(0, WIDE_HEADS)[:, None], tl.arange(0, WIDE_ROPE)[None, :], tl.arange(0, WIDE_LATENT)
    position, slot = tl.load(positions + token), tl.load(slots + token).to(tl.int64)
    cosine = tl.load(cos + position * ROPE + d, mask=d < ROPE).to(tl.float32)
    sine = tl.load(sin + position * ROPE + d, mask=d < ROPE).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    # RoPE of the queries, rounded where `model.rope.rotate` rounds.
    inside = (h < HEADS) & (d < ROPE)
    row = q + token * q_stride + h * (PLAIN + ROPE) + PLAIN
    x = tl.load(row + d, mask=inside)
    other = tl.load(row + (d + ROPE // 2) % ROPE, mask=inside).to(tl.float32)
    rotated = (x.to(tl.float32) * cosine).to(x.dtype).to(tl.float32) + other * sine
    tl.store(out + (token * HEADS + h) * (FRONT + ROPE) + FRONT + d, rotated, mask=inside)

    if slot >= 0:
        mine = kept + token * kept_stride
        latent = tl.load(mine + c, mask=c < LATENT, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.load(norm + c, mask=c < LATENT, other=0.0).to(tl.float32)
            latent = latent / tl.sqrt(tl.sum(latent * latent, 0) / LATENT + eps) * scale
        tl.store(pages + slot * (LATENT + ROPE) + c, latent, mask=c < LATENT)
        key = tl.load(mine + LATENT + d, mask=d < ROPE)
        partner = tl.load(mine + LATENT + (d + ROPE // 2) % ROPE, mask=d < ROPE).to(tl.float32)
        turned = (key.to(tl.float32) * cosine).to(key.dtype).to(tl.float32) + partner * sine
        tl.store(pages + slot * (LATENT + ROPE) + LATENT + d, turned, mask=d < ROPE)


@triton.jit
def absorb_tile(
    q,  # [tokens, HEADS, PLAIN + ROPE], a token each `q_stride`
    up,  # [HEADS / GROUP, PLAIN + VALUE, LATENT]: rows of W_UK, then of W_UV
    absorbed,  # [tokens, HEADS, LATENT + ROPE]
    tokens,
    q_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads that share a W_UK
    PLAIN: tl.constexpr,
    ROPE: tl.constexpr,
    LATENT: tl.constexpr,
    VALUE: tl.constexpr,
    WIDE: tl.constexpr,  # PLAIN, as a power of two
    ROWS: tl.constexpr,  # tokens of a program
    COLUMNS: tl.constexpr,  # of the latent
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """COLUMNS numbers of W_UKᵀ q, of one head of ROWS tokens."""
    blocks: tl.constexpr = (LATENT + COLUMNS - 1) // COLUMNS
    head = tl.program_id(0) // blocks
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c, d = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDE)
    weight = up + (head // GROUP).to(tl.int64) * (PLAIN + VALUE) * LATENT
    w = tl.load(weight + d[:, None] * LATENT + c[None, :], mask=(d < PLAIN)[:, None] & (c < LATENT)[None, :], other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = t.to(tl.int64)[:, None] * HEADS + head
    real = (t < tokens)[:, None]
    own = t.to(tl.int64)[:, None] * q_stride + head * (PLAIN + ROPE)
    x = tl.load(q + own + d[None, :], mask=real & (d < PLAIN)[None, :], other=0.0)
    acc = dot(x, w, tl.zeros([ROWS, COLUMNS], tl.float32), WIDEN)
    tl.store(absorbed + row * (LATENT + ROPE) + c[None, :], acc, mask=real & (c < LATENT)[None, :])


@triton.jit
def value_tile(
    mixed,  # [tokens, HEADS, LATENT]
    up,  # as above
    out,  # [tokens, HEADS, VALUE]
    tokens,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PLAIN: tl.constexpr,
    LATENT: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,  # tokens of a program
    COLUMNS: tl.constexpr,  # of the value
    BLOCK: tl.constexpr,  # columns of the latent, at a time
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """COLUMNS numbers of W_UV times the mixture, of one head of ROWS tokens."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    blocks: tl.constexpr = (VALUE + COLUMNS - 1) // COLUMNS
    head = tl.program_id(0) // blocks
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    v, k = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    weight = up + ((head // GROUP).to(tl.int64) * (PLAIN + VALUE) + PLAIN) * LATENT
    row = t.to(tl.int64)[:, None] * HEADS + head
    real = (t < tokens)[:, None]
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, LATENT, BLOCK):
        inside, at = (start + k < LATENT)[None, :], start + k[None, :]
        x = tl.load(mixed + row * LATENT + at, mask=real & inside, other=0.0)
        w = tl.load(weight + v[:, None] * LATENT + at, mask=(v < VALUE)[:, None] & inside, other=0.0)
        acc = dot(x, tl.trans(w), acc, WIDEN)
    tl.store(out + row * VALUE + v[None, :], acc, mask=real & (v < VALUE)[None, :])


def rotate(
    q: Float[Tensor, "tokens heads query_dim"],
    kept: Float[Tensor, "tokens kept_dim"],
    norm: nn.RMSNorm | None,
    cos: Float[Tensor, "positions rope_dim"],
    sin: Float[Tensor, "positions rope_dim"],
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    pages: Float[Tensor, "pages page_size 1 kept_dim"],
    front: int,
    pdl: bool = False,
) -> Float[Tensor, "tokens heads turned_dim"]:
    """The rotated part of each query, behind `front` columns for the other part, which the caller writes.

    The normalised latent and the rotated key are written into their slots. The caller has checked positions and slots.
    `pdl`: they, the weights and the angles were there before the last ordinary launch in front of this call (`pdl.py`).
    """
    (tokens, heads, query), rope = q.shape, cos.shape[1]
    latent = kept.shape[1] - rope
    turned = q.new_empty(tokens, heads, front + rope)
    rotate_latent[(tokens,)](
        q, kept, kept if norm is None else norm.weight, cos, sin, positions, slots, turned, pages,
        0.0 if norm is None else norm.eps, q.stride(0), kept.stride(0), heads, query - rope, rope, latent, front,
        norm is not None, *map(triton.next_power_of_2, (heads, rope, latent)), **launch_options(pdl),
    )  # fmt: skip
    return turned


def absorb(
    q: Float[Tensor, "tokens heads query_dim"],
    kept: Float[Tensor, "tokens kept_dim"],
    norm: nn.RMSNorm | None,
    up: Float[Tensor, "kv_heads rows latent_dim"],
    cos: Float[Tensor, "positions rope_dim"],
    sin: Float[Tensor, "positions rope_dim"],
    positions: Int[Tensor, "tokens"],
    slots: Int[Tensor, "tokens"],
    pages: Float[Tensor, "pages page_size 1 kept_dim"],
    pdl: bool = False,
) -> Float[Tensor, "tokens heads kept_dim"]:
    """Queries that meet latents as they are; latents and keys are written as by `rotate`.

    `up`: of each key head W_UK, then W_UV. `pdl`: as there.
    """
    tokens, heads, query = q.shape
    rope, latent = cos.shape[1], up.shape[2]
    plain = query - rope
    absorbed = rotate(q, kept, norm, cos, sin, positions, slots, pages, latent, pdl)
    rows, columns = (16, 64) if tokens <= 64 or q.dtype == torch.float32 else (64, 128)
    wide = max(16, triton.next_power_of_2(plain))
    absorb_tile[(heads * triton.cdiv(latent, columns), triton.cdiv(tokens, rows))](
        q, up, absorbed, tokens, q.stride(0), heads, heads // len(up), plain, rope, latent, up.shape[1] - plain, wide,
        rows, columns, INTERPRETED and q.dtype == torch.bfloat16, **launch_options(pdl),
    )  # fmt: skip
    return absorbed


def values(
    mixed: Float[Tensor, "tokens heads latent_dim"], up: Float[Tensor, "kv_heads rows latent_dim"], plain: int
) -> Float[Tensor, "tokens width"]:
    """The values of each head's mixture of latents, the heads beside each other. `plain`: the rows of W_UK in `up`."""
    tokens, heads, latent = mixed.shape
    value = up.shape[1] - plain
    out = mixed.new_empty(tokens, heads * value)
    rows, columns = (16, 16) if tokens <= 64 or mixed.dtype == torch.float32 else (64, 64)
    value_tile[(heads * triton.cdiv(value, columns), triton.cdiv(tokens, rows))](
        mixed, up, out, tokens, heads, heads // len(up), plain, latent, value, rows, columns, 128,
        INTERPRETED and mixed.dtype == torch.bfloat16, num_stages=4, **launch_options(pdl=True),
    )  # fmt: skip
    return out


def expand(
    latents: Float[Tensor, "pages page_size 1 kept_dim"], up: Float[Tensor, "kv_heads rows latent_dim"], plain: int
) -> tuple[Float[Tensor, "pages page_size kv_heads key_dim"], Float[Tensor, "pages page_size kv_heads value_dim"]]:
    """Keys [W_UK c; k_R] and values W_UV c of every head, a page for each page. `plain`: the rows of W_UK in `up`."""
    kv_heads, _, latent = up.shape
    c, k_rope = latents.split((latent, latents.shape[-1] - latent), dim=-1)
    # Each part of the weights is copied, which is little beside the keys: so values come out in one piece.
    k, v = (nn.functional.linear(c.squeeze(2), part.flatten(0, 1)) for part in (up[:, :plain], up[:, plain:]))
    k, v = (each.unflatten(-1, (kv_heads, -1)) for each in (k, v))
    return torch.cat((k, k_rope.expand(-1, -1, kv_heads, -1)), dim=-1), v
