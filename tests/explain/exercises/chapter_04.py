"""Solutions of chapter 04's exercises."""

VICTIM = "max([request, *todo], key=lambda each: each.arrival)"
RETURN = "(request, *reversed(before))"
JOIN = "while budget and self.waiting and not preempted and len(self.running) < self.max_running:"

WRONG = {
    "04.steps": {
        "one prompt at a time": {"B_in_2": 0},
        "a prompt is not cut": {"B_in_2": 5},
        "all new tokens at once": {"A_in_3": 3},
        "prompts before decodes": {"C_in_4": 3},
        "the first token a step late": {"C_first": 6},
        "a step too many": {"steps": 7},
        "the last tokens are fed": {"tokens": 23},
    },
    "04.next": {
        "the first arrival": (("return min(oldest, key=place)", "return next(iter(oldest))"),),
        "the shortest prefix": (("not starved, -cached", "not starved, cached"),),
        "the last arrival of equal ones": (("-cached, request.arrival", "-cached, -request.arrival"),),
        "patience without an end": (("starved = request.metrics.overtaken >= self.patience", "starved = False"),),
        "once too often": (("overtaken >= self.patience", "overtaken > self.patience"),),
        "prefixes of the starved, too": (("0 if starved else ", ""),),
        "all of the tokens": (("request.tokens[:-1]", "request.tokens"),),
        "the whole queue": (("itertools.islice(self.waiting.values(), LOOKAHEAD)", "self.waiting.values()"),),
        "one too few": (("LOOKAHEAD)", "LOOKAHEAD - 1)"),),
        "a match is a use": (("self.cache.tree.cached(request.tokens[:-1], request.namespace)",
                              "len(self.cache.tree.match(request.tokens[:-1], request.namespace).pages)"),),
        "one namespace for all": (("request.tokens[:-1], request.namespace", "request.tokens[:-1]"),),
        "its arrival": (("return min(oldest, key=place)", "return min(oldest, key=place).arrival"),),
        "it leaves the queue": (("min(oldest, key=place)", "self.waiting.pop(min(oldest, key=place).arrival)"),),
    },
    "04.schedule": {
        "in the order of arrival only": (("(request.remaining > 1, request.arrival)", "request.arrival"),),
        "prompts first": (("request.remaining > 1, request", "request.remaining == 1, request"),),
        "whoever comes first in the list": (("(request.remaining > 1, request.arrival)", "0"),),
        "the first arrival gives way": ((VICTIM, VICTIM.replace("max", "min")),),
        "never itself": ((VICTIM, "max(todo or [request], key=lambda each: each.arrival)"),),
        "always itself": ((VICTIM, "request"),),
        "the last of the list": ((VICTIM, "[request, *todo][-1]"),),
        "who was preempted joins at once": ((JOIN, JOIN.replace(" and not preempted", "")),),
        "nobody joins while others run": ((JOIN, JOIN.replace("not preempted", "not self.running")),),
        "any number": ((JOIN, JOIN.replace("< self.max_running", "< 99")),),
        "one may join": (("    return self._grant_steps", "    del chunks[1:]\n    return self._grant_steps"),),
        "prompts are not cut": (("count = min(request.remaining, budget)", "count = request.remaining"),),
        "a budget that does not shrink": (("budget -= count", "budget -= 0"),),
        "it joins where it does not fit": (("if not self.cache.fits(request):", "if False:"),),
        "the oldest joins": (("self._next()", "next(iter(self.waiting.values()))"),),
        "the tree is forgotten in a prefill": (("self.cache.attach(request) if request.remaining > 1 else 0", "0"),),
        "pages for the chunk alone": (("request.computed + count", "count"),),
        "found is forgotten": (("self._chunk(request, count, found)", "self._chunk(request, count, 0)"),),
        "the victim stays in the list": (("todo.remove(victim)", "pass"),),
    },
    "04.back": {
        "still reversed": ((RETURN, "(request, *before)"),),
        "at the end": ((f"for each in {RETURN}:", "for each in ():"),),
        "at the very front": ((f"for each in {RETURN}:", "for each in (request,):"),),
        "the older ones only": ((f"for each in {RETURN}:", "for each in reversed(before):"),),
        "the other end": (("last=False", "last=True"),),
        "it is lost": (("self.waiting[request.arrival] = request", "pass"), (RETURN, "before[::-1]")),
        "from the latest on": """
            from collections import OrderedDict

            def _wait(self, request: Request) -> None:
                self.waiting[request.arrival] = request
                self.waiting = OrderedDict(sorted(self.waiting.items(), reverse=True))
        """,
        "by its name": """
            def _wait(self, request: Request) -> None:
                self.waiting[request.id] = request
        """,
    },
    "04.hit": {
        "still all of it": (("text = request.tokens[:-1]", "text = request.tokens"),),
        "two are left": (("text = request.tokens[:-1]", "text = request.tokens[:-2]"),),
        "a token of the page again": (("self.pool.page_size\n", "self.pool.page_size - 1\n"),),
        "not locked": (("    self.tree.lock(match.node)\n", ""),),
        "no page is shared": (("len(match.pages), match.node)", "0, match.node)"),),
        "nothing is computed": ((", match.node), found", ", match.node), 0"),),
        "found is not saved": (("saved = found - request.computed", "saved = found"),),
        "it looks once": ((" and self.tree.cached(text, request.namespace) <= request.computed", ""),),
        "what it had is not given back": (("        self.release(request)\n", "        pass\n"),),
    },
}  # fmt: skip

