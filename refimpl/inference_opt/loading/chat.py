"""Chat templates: the checkpoint's own program, in jinja2, that writes a conversation as its model was trained on it.

They are rendered as the Hugging Face library `transformers` renders them, in jinja2's sandbox: a template reaches
nothing but the plain data it is given, and changes none of it. Bounded are the numbers of all `range`s of a rendering
together, and what one `*` or `**` makes. Not bounded are nested loops over lists and texts, and what filters, `+`, `~`
and the width of a format (`'%9999d'`) make.
"""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`, where jinja2's own writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


RANGES = 1_000_000  # numbers of all ranges of one rendering
ITEMS = 10_000_000  # characters of a text or items of a list that `*` makes
BITS = 100_000  # of a number that `*` or `**` makes
_left: ContextVar[int] = ContextVar("_left")  # of RANGES, in the rendering that runs


def _range(*args: int) -> range:
    """As jinja2's sandbox bounds it, and all of a rendering together."""
    numbers = safe_range(*args)
    _left.set(left := _left.get() - len(numbers))
    if left < 0:
        raise OverflowError(f"its ranges hold more than {RANGES} numbers in all")
    return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's, in which one operator makes nothing huge."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result, where it is not huge: told beforehand from the operands. OverflowError otherwise."""
        ints = isinstance(left, int) and isinstance(right, int)
        if ints:
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if abs(left) > 1 and bits > BITS:
                raise OverflowError(f"{operator} makes a number of more than {BITS} bits")
        elif operator == "*":
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and isinstance(many, str | list | tuple) and len(many) * times > ITEMS:
                raise OverflowError(f"* makes a text or a list of more than {ITEMS} items")
        return super().call_binop(context, operator, left, right)


@lru_cache
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "range": _range}
    return environment.from_string(template)


def render(template: str, name: str, messages: Any, tools: Any, documents: Any, **variables: Any) -> str:
    """The text of a conversation: a list of messages, {"role": …, "content": …} each.

    ValueError for messages of another form, for what is no plain data (text, numbers, lists, mappings), and whatever
    goes wrong in the template, which is called `name` there.
    """
    for given, what, form in ((messages, "messages", "message"), (tools, "tools", "JSON schema"),
                              (documents, "documents", "document")):  # fmt: skip
        if given is None and what != "messages":
            continue
        if not isinstance(given, list | tuple) or not all(isinstance(one, Mapping) for one in given):
            raise ValueError(f"{what} must be a list of mappings, one a {form}, got {str(given)[:80]!r}")
    if not messages or not all(isinstance(message.get("role"), str) for message in messages):
        raise ValueError(f"expected one message or more, each with a role (a string), got {str(messages)[:80]!r}")
    try:
        data = {
            key: _plain(value, key) for key, value in ({"tools": tools, "documents": documents} | variables).items()
        }
        chat = [_message(_plain(message, f"messages[{i}]")) for i, message in enumerate(messages)]
    except RecursionError as error:
        raise ValueError("the messages, or what goes with them, are nested too deeply or hold themselves") from error
    _left.set(RANGES)
    try:
        return _compiled(template).render(messages=chat, **data)
    except Exception as error:  # a template is the checkpoint's own program: it may fail in any way
        raise ValueError(f"{name} refuses these messages: {str(error) or type(error).__name__}") from error


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """As templates expect it: without the keys that hold None, and the reasoning under each name that they know."""
    message = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    return message if reasoning is None else {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _plain(value: Any, where: str) -> Any:
    """A copy in which nothing has methods but those of the plain types."""
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if value is None or isinstance(value, str):
        return value if value is None else str.__str__(value)
    raise ValueError(f"{where} is a {type(value).__name__}: a chat template takes text, numbers, lists and mappings")
