"""A node of the radix tree: a run of tokens, the pages that hold them, and who needs them."""

from array import array
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

TOKEN_BYTES = array("i").itemsize  # bytes of a token
assert TOKEN_BYTES == 4


class Node:
    """A run of whole pages behind its parent's. A handle to a node means the prefix that ends where its edge ends."""

    __slots__ = (
        "born",
        "children",
        "edge",
        "hits",
        "life",
        "locks",
        "namespace",
        "pages",
        "parent",
        "policy_state",
        "queued",
        "used",
        "users",
    )  # fmt: skip

    def __init__(
        self,
        edge: bytes,
        pages: list[int],
        parent: "Node | None",
        now: int,
        life: object = None,
        namespace: Hashable = None,
    ) -> None:
        self.edge, self.pages, self.parent = edge, pages, parent  # the edge's tokens, and the pages that hold them
        self.life: object = parent.life if parent else life  # its tree's, from one `clear` to the next; None: evicted
        self.namespace = namespace  # a root's
        self.children: dict[bytes, Node] = {}  # by the first page of the child's edge
        # A lock on a node protects the whole path to it, so it counts in `locks` of every node of the path (SGLang's
        # lock_ref), but in `users` only of the node that was given to `lock`. An edge may be evicted if `locks` is 0.
        self.locks = 0  # locks taken here or below
        self.users = 0  # of these, the locks taken here: as many `unlock`s of this very node are due
        self.born = self.used = now  # the tree's clock at insertion, and at the last use
        self.hits = 0  # matches that went through this edge
        self.queued: Any = None  # its key in the eviction heap, if it is there
        self.policy_state: Any = None

    @property
    def tokens(self) -> list[int]:
        """The edge's tokens."""
        return array("i", self.edge).tolist()


class Match(NamedTuple):
    """The pages of a prefix, in order, and the node at its end (what `lock` takes)."""

    pages: list[int]
    node: Node


def upwards(node: Node) -> Iterator[Node]:
    """The node, its parent, and so on up to the root."""
    above: Node | None = node
    while above is not None:
        yield above
        above = above.parent


def common(edge: bytes, text: bytes, start: int) -> int:
    """Length of the longest common prefix of `edge` and `text[start:]`, by bisection."""
    low, high = 0, min(len(edge), len(text) - start)
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(edge[low:middle], start + low):
            low = middle
        else:
            high = middle - 1
    return low


def as_bytes(tokens: Sequence[int]) -> bytes:
    """Four bytes a token; an array("i") is taken as it is, anything else is converted number by number."""
    if isinstance(tokens, bytes | bytearray):
        tokens = list(tokens)  # array() would take four of them for one number
    if not (isinstance(tokens, array) and tokens.typecode == "i"):
        try:
            tokens = array("i", tokens)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"tokens must be integers that fit 32 bits: {error}") from None
    return tokens.tobytes()