RIGHT = {
    "04.next": {
        "in two steps": """
            def _next(self) -> Request:
                oldest = list(self.waiting.values())[:LOOKAHEAD]
                for one in oldest:
                    if one.metrics.overtaken >= self.patience:
                        return one
                best, most = oldest[0], -1
                for one in oldest:
                    found = self.cache.tree.cached(list(one.tokens)[:-1], one.namespace)
                    if found > most:
                        best, most = one, found
                return best
        """,
    },
    "04.schedule": {
        "decode and prefill apart": """
            def schedule(self) -> list[Chunk]:
                chunks, left, thrown_out = [], self.token_budget, []
                order = [r for r in self.running if r.remaining == 1] + [r for r in self.running if r.remaining > 1]
                for place, one in enumerate(order):
                    if not left or one in thrown_out:
                        continue
                    found = self.cache.attach(one) if one.remaining != 1 else 0
                    count = min(left, one.remaining)
                    while one not in thrown_out and not self.cache.reserve(one, one.computed + count):
                        last = sorted((r for r in order[place:] if r not in thrown_out), key=lambda r: r.arrival)[-1]
                        self._preempt(last)
                        thrown_out.append(last)
                    if one not in thrown_out:
                        chunks.append(self._chunk(one, count, found))
                        left -= count
                while not thrown_out and left > 0 and self.waiting and len(self.running) < self.max_running:
                    one = self._next()
                    if not self.cache.fits(one):
                        break
                    found = self._admit(one)
                    count = min(left, one.remaining)
                    assert self.cache.reserve(one, one.computed + count)
                    chunks.append(self._chunk(one, count, found))
                    left -= count
                return self._grant_steps(self._add_drafts(chunks, left))
        """,
    },
    "04.back": {
        "sorted anew": """
            from collections import OrderedDict

            def _wait(self, request: Request) -> None:
                self.waiting[request.arrival] = request
                self.waiting = OrderedDict(sorted(self.waiting.items()))
        """,
        "the later ones to the end": """
            def _wait(self, request: Request) -> None:
                later = [arrival for arrival in self.waiting if arrival > request.arrival]
                self.waiting[request.arrival] = request
                for arrival in later:
                    self.waiting.move_to_end(arrival)
        """,
    },
    "04.hit": {
        "release first": """
            def attach(self, request: Request) -> int:
                known, before = request.tokens[: len(request.tokens) - 1], request.computed
                if request.pages.node is not None:
                    if self.tree.cached(known, request.namespace) <= before:
                        return 0
                pages, node = self.tree.match(known, request.namespace)
                self.tree.lock(node)
                if request.pages.node is not None:
                    self.release(request)
                request.pages = Pages(table=pages, shared=len(pages), node=node)
                request.computed = len(pages) * self.tree.page_size
                return request.computed - before
        """,
    },
}
