"""Solutions of chapter 02's exercises."""

PEAK = "max(self.peak, self.num_pages - len(self._free))"
POSSIBLE = 'if not 0 <= (count := integer("count", count)) <= len(self._free):'
SLOTS = "pages[positions // page_size] * page_size"
WRITES = """    key_pages.flatten(0, 1).index_copy_(0, self.slots, k)
    value_pages.flatten(0, 1).index_copy_(0, self.slots, v)
"""

WRONG = {
    "02.allocate": {
        "from the other end": (("self._free.pop()", "self._free.pop(0)"),),
        "the order of the stack": (("for _ in range(count)]", "for _ in range(count)][::-1]"),),
        "the flags are forgotten": (("self._is_free[page] = 0", "pass"),),
        "the peak is what is in use": (("max(self.peak, self.num_pages", "max(0, self.num_pages"),),
        "the peak counts what was ever taken": ((PEAK, "self.peak + count"),),
        "the peak of before": ((f"self.peak = {PEAK}", ""), ("    pages =", f"    self.peak = {PEAK}\n    pages =")),
        "what there is, if too many are wanted": ((POSSIBLE, "count = min(count, self.free)\n    if count < 0:"),),
        "some are gone after an error": """
            def allocate(self, count: int) -> list[int]:
                if count < 0:
                    raise ValueError
                pages = []
                while len(pages) < count:
                    if not self._free:
                        raise ValueError("no more pages")
                    pages.append(self._free.pop())
                    self._is_free[pages[-1]] = 0
                    self.peak = max(self.peak, self.num_pages - len(self._free))
                return pages
        """,
        "a negative count": ((POSSIBLE, "if count > len(self._free):"),),
        "the last page is never given": (("<= len(self._free)", "< len(self._free)"),),
        "a slice that takes all for none": """
            def allocate(self, count: int) -> list[int]:
                if not 0 <= count <= len(self._free):
                    raise ValueError("too few pages")
                pages = self._free[-count:][::-1]
                del self._free[-count:]
                for page in pages:
                    self._is_free[page] = 0
                self.peak = max(self.peak, self.num_pages - len(self._free))
                return pages
        """,
    },
    "02.release": {
        "no check": (("not 0 <= page < self.num_pages or self._is_free[page]", "False"),),
        "the last page by another name": (("not 0 <= page < self.num_pages or", "page >= self.num_pages or"),),
        "a page too far": (("not 0 <= page < self.num_pages or", "page < 0 or"),),
        "twice in one call": (("if len(set(pages)) < len(pages)", "if False"),),
        "the flags are forgotten": (("self._is_free[page] = 1", "pass"),),
        "the stack is forgotten": (("self._free.extend(pages)", "pass"),),
        "one by one, until an error": """
            def release(self, pages) -> None:
                for page in pages:
                    if not 0 <= page < self.num_pages or self._is_free[page]:
                        raise ValueError(f"page {page} is not allocated")
                    self._is_free[page] = 1
                    self._free.append(page)
        """,
        "a generator is gone after the check": """
            def release(self, pages) -> None:
                seen = set()
                for page in pages:
                    if not 0 <= page < self.num_pages or self._is_free[page] or page in seen:
                        raise ValueError(f"page {page} is not allocated")
                    seen.add(page)
                for page in pages:
                    self._is_free[page] = 1
                    self._free.append(page)
        """,
        "it empties the caller's list": """
            def release(self, pages) -> None:
                copy = list(pages)
                if len(set(copy)) < len(copy) or any(not 0 <= p < self.num_pages or self._is_free[p] for p in copy):
                    raise ValueError("not allocated")
                while isinstance(pages, list) and pages:
                    pages.pop()
                for page in copy:
                    self._is_free[page] = 1
                self._free += copy
        """,
        "what can be given back is": """
            def release(self, pages) -> None:
                for page in set(pages):
                    if 0 <= page < self.num_pages and not self._is_free[page]:
                        self._is_free[page] = 1
                        self._free.append(page)
        """,
    },
    "02.slots": {
        "the page within the text": ((SLOTS, "positions // page_size * page_size"),),
        "the page is the slot": (("] * page_size +", "] +"),),
        "no place within the page": ((" + positions % page_size", ""),),
        "division for remainder": (("positions % page_size", "positions // page_size"),),
        "page and place exchanged": ((SLOTS, "pages[positions % page_size] * page_size"),),
        "floats": ((SLOTS, f"1.0 * {SLOTS}"),),
        "a list": """
            def slots_of(pages, positions, page_size: int):
                return [int(pages[t // page_size]) * page_size + int(t) % page_size for t in positions]
        """,
        "all tokens": """
            def slots_of(pages, positions, page_size: int):
                return (pages[:, None] * page_size + torch.arange(page_size)).flatten()[: len(positions)]
        """,
    },
    "02.attend": {
        "nothing is written": ((WRITES, ""),),
        "values where keys belong": (("self.slots, v)", "self.slots, k)"),),
        "always the first layer": (("keys[layer]", "keys[0]"), ("values_of(layer)", "values_of(0)")),
        "the new tokens only": (("causal_attention(queries, keys, values, scale)",
                                 "causal_attention(queries, keys[-len(queries):], values[-len(queries):], scale)"),),
        "read before it is written": ((WRITES, ""), ("    return outputs", WRITES + "    return outputs")),
        "positions for slots": (("self.slots", "self.positions"),),
        "the last page, all of it": (("gather(key_pages, pages, end), gather(value_pages, pages, end)",
                                      "gather(key_pages, pages, 10**6), gather(value_pages, pages, 10**6)"),),
        "no scale": (("values, scale)", "values, 1.0)"),),
        "the first text only": (("torch.cat(outputs)", "outputs[0]"),),
        "each text writes, then reads": """
            def attend(self, layer: int, q, k, v, scale: float):
                kept = self.cache.keys[layer], self.cache.values_of(layer)
                outputs, parts = [], (x.split(self.counts) for x in (self.slots, q, k, v))
                for slots, queries, new_k, new_v, pages, end in zip(*parts, self.pages, self.ends):
                    kept[0].flatten(0, 1)[slots], kept[1].flatten(0, 1)[slots] = new_k, new_v
                    outputs.append(causal_attention(queries, *(gather(x, pages, end) for x in kept), scale))
                return torch.cat(outputs)
        """,
        "a copy is written": (("key_pages.flatten(0, 1).index_copy_", "key_pages.flatten(0, 1).index_copy"),),
    },
    "02.gather": {
        "still sorted": (("index_select(0, pages)", "index_select(0, pages.sort().values)"),),
        "the other way round": (("index_select(0, pages)", "index_select(0, pages.flip(0))"),),
        "not cut": ((".flatten(0, 1)[:end]", ".flatten(0, 1)"),),
        "cut at the wrong end": (("[:end]", "[-end:]"),),
        "one too few": (("[:end]", "[: end - 1]"),),
        "the first pages of the pool": (("layer.index_select(0, pages)", "layer[: len(pages)]"),),
        "cut before it is flattened": ((".flatten(0, 1)[:end]", "[:, :end].flatten(0, 1)"),),
        "a neighbour's page": (("index_select(0, pages)", "index_select(0, (pages + 1) % len(layer))"),),
    },
}  # fmt: skip

