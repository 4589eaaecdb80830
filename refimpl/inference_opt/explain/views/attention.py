"""Attention, recorded through the `attend` that a model is given: where the keys lie, what is kept of latents."""

import sys
from collections.abc import Sequence
from inspect import unwrap
from types import CodeType, FrameType
from typing import Any, no_type_check

import torch
from torch import Tensor

from inference_opt.cache.paged import PagedBatch
from inference_opt.cache.paged_kernel import PagedKernelBatch
from inference_opt.explain.views.registry import PICTURES, SENTENCES, last_line, watching
from inference_opt.model.attention import KV, LatentForms, causal_attention
from inference_opt.model.mla import LatentAttention, multiplications
from inference_opt.trace import emit_at

ROWS, COLUMNS = 48, 64  # of what is kept, shown number by number

SENTENCES |= {
    "paged.attend": "layer {layer}: {q.shape[0]:new token} over {end:key} {how} pages {pages}",
    "mla.keep": "layer {layer}: of {kept.shape[0]:token} only latent and rotated key are kept, "
    "{kept.shape[2]:number} each",
    "mla.expand": "explicit: all {kept.shape[0]} latents are made keys and values of every head, "
    "for {q.shape[0]:query token}",
    "mla.absorb": "absorbed: {q.shape[0]:query token} brought to the latents' width, and {kept.shape[0]:latent} met "
    "as they are",
}


