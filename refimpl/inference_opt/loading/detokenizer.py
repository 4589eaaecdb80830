"""Text out of tokens, one token at a time: never half a character, and never less than is certain."""

from collections.abc import Mapping
from typing import Any


class Detokenizer:
    """Text that grows by tokens: after any number of `add`, `text` is what `decode` gives, less an unfinished end.

    A character may take several tokens. A text that ends with U+FFFD may end within a character: as many of these as
    one unfinished character decodes to are held back, all before them is certain and shown. `finish` gives up waiting.
    Tokens are decoded again only while their text is not shown, and for as long as the next ones need them as context:
    a step costs the same however long the text is. (Where a decoder falls back to bytes, `decode` takes a whole run of
    them as invalid if one is; the stream, which has shown the characters before that one, does not take them back.)
    """

    def __init__(self, tokenizer: Any, unfinished: int = 3) -> None:
        """`tokenizer`: whatever has `decode`; `unfinished`: most U+FFFD that a character's first bytes decode to."""
        self.tokenizer, self.unfinished = tokenizer, unfinished
        self.text = ""
        self.context: list[int] = []  # the tokens shown last: some decoders treat a text's first token differently
        self.pending: list[int] = []  # tokens whose text is not all shown
        self.shown = 0  # characters of the pending tokens' text that are

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The tokens that are no part of the text, by name."""
        return self.tokenizer.special_ids

    def add(self, token: int) -> str:
        """Take one token; return the text that it completes, often empty."""
        if not self.tokenizer.decode([token, token]):  # twice: the first of a text may lose a space
            return ""  # a special token
        self.pending = [*self.pending, token]  # a list of its own: a copy of this stream goes on by itself
        return self._grow(self.unfinished)

    def finish(self) -> str:
        """Return what is left; bytes that form no character become U+FFFD."""
        return self._grow(0)

    def _grow(self, unfinished: int) -> str:
        rest = self._rest()
        held = min(unfinished, len(rest) - max(self.shown, len(rest.rstrip("\ufffd"))))
        certain = len(rest) - held
        new = rest[self.shown : certain]
        self.text += new
        if not held:
            self.context, self.pending, self.shown = self.pending or self.context, [], 0
            return new
        self.shown = certain
        if len(self.tokenizer.decode(self.pending[:1])) > certain:
            return new
        # All of the first token is shown: let it go. Counted from the end, what is held stays the same.
        self.context, self.pending = [], self.pending[1:]
        self.shown = max(0, len(self._rest()) - held)
        return new + self._grow(unfinished)

    def _rest(self) -> str:
        """The pending tokens' text."""
        shown, both = self.tokenizer.decode(self.context), self.tokenizer.decode(self.context + self.pending)
        if both.startswith(shown):
            return both[len(shown) :]
        self.context = []  # bytes that would change the text of those before them
        return self.tokenizer.decode(self.pending)
