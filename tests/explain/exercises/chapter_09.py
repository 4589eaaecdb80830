"""Solutions of chapter 09's exercises."""

IF = "    if request.pages.node is not None"
BETTER = " and self.tree.cached(text, request.namespace) <= request.computed"
MINE = "request.pages, request.computed = Pages(match.pages, len(match.pages), match.node)"
OTHERS = "mine for mine, its in zip(own, match.pages[pages.shared :], strict=True) if mine != its"
LOCK = "    self.tree.lock(match.node)\n"
GIVEN = "    self.pool.release(request.pages.table[need:])\n"
REMOVED = "    del request.pages.table[need:]\n"
BACK = f"    self.pool.release({OTHERS})\n"

WRONG = {
    "09.attach": {
        "the whole prompt": (("text = request.tokens[:-1]", "text = request.tokens"),),
        "no lock": (("    self.tree.lock(match.node)\n", ""),),
        "the old pages are lost": (
            ("        self.release(request)\n", "        self.tree.unlock(request.pages.node)\n"),),
        "the old lock is kept": (("        self.release(request)\n",
                                  "        self.pool.release(request.pages.table[request.pages.shared :])\n"),),
        "all that is found was saved": (("saved = found - request.computed", "saved = found"),),
        "pages, not tokens": (("len(match.pages) * self.pool.page_size", "len(match.pages)"),),
        "the pages are its own": (
            ("Pages(match.pages, len(match.pages), match.node)", "Pages(match.pages, 0, match.node)"),),
        "computed is not moved on": ((MINE + ", found", MINE.replace(", request.computed", "")),),
        "added to what it had": (("Pages(match.pages, len(match.pages), match.node), found",
                                  "Pages(match.pages, len(match.pages), match.node), request.computed + found"),),
        "only before it runs": ((BETTER, ""),),
        "every time, found or not": ((IF + BETTER + ":\n        return 0\n", ""),),
        "two locks": ((LOCK, 2 * LOCK),),
    },
    "09.publish": {
        "also where nothing is to be shared": (("not self.radix or ", ""),),
        "its own pages stay in the table": (("pages.table[:full], pages.shared, pages.node = match.pages, full,",
                                             "pages.shared, pages.node = full,"),),
        "its own pages are lost": ((BACK, ""),),
        "its own pages are given back, and lent": ((" if mine != its)", ")"),),
        "a part of a page, too": (("tokens // self.pool.page_size", "self.pool.pages_for(tokens)"),),
        "no new lock": (("    self.tree.lock(match.node)\n    self.tree.unlock(pages.node)\n", ""),),
        "the old lock is kept": (("    self.tree.unlock(pages.node)\n", ""),),
        "the lock stays where it was": (("full, match.node\n", "full, pages.node\n"),
                                        ("    self.tree.lock(match.node)\n    self.tree.unlock(pages.node)\n", "")),
        "the pages remain its own": (("pages.shared, pages.node = match.pages, full, match.node",
                                      "pages.shared, pages.node = match.pages, pages.shared, match.node"),),
        "all pages of the table": (("pages.table[:full], request.namespace", "pages.table, request.namespace"),),
        "the new pages alone": (("request.tokens[: full * self.pool.page_size], pages.table[:full]",
                                 "request.tokens[pages.shared * self.pool.page_size : tokens], own"),),
        "the table ends where the tree's pages end": (
            ("pages.table[:full], pages.shared", "pages.table[:], pages.shared"),),
        "never": (("full <= pages.shared:", "full <= pages.shared + 100:"),),
        "one page at most": (("    if not self.radix",
                              "    full = min(full, pages.shared + 1)\n    if not self.radix"),),
    },
    "09.trim": {
        "pages of what was computed": (("len(request.tokens)", "request.computed"),),
        "one page more stays": (
            ("self.pool.pages_for(len(request.tokens))", "self.pool.pages_for(len(request.tokens)) + 1"),),
        "full pages only": (
            ("self.pool.pages_for(len(request.tokens))", "len(request.tokens) // self.pool.page_size"),),
        "they stay in the table": (("    del request.pages.table[need:]\n", ""),),
        "they are not given back": (("    self.pool.release(request.pages.table[need:])\n", ""),),
        "the first pages go": (("release(request.pages.table[need:])", "release(request.pages.table[: -need])"),),
        "removed, then given back": ((GIVEN + REMOVED, REMOVED + GIVEN),),
        "all but the shared ones": (("self.pool.pages_for(len(request.tokens))", "request.pages.shared"),),
        "pages of the prompt": (("len(request.tokens)", "len(request.prompt)"),),
    },
    "09.fits": {
        "still what can be evicted now": (("self.available - idle", "self.available"),),
        "all that is found": (("self.available - idle", "self.available - found"),),
        "found is not counted": ((" - found <=", " <="),),
        "free pages alone": (("self.available - idle", "self.pool.free"),),
        "counted on both sides": (("- found <= self.available - idle", "- found - idle <= self.available - idle"),),
        "less than, not at most": (("- found <=", "- found <"),),
        "the whole text is looked up": (("request.tokens[:-1]", "request.tokens"),),
        "full pages": (("self.pool.pages_for(len(request.tokens))", "len(request.tokens) // self.pool.page_size"),),
        "always": (("self.available - idle", "self.available + 100"),),
    },
    "09.reuse": {
        "without drafts": {"steps": 11},
        "four letters a step": {"steps": 4},
        "the model's letters are drafts": {"accepted": 10},
        "a part of a page": {"pages": 6},
        "the prompt alone": {"pages": 2},
        "no whole pages": {"found again": 9},
        "all": {"found of the whole": 21},
        "what it generated is not found": {"found of the whole": 8},
    },
}  # fmt: skip

