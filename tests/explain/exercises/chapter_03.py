"""Solutions of chapter 03's exercises."""

WRONG = {
    "03.split": {
        "the head is not locked": (("head.locks, head.policy_state = node.locks", "head.locks, head.policy_state = 0"),),
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
        "from the beginning of the leaf": (("removed = node.pages[keep:]", "removed = node.pages[: len(node.pages) - keep]"),),
        "one leaf only": (("while len(gone) < count and", "if len(gone) < count and"),),
        "one page more than asked for": (("while len(gone) < count", "while len(gone) <= count"),),
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
}
