"""Chat templates: a checkpoint's own jinja2 program that writes a conversation in the format of the model's training.

Templates are rendered as the Hugging Face library `transformers` renders them, in jinja2's sandbox: a template can read
only the data that it is given, and cannot change it. Two things are bounded: the total length of all `range`s of a
rendering, and the size of what one `*` or `**` makes. Nested loops over lists and texts are not bounded, nor is what
filters, `+`, `~` and the width of a format (`'%9999d'`) make.
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

from inference_opt.values import shown


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it renders to its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 expects it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`; jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


MESSAGE = 'a role and a content that are texts, as in {"role": "user", "content": "Hello"}'
MAX_RANGES = 1_000_000  # numbers in all ranges of one rendering
MAX_ITEMS = 10_000_000  # characters of a text, or items of a list, that `*` makes
MAX_BITS = 100_000  # bits of a number that `*` or `**` makes
_remaining: ContextVar[int] = ContextVar("_remaining")  # of MAX_RANGES, in the current rendering


def _range(*args: int) -> range:
    """The sandbox's `range`, with a bound on all ranges of a rendering together."""
    numbers = safe_range(*args)
    remaining = _remaining.get() - len(numbers)
    _remaining.set(remaining)
    if remaining < 0:
        raise OverflowError(f"its ranges hold more than {MAX_RANGES} numbers in all")
    return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which no `*` or `**` makes anything huge."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result. OverflowError, before it is computed, if it would be huge."""
        ints = isinstance(left, int) and isinstance(right, int)
        if ints:
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if abs(left) > 1 and bits > MAX_BITS:
                raise OverflowError(f"{operator} makes a number of more than {MAX_BITS} bits")
        elif operator == "*":
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and isinstance(many, str | list | tuple) and len(many) * times > MAX_ITEMS:
                raise OverflowError(f"* makes a text or a list of more than {MAX_ITEMS} items")
        return super().call_binop(context, operator, left, right)


@lru_cache
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "range": _range}
    return environment.from_string(template)


def render(template: str, name: str, messages: Any, tools: Any, documents: Any, **variables: Any) -> str:
    """The text of a conversation: a list of messages, each {"role": …, "content": …}.

    ValueError for messages of another form, for values other than text, numbers, lists and mappings, and for whatever
    goes wrong in the template. Its message calls the template `name`.
    """
    for given, what, form in (
        (messages, "messages", "message"),
        (tools, "tools", "JSON schema"),
        (documents, "documents", "document"),
    ):
        if given is None and what != "messages":
            continue
        if not isinstance(given, list | tuple):
            raise ValueError(f"{what} must be a list of mappings, one for each {form}, got {shown(given)}")
        for i, one in enumerate(given):
            if not isinstance(one, Mapping):
                raise ValueError(f"{what} must be a list of mappings, but {what}[{i}] is {shown(one)}")
    if not messages:
        raise ValueError(f"there are no messages: expected one or more, each with {MESSAGE}")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ValueError(f"the role of messages[{i}] is {shown(message.get('role'))}: expected {MESSAGE}")
    try:
        others = {"tools": tools, "documents": documents} | variables
        data = {key: _sanitised(value, key) for key, value in others.items()}
        chat = [_message(_sanitised(message, f"messages[{i}]")) for i, message in enumerate(messages)]
    except RecursionError as error:
        raise ValueError(
            "the messages, tools, documents or variables are nested too deeply or contain themselves"
        ) from error
    _remaining.set(MAX_RANGES)
    try:
        return _compiled(template).render(messages=chat, **data)
    except Exception as error:  # a template is a program: it may fail in any way
        why = str(error) or type(error).__name__
        for i, message in enumerate(messages):
            if not isinstance(content := message.get("content"), str):  # some templates take this, most do not
                why += f"; the content of messages[{i}] is {shown(content)}: expected {MESSAGE}"
                break
        raise ValueError(f"{name} refuses these messages: {why}") from error


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """The message as templates expect it: no keys whose value is None, and the reasoning under both its names."""
    message = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    return message if reasoning is None else {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _sanitised(value: Any, where: str) -> Any:
    """A copy made of the built-in types alone, so that a template finds no other methods. `where`: for messages."""
    if isinstance(value, Mapping):
        return {_sanitised(key, where): _sanitised(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_sanitised(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if value is None or isinstance(value, str):
        return value if value is None else str.__str__(value)
    raise ValueError(f"{where} is a {type(value).__name__}: a chat template takes text, numbers, lists and mappings")