RIGHT = {
    "09.attach": {
        "the match first, and pages given back by hand": """
            def attach(self, request: Request) -> int:
                before, known = request.pages, request.computed
                if before.node is not None:
                    if self.tree.look(request.tokens[:-1], request.namespace)[0] * self.pool.page_size <= known:
                        return 0
                pages, node = self.tree.match(request.tokens[: len(request.tokens) - 1], request.namespace)
                self.tree.lock(node)
                if before.node is not None:
                    self.pool.release(before.table[before.shared :])
                    self.tree.unlock(before.node)
                request.pages = Pages(list(pages), len(pages), node)
                request.computed = len(pages) * self.pool.page_size
                return request.computed - known
        """,
    },
    "09.publish": {
        "page by page": """
            def publish(self, request: Request, tokens: int) -> None:
                size, pages = self.pool.page_size, request.pages
                if not self.radix:
                    return
                while (pages.shared + 1) * size <= tokens:
                    count = pages.shared + 1
                    mine = pages.table[pages.shared]
                    match = self.tree.insert(request.tokens[: count * size], pages.table[:count], request.namespace)
                    self.tree.lock(match.node)
                    self.tree.unlock(pages.node)
                    pages.node = match.node
                    pages.table[pages.shared] = match.pages[-1]
                    pages.shared = count
                    if match.pages[-1] != mine:
                        self.pool.release([mine])
        """,
        "a new table": """
            def publish(self, request: Request, tokens: int) -> None:
                old = request.pages
                full = tokens // self.pool.page_size
                if self.radix and full > old.shared:
                    text = list(request.tokens)[: full * self.pool.page_size]
                    its, node = self.tree.insert(text, old.table[:full], request.namespace)
                    self.tree.lock(node)
                    self.tree.unlock(old.node)
                    self.pool.release(set(old.table[:full]) - set(its))
                    request.pages = type(old)(list(its) + old.table[full:], full, node)
        """,
    },
    "09.trim": {
        "page by page": """
            def trim(self, request: Request) -> None:
                table = request.pages.table
                while len(table) > -(-len(request.tokens) // self.pool.page_size):
                    self.pool.release([table.pop()])
        """,
    },
    "09.fits": {
        "what is left after the request has locked its pages": """
            def fits(self, request: Request) -> bool:
                found, idle = self.tree.look(request.tokens[:-1], request.namespace)
                room = self.pool.free + self.tree.evictable - idle
                return found + room >= self.pool.pages_for(len(request.tokens))
        """,
    },
}
