"""Solutions of chapter 03's exercises."""

KEPT = "        if above.locks == 0:\n            self.evictable -= len(above.pages)\n"
FREED = "        if above.locks == 0:\n            self.evictable += len(above.pages)\n"
ASKED = "        uses.append([seen.get(name, inf) for name in prefixes[number]])\n"
NOTED = "        seen.update(dict.fromkeys(prefixes[number], float(number)))\n"

WRONG = {
    "03.split": {
        "the policy's notes are lost": ((", head.policy_state = node.locks, node.policy_state", " = node.locks"),),
        "the head is not locked": (
            ("head.locks, head.policy_state = node.locks", "head.locks, head.policy_state = 0"),),
        "the key of the rest is the head's": (("head.children[node.edge[:size]]", "head.children[head.edge[:size]]"),),
        "the rest keeps the old parent": ((", node.pages[count:], head\n", ", node.pages[count:], parent\n"),),
        "the head keeps all pages": (("node.pages[:count], parent", "node.pages, parent"),),
        "the head becomes the lower part": (("return head", "return node"),),
        "the page that is cut through is lost": (("count = within // size", "count = max(within // size - 1, 0)"),),
        "the head is as if never used": (("    head.used, head.hits = node.used, node.hits\n", "    head.used = 0\n"),),
        "the parent keeps the old child": (("    parent.children[head.edge[:size]] = head\n", ""),),
    },
    "03.evict": {
        "still the whole leaf": (("keep = max(len(node.pages) - (count - len(gone)), 0)", "keep = 0"),),
        "one page too few is kept": (("(count - len(gone)), 0)", "(count - len(gone)) - 1, 0)"),),
        "what is gone already is forgotten": (("(count - len(gone))", "count"),),
        "from the beginning of the leaf": (
            ("removed = node.pages[keep:]", "removed = node.pages[: len(node.pages) - keep]"),),
        "one leaf only": (("while len(gone) < count and", "if len(gone) < count and"),),
        "one page more than asked for": (("while len(gone) < count", "while len(gone) <= count"),),
    },
    "03.match": {
        "the namespace is forgotten": (("self._root(namespace)", "self._root(None)"),),
        "not rounded to whole pages": ((" // size * size", ""),),
        "rounded up to whole pages": (("within = common(edge, text, depth) // size * size",
                                       "within = min(-(-common(edge, text, depth) // size) * size, len(edge))"),),
        "the rest of an edge is not compared": (("if not text.startswith(edge, depth):", "if False:"),),
        "an edge that is not whole is no match": (("return node, within, depth + within",
                                                   "return node.parent, len(node.parent.edge), depth"),),
        "one edge only": (("while (child :=", "if (child :="),),
        "all bytes of the edge, though part matches": (("return node, within,", "return node, len(edge),"),),
        "the part of the last edge is not counted": (("depth + within", "depth"),),
        "the bytes of the edge are all that are matched": (
            ("return node, len(node.edge), depth", "return node, depth, depth"),),
        "compared with the text's beginning": (("text.startswith(edge, depth)", "text.startswith(edge)"),),
        "the look-up is a use": (("        node = child\n", "        node = child\n        node.used = self.clock\n"),),
        "looked up by one token": (("text[depth : depth + size]", "text[depth : depth + 4]"),),
        "the root joins the tree": (("depth = self._root(namespace), 0",
                                     "depth = self.roots.setdefault(namespace, self._root(namespace)), 0"),),
    },
    "03.lock": {
        "the node alone": (("for above in upwards(node):", "for above in [node]:"),),
        "all but the node": (("for above in upwards(node):", "for above in list(upwards(node))[1:]:"),),
        "a second lock counts its pages again": (("        if above.locks == 0:\n            self.evictable",
                                                  "        self.evictable"),),
        "counted after the lock": ((KEPT + "        above.locks += 1", "        above.locks += 1\n" + KEPT),),
        "evictable stays": (("            self.evictable -= len(above.pages)\n", "            pass\n"),),
        "nodes are counted, not pages": (("len(above.pages)", "1"),),
        "users on the whole path": (
            ("    node.users += 1\n", ""), ("        above.locks += 1\n",
             "        above.locks += 1\n        above.users += 1\n"),),
        "nobody's user": (("    node.users += 1\n", ""),),
        "not a count": (("above.locks += 1", "above.locks = 1"),),
        "a node that is gone is locked": (("    node = self._checked(node)\n", ""),),
        "the root stays outside": (("    if node.parent is None:\n        self.roots[node.namespace] = node\n", ""),),
        "stops at the first lock": (
            ("    for above in upwards(node):\n",
             "    for above in upwards(node):\n        if above.locks:\n            break\n"),),
    },
    "03.unlock": {
        "a lock that nobody holds": (("if node.users == 0:", "if node.locks == 0:"),),
        "still at every unlock": (
            ("        if above.locks == 0:\n            self.evictable", "        self.evictable"),),
        "before the count": (("        above.locks -= 1\n" + FREED, FREED + "        above.locks -= 1\n"),),
        "never": (("            self.evictable += len(above.pages)", "            pass"),),
        "by the users of the node": (("if above.locks == 0:", "if above.users == 0:"),),
        "the node's own pages": (("len(above.pages)", "len(node.pages)"),),
        "of the node alone": (("for above in upwards(node):", "for above in [node]:"),),
        "the leaf is not queued": (("    if node.locks == 1:\n        self.leaves.push(node)\n", ""),),
        "the users stay": (("    node.users -= 1\n", ""),),
    },
    "03.belady": {
        "the last use, not the next": (("range(len(texts) - 1, -1, -1)", "range(len(texts))"), ("uses[::-1]", "uses")),
        "this very text": ((ASKED + NOTED, NOTED + ASKED),),
        "tokens alone, whatever is before them": (("(name, text[start", "(0, text[start"),),
        "not turned round": (("uses[::-1]", "uses"),),
        "a page is its first token": (("text[start : start + page_bytes]", "text[start : start + 4]"),),
        "the rest counts as a page": (
            ("range(0, len(text) - page_bytes + 1, page_bytes)", "range(0, len(text), page_bytes)"),),
        "the last page is left out": (("len(text) - page_bytes + 1", "len(text) - page_bytes"),),
        "how many texts away": (
            ("uses.append([seen.get(name, inf) for", "uses.append([seen.get(name, inf) - number for"),),
        "never used again is 0": (("seen.get(name, inf)", "seen.get(name, 0)"),),
        "never used again is the number of texts": (("seen.get(name, inf)", "seen.get(name, len(texts))"),),
    },
    "03.pages": {
        "a page for what is left": {"after the first": 3},
        "nothing shared": {"after the second": 5},
        "shared by tokens": {"after the second": 3},
        "found by tokens": {"found": 11},
        "found by pages": {"found": 2},
        "the lock holds the whole path": {"evictable": 1},
        "the lock holds all": {"evictable": 0},
        "a look-up splits nothing": {"nodes": 3},
    },
}  # fmt: skip

