"""Text from tokens, one token at a time: never half a character, and always all that is certain."""

from collections.abc import Mapping
from typing import Any

from inference_opt.values import brief


class Detokenizer:
    """Text that grows by tokens: after any number of `add`, `text` is what `decode` gives, less an unfinished end.

    A character may take several tokens, and a text that ends with U+FFFD may end within a character. As many U+FFFD as
    one unfinished character decodes to are held back; all text before them is certain and shown. `finish` shows the
    rest. A token is decoded again only until its text is shown and no later token needs it as context, so a step costs
    the same however long the text is.

    There is one difference to `decode`: a decoder that falls back to bytes treats a whole run of bytes as invalid if
    one of them is. Characters of such a run that are shown already stay shown.
    """

    def __init__(self, tokenizer: Any, unfinished: int = 3) -> None:
        """`tokenizer`: anything with `decode`. `unfinished`: most U+FFFD that a character's first bytes decode to."""
        self.tokenizer = tokenizer
        self.unfinished = unfinished
        self.text = ""
        self.context: list[int] = []  # the tokens shown last: some decoders treat a text's first token differently
        self.pending: list[int] = []  # tokens whose text is not all shown
        self.shown = 0  # characters of the pending tokens' text that are shown

    def __repr__(self) -> str:
        return f"<Detokenizer {brief(self.text)}>"

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The ids of special tokens, which are no part of the text, by name."""
        return self.tokenizer.special_ids

    def add(self, token: int) -> str:
        """Take one token; return the text that it completes, often empty."""
        if not self.tokenizer.decode([token, token]):  # twice, because a text's first token may lose a space
            return ""  # a special token
        self.pending = [*self.pending, token]  # a new list: copies of this object must not share it
        return self._grow(self.unfinished)

    def finish(self) -> str:
        """Return the rest of the text. Bytes that form no character become U+FFFD."""
        return self._grow(0)

    def _grow(self, unfinished: int) -> str:
        rest = self._rest()
        # Characters at the end that are held back: U+FFFD that may become a character, as far as they are not shown.
        held = min(unfinished, len(rest) - max(self.shown, len(rest.rstrip("\ufffd"))))
        certain = len(rest) - held
        new = rest[self.shown : certain]
        self.text += new
        if not held:
            self.context = self.pending or self.context
            self.pending = []
            self.shown = 0
            return new
        self.shown = certain
        if len(self.tokenizer.decode(self.pending[:1])) > certain:
            return new
        # All of the first token is shown, so drop it. The number of characters held back at the end stays the same.
        self.context = []
        self.pending = self.pending[1:]
        self.shown = max(0, len(self._rest()) - held)
        return new + self._grow(unfinished)

    def _rest(self) -> str:
        """The pending tokens' text."""
        shown = self.tokenizer.decode(self.context)
        both = self.tokenizer.decode(self.context + self.pending)
        if both.startswith(shown):
            return both[len(shown) :]
        self.context = []  # these bytes would change the text of the tokens before them
        return self.tokenizer.decode(self.pending)