class WatchedBatch(KV):
    """A paged batch that tells of what its layers ask."""

    def __init__(self, batch: PagedBatch | PagedKernelBatch) -> None:
        self.batch, self.positions = batch, batch.positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """What the batch answers, told at the line where it answers."""
        out = self.batch.attend(layer, q, k, v, scale)
        self._tell(unwrap(type(self.batch).attend).__code__, layer, q, out, scale)
        return out

    @no_type_check  # a checker put round it would be its caller
    def attend_latents(self, layer: int, q: Tensor, kept: Tensor, forms: LatentForms) -> Tensor:
        """The same of latents; what is kept is told where the model hands it over."""
        frame = sys._getframe(1)
        emit_at(frame.f_code, frame.f_lineno, "mla.keep", of=forms, layer=layer, kept=kept)
        out = self.batch.attend_latents(layer, q, kept, WatchedForms(forms))
        self._tell(unwrap(type(self.batch).attend_latents).__code__, layer, q, out, forms.scale)
        return out

    def _tell(self, code: CodeType, layer: int, q: Tensor, out: Tensor, scale: float) -> None:
        cache = self.batch.cache
        if isinstance(self.batch, PagedBatch):
            tables = [pages.tolist() for pages in self.batch.pages]
            ends, counts = self.batch.ends, self.batch.counts
        else:
            plan = self.batch.plan(q.shape[1])
            ends, counts = plan.lengths, plan.counts
            tables = [row[: -(-end // cache.page_size)] for row, end in zip(plan.page_table.tolist(), ends)]
        for queries, mixed, pages, end in zip(q.split(counts), out.split(counts), tables, ends):
            seen = {"layer": layer, "pages": pages, "end": end, "q": queries, "out": mixed, "scale": scale}
            emit_at(code, last_line(code), "paged.attend", cache=cache, **seen)


class WatchedForms:
    """Latent attention that tells which form it takes."""

    def __init__(self, forms: Any) -> None:
        self.forms = forms
        self.scale = forms.scale
        self.asked: tuple[Tensor, Tensor] | None = None  # what `over` was asked for: queries, latents

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forms, name)

    def values(self, mixed: Tensor) -> Tensor:
        """Values of mixtures of latents."""
        return self.forms.values(mixed)

    def over(self, q: Tensor, kept: Tensor) -> Tensor:
        """The technique's own lines, run on this object, so that the form they call tells of itself."""
        self.asked = q, kept
        return type(self.forms).over(self, q, kept)

    @no_type_check
    def absorb(self, q: Tensor) -> Tensor:
        """The absorbed form."""
        self._tell("mla.absorb", "absorbed", sys._getframe(1))
        return self.forms.absorb(q)

    @no_type_check
    def expand(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The explicit form."""
        self._tell("mla.expand", "explicit", sys._getframe(1))
        return self.forms.expand(kept)

    def _tell(self, event: str, form: str, frame: FrameType) -> None:
        if self.asked is not None:  # kernels ask for a form without `over`: they have no latents at hand to show
            q, kept = self.asked
            emit_at(frame.f_code, frame.f_lineno, event, of=self.forms, q=q, kept=kept, form=form)


@watching.register
def watch_pages(batch: PagedBatch) -> WatchedBatch:
    """A batch that is asked by a model."""
    return WatchedBatch(batch)


@watching.register
def watch_kernels(batch: PagedKernelBatch) -> WatchedBatch:
    """A batch that is answered by kernels."""
    return WatchedBatch(batch)


def attended(
    cache: Any, layer: int, pages: Sequence[int], end: int, q: Tensor, out: Tensor, scale: float
) -> dict[str, Any]:
    """One sequence's attention: where its keys lie, and how the last new token weighs them."""
    kept = cache.bytes_per_token() // len(cache.keys)  # of one layer
    gathers = cache.may_grow  # kernels read pages where they lie
    counters = {
        "keys and values computed": {"value": len(q), "naive": end},
        "bytes gathered" if gathers else "bytes read": end * kept,
    }
    picture: dict[str, Any] = {
        "kind": "attention",
        "layer": layer,
        "table": list(pages),
        "end": end,
        "new": len(q),
        "page_size": cache.page_size,
        "pages": cache.num_pages,
        "weights": [],
        "counters": counters,
        "said": {"how": "gathered from" if gathers else "read in"},
    }
    if cache.latent_dim is not None:  # the weights are the latent form's own affair
        return picture
    used = torch.tensor(pages, device=q.device)
    k, v = (x[layer].index_select(0, used).flatten(0, 1)[:end].double() for x in (cache.keys, cache.values))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # [end, heads, d]
    weights = torch.softmax(torch.einsum("hd,khd->hk", q[-1].double(), k) * scale, dim=-1)  # [heads, end]
    eps = torch.finfo(out.dtype).eps
    same = torch.allclose(torch.einsum("hk,khd->hd", weights, v), out[-1].double(), rtol=4 * eps, atol=max(1e-4, eps))
    fits = end <= len(pages) * cache.page_size
    invariants = {"the weights drawn give the output": same, "the page table has a page for every key": fits}
    shown = weights.nan_to_num().round(decimals=4).tolist()  # a slot that was not written may hold NaN
    return picture | {"weights": shown, "invariants": invariants}


def latent_state(
    of: LatentAttention, kept: Tensor, layer: int | None = None, q: Tensor | None = None, form: str = "kept"
) -> dict[str, Any]:
    """Widths, what is kept, and whether the two forms agree."""
    shape = of.shape
    widths = {
        "heads": of.heads,
        "kv_heads": of.kv_heads,
        "latent": shape.kv_lora_rank,
        "rope": shape.qk_rope_head_dim,
        "key": shape.qk_nope_head_dim,
        "value": shape.v_head_dim,
    }
    queries, keys = 0 if q is None else len(q), len(kept)
    rows = kept[-ROWS:, 0, :COLUMNS].double().round(decimals=3)
    picture = {"kind": "mla", "form": form, "queries": queries, "keys": keys, "widths": widths, "rows": rows.tolist()}
    each = of.kv_heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim + shape.v_head_dim)
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    counters: dict[str, Any] = {"numbers kept a token": {"value": latent, "naive": each}}
    invariants = {}
    if q is not None:
        other = "explicit" if form == "absorbed" else "absorbed"
        counters["multiplications in this form"] = multiplications(of.config, form, queries, keys)
        counters["multiplications in the other"] = multiplications(of.config, other, queries, keys)
        with torch.inference_mode():
            mixed = causal_attention(of.absorb(q), kept, kept[..., : shape.kv_lora_rank], of.scale)
            same = torch.allclose(causal_attention(q, *of.expand(kept), of.scale), of.values(mixed), atol=1e-4)
        invariants["both forms give the same values"] = same
    return picture | {"counters": counters, "invariants": invariants}


PICTURES |= {
    "paged.attend": attended,
    "mla.keep": latent_state,
    "mla.absorb": latent_state,
    "mla.expand": latent_state,
}