RIGHT = {
    "03.split": {
        "the lower part first": """
            def _split(self, node: Node, within: int) -> Node:
                if len(node.edge) == within:
                    return node
                at = within // self.page_bytes
                top = Node(node.edge[:within], list(node.pages[:at]), node.parent, node.born)
                for name in ("used", "hits", "locks", "policy_state"):
                    setattr(top, name, getattr(node, name))
                below = node.edge[within:]
                top.children = {below[: self.page_bytes]: node}
                node.parent.children[node.edge[: self.page_bytes]] = top
                node.parent, node.edge, node.pages = top, below, list(node.pages[at:])
                return top
        """,
    },
    "03.evict": {
        "page by page": """
            def evict(self, count: int) -> list[int]:
                gone = []
                for _ in range(count):
                    node = self.leaves.least()
                    if node is None:
                        break
                    gone.append(node.pages[-1])
                    self._cut(node, len(node.pages) - 1)
                return gone
        """,
    },
    "03.match": {
        "page by page": """
            def _walk(self, text: bytes, namespace: Hashable) -> tuple[Node, int, int]:
                node, within, depth = self._root(namespace), 0, 0
                while True:
                    page = text[depth : depth + self.page_bytes]
                    if within == len(node.edge):
                        if page not in node.children:
                            break
                        node, within = node.children[page], 0
                    elif node.edge[within : within + self.page_bytes] != page:
                        break
                    within += len(page)
                    depth += len(page)
                return node, within, depth
        """,
        "by recursion, tokens compared one by one": """
            def _walk(self, text: bytes, namespace: Hashable) -> tuple[Node, int, int]:
                size = self.page_bytes

                def below(node, depth):
                    rest = text[depth:]
                    child = node.children.get(rest[:size])
                    if child is None:
                        return node, len(node.edge), depth
                    same = 0
                    while same < min(len(rest), len(child.edge)) and rest[same] == child.edge[same]:
                        same += 1
                    same -= same % size
                    return below(child, depth + same) if same == len(child.edge) else (child, same, depth + same)

                return below(self._root(namespace), 0)
        """,
    },
    "03.lock": {
        "from the root, and a loop of its own": """
            def lock(self, node: Node) -> None:
                path = [self._checked(node)]
                while path[0].parent is not None:
                    path.insert(0, path[0].parent)
                if len(path) == 1:
                    self.roots[path[0].namespace] = path[0]
                path[-1].users += 1
                self.evictable -= sum(len(each.pages) for each in path if not each.locks)
                for each in path:
                    each.locks += 1
        """,
        "by recursion": """
            def lock(self, node: Node) -> None:
                def up(each):
                    each.locks += 1
                    if each.locks == 1:
                        self.evictable -= len(each.pages)
                    if each.parent is not None:
                        up(each.parent)

                node = self._checked(node)
                if not node.edge:
                    self.roots.setdefault(node.namespace, node)
                node.users = node.users + 1
                up(node)
        """,
    },
    "03.unlock": {
        "in two loops": """
            def unlock(self, node: Node) -> None:
                node = self._checked(node)
                if not node.users:
                    raise ValueError("there is no lock on this node")
                if node.locks == 1:
                    self.leaves.push(node)
                path = list(upwards(node))
                node.users -= 1
                self.evictable += sum(len(each.pages) for each in path if each.locks == 1)
                for each in path:
                    each.locks -= 1
                self._leave(path[-1])
        """,
    },
    "03.belady": {
        "by search": """
            def next_uses(texts: Sequence[bytes], page_bytes: int) -> list[list[float]]:
                def due(number, end):
                    prefix = texts[number][:end]
                    later = (i for i in range(number + 1, len(texts)) if texts[i].startswith(prefix))
                    return next(later, float("inf"))

                ends = [range(page_bytes, len(text) + 1, page_bytes) for text in texts]
                return [[due(i, end) for end in each] for i, each in enumerate(ends)]
        """,
        "forwards, filled in later": """
            def next_uses(texts: Sequence[bytes], page_bytes: int) -> list[list[float]]:
                uses = [[inf] * (len(text) // page_bytes) for text in texts]
                waiting = {}
                for number, text in enumerate(texts):
                    for page in range(len(text) // page_bytes):
                        prefix = text[: (page + 1) * page_bytes]
                        if prefix in waiting:
                            uses[waiting[prefix]][page] = float(number)
                        waiting[prefix] = number
                return uses
        """,
    },
}