RIGHT = {
    "02.allocate": {
        "a slice": """
            def allocate(self, count: int) -> list[int]:
                rest = len(self._free) - count
                if count < 0 or rest < 0:
                    raise ValueError("too few pages")
                pages = self._free[rest:][::-1]
                self._free = self._free[:rest]
                for page in pages:
                    self._is_free[page] = False
                if (used := self.num_pages - rest) > self.peak:
                    self.peak = used
                return pages
        """,
    },
    "02.release": {
        "in the other order, one by one": """
            def release(self, pages) -> None:
                known = []
                for page in pages:
                    if page in known or page not in range(self.num_pages) or page in self._free:
                        raise ValueError(f"page {page} is not allocated")
                    known.append(page)
                while known:
                    page = known.pop()
                    self._is_free[page] = True
                    self._free.append(page)
        """,
        "the lowest page is taken next": """
            def release(self, pages) -> None:
                back = [*pages]
                if len({*back}) != len(back) or not {*back} <= {*range(self.num_pages)} - {*self._free}:
                    raise ValueError("not all of them are allocated")
                self._free = sorted([*self._free, *back], reverse=True)
                for page in back:
                    self._is_free[page] = 1
        """,
    },
    "02.slots": {
        "a table of all slots": """
            import torch

            def slots_of(pages, positions, page_size: int):
                return (pages[:, None] * page_size + torch.arange(page_size)).flatten()[positions]
        """,
        "a loop": """
            def slots_of(pages, positions, page_size: int):
                out = positions.clone()
                for n, t in enumerate(positions.tolist()):
                    page, place = divmod(t, page_size)
                    out[n] = pages[page] * page_size + place
                return out
        """,
    },
    "02.attend": {
        "by index, texts one by one": """
            def attend(self, layer: int, q, k, v, scale: float):
                pages = self.cache.keys[layer], self.cache.values_of(layer)
                for kept, new in zip(pages, (k, v)):
                    kept.flatten(0, 1)[self.slots] = new
                out, first = torch.empty(len(q), q.shape[1], v.shape[2], dtype=q.dtype), 0
                for count, table, end in zip(self.counts, self.pages, self.ends):
                    mine = slice(first, first + count)
                    keys, values = (kept[table].flatten(0, 1)[:end] for kept in pages)
                    out[mine] = causal_attention(q[mine], keys, values, scale)
                    first += count
                return out
        """,
        "token by token, attention written out": """
            def attend(self, layer: int, q, k, v, scale: float):
                keys, values = self.cache.keys[layer], self.cache.values_of(layer)
                size = keys.shape[1]
                for n, slot in enumerate(self.slots.tolist()):
                    keys[slot // size, slot % size], values[slot // size, slot % size] = k[n], v[n]
                outputs, first = [], 0
                for count, pages, end in zip(self.counts, self.pages, self.ends):
                    for i in range(count):
                        seen = end - count + i + 1
                        own, its = keys[pages].flatten(0, 1)[:seen], values[pages].flatten(0, 1)[:seen]
                        group = q.shape[1] // own.shape[1]
                        own, its = own.repeat_interleave(group, 1), its.repeat_interleave(group, 1)
                        weights = (torch.einsum("hd,khd->hk", q[first + i], own) * scale).softmax(-1)
                        outputs.append(torch.einsum("hk,khd->hd", weights, its))
                    first += count
                return torch.stack(outputs)
        """,
    },
    "02.gather": {
        "by index": """
            def gather(layer, pages, end: int):
                return layer[pages].reshape(-1, *layer.shape[2:])[:end]
        """,
        "a loop": """
            def gather(layer, pages, end: int):
                size = layer.shape[1]
                rows = layer.new_empty(end, *layer.shape[2:])
                for t in range(end):
                    rows[t] = layer[int(pages[t // size]), t % size]
                return rows
        """,
    },
}
