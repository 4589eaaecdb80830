"""Chat templates against `transformers`' own rendering, hostile templates, and what a template may be given."""

import inspect
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from inference_opt.loading.tokenizer import Tokenizer

TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "a < b & 'c' é", "parameters": {"a": [1, 2.5]}}}
]
DOCUMENTS = [{"title": "é", "text": "<b>"}]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "é & 'x'"},
    {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": '{"b": [1, true, null]}'},
]
TEMPLATES = {
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2) }}",
    "json arguments": "{{ tools | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}\n"
    "{% endgeneration %}{% endfor %}.",
    "break and continue": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "absent": "{% if tools is none %}no tools{% endif %}{% if documents is not none %}{{ documents }}{% endif %}",
    "white space": "  {% if true %}\n    a\n  {% endif %}\n{%- for m in messages %}\n  {{ m.content }}\n{% endfor %}",
    "variables": "{{ bos_token }}{{ pad_token }}"
    "{% if enable_thinking is defined and not enable_thinking %}/no{% endif %}",
    "prompt": "{{ messages[0]['content'] }}{% if add_generation_prompt %}>{% endif %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "python": "{{ messages[-1].content.split(':')[0] }}{{ messages[0].items() | list }}"
    "{{ '%05.1f' % 2 }}{{ dict(a=1) }}",
    "date": "{{ strftime_now('%Y') }}",
}


class Shown(Tokenizer):
    """A tokenizer whose tokens are text."""

    def encode(self, text, begin=True):
        return [text]


@pytest.fixture(autouse=True)
def unchecked():
    config.update("jaxtyping_disable", True)  # as a user calls it: `Shown` gives text
    yield
    config.update("jaxtyping_disable", False)


def shown(template, messages=CHAT, **more):
    return Shown(None, template, NAMES).chat(messages, **more)[0]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "documents": DOCUMENTS, "enable_thinking": False}])
def test_a_template_renders_as_in_transformers(template, more):
    if "tools |" in template and not more:
        template = template.replace("tools |", "messages |")
    for prompt in (True, False):
        given = NAMES | {"add_generation_prompt": prompt} | more
        theirs = render_jinja_template([CHAT], chat_template=template, **given)[0][0]
        assert shown(template, add_generation_prompt=prompt, **more) == theirs


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({"role": st.text(max_size=4), "content": PLAIN}, optional={"thinking": PLAIN})


@settings(max_examples=100)
@given(st.lists(MESSAGE, min_size=1, max_size=3))
def test_any_conversation_renders_as_in_transformers(messages):
    template = "{% for m in messages %}{{ m.role }}{{ m | tojson }}{{ m.content }}{% endfor %}"
    kept = [{k: v for k, v in m.items() if v is not None} for m in messages]  # apply_chat_template does this first
    assert shown(template, messages) == render_jinja_template([kept], chat_template=template)[0][0]


def test_the_tool_use_template_is_taken_for_tools():
    several = {"default": "d", "tool_use": "t", "rag": "r"}
    read = Shown(None, several, {})
    assert read.chat("a") == ["d"]
    assert read.chat("a", tools=TOOLS) == ["t"]
    assert read.chat("a", chat_template="rag", tools=TOOLS) == ["r"]
    with pytest.raises(ValueError, match="no chat template 'x': chat_template must be one of default, tool_use, rag"):
        read.chat("a", chat_template="x")
    with pytest.raises(ValueError, match="one of rag"):
        Shown(None, {"rag": "r"}, {}).chat("a")
    with pytest.raises(ValueError, match="the chat template 'rag' refuses these messages: no"):
        Shown(None, {"rag": "{{ raise_exception('no') }}"}, {}).chat("a", chat_template="rag")


GOOD = {"role": "user", "content": "a"}
NO_CONVERSATION = {
    "there are no messages: expected one or more": [],
    "messages must be a list of mappings, one for each message, got None": None,
    "one for each message, got 5": 5,
    "one for each message, got {'role'": GOOD,
    "messages[0] is 'a'": ["a"],
    "messages[1] is []": [GOOD, []],
    "the role of messages[1] is None: expected a role and a content that are texts": [GOOD, {"content": "a"}],
    "the role of messages[0] is 3": [{"role": 3, "content": "a"}],
}


@pytest.mark.parametrize("told", NO_CONVERSATION)
def test_what_is_no_conversation_is_refused(told):
    with pytest.raises(ValueError, match=re.escape(told)):
        shown("{{ messages }}", NO_CONVERSATION[told])


PLAINEST = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
ODD = [None, 5, [{"type": "text", "text": "a"}], {"text": "a"}]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_content_that_is_no_text_is_found_where_the_template_does_not_take_it(odd):
    good = {"role": "user", "content": "a"}
    told = f"the content of messages[1] is {odd!r}: expected a role and a content that are texts"
    with pytest.raises(ValueError, match=re.escape(told)):
        shown(PLAINEST, [good, {"role": "user", "content": odd}, good])
    assert "user" in shown("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}", [{**good, "content": odd}])


@pytest.mark.parametrize("name", inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
def test_no_argument_of_transformers_is_silently_a_variable(name):
    ours = inspect.signature(Tokenizer.chat).parameters
    if name not in ours and name != "kwargs":
        with pytest.raises(TypeError, match=f"chat has no argument '{name}': "):
            shown(PLAINEST, **{name: True})


@pytest.mark.parametrize("more", [{"tools": "add"}, {"tools": [print]}, {"documents": ["a"]}])
def test_what_is_no_schema_or_document_is_refused(more):
    with pytest.raises(ValueError, match="must be a list of mappings"):
        shown("{{ tools }}", **more)


def test_a_template_is_given_plain_data_only(tmp_path):
    class Text(str):
        def danger(self):
            return "out"

    template = "{{ messages[0].content.danger() }}"
    with pytest.raises(ValueError, match="no attribute 'danger'"):
        shown(template, [{"role": "user", "content": Text("x")}])
    path = tmp_path / "written"
    with pytest.raises(ValueError, match=r"messages\[0\]\['content'\] is a PosixPath: a chat template takes text"):
        shown("{{ messages[0].content.write_text('x') }}", [{"role": "user", "content": path}])
    with pytest.raises(ValueError, match="helper is a function"):
        shown("{{ helper() }}", helper=lambda: 1)
    assert not path.exists()
    loop = {"role": "user"}
    loop["content"] = loop
    with pytest.raises(ValueError, match="contain themselves"):
        shown("x", [loop])


HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "self": "{{ self._TemplateReference__context.eval_ctx.environment }}",
    "files": "{% include '/etc/passwd' %}",
    "changed messages": "{{ messages.append(1) }}",
    "huge range": "{% for i in range(10**9) %}{% endfor %}",
    "many ranges": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "one range, many times": "{% for i in range(1000) %}{% set x = range(90000) | list %}{% endfor %}",
    "a long text": "{{ 'a' * 10**8 }}",
    "a long list": "{{ (10**8 * [1]) | length }}",
    "a long number": "{{ 9 ** (9 ** 9) }}",
    "a negative base": "{{ (-9) ** (10**9) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "unknown attribute": "{{ nothing.there }}",
    "no template": "{% if %}",
    "division": "{{ 1 / 0 }}",
    "not JSON": "{{ nothing | tojson }}",
}


def test_what_is_not_huge_is_computed_and_each_rendering_counts_its_own_ranges():
    template = (
        "{{ '-' * 40 }}{{ 2 ** 10 * 3 ** -1 }}{{ 1 ** (10**9) }}{{ (2 * [1]) }}{{ 2 * 0.5 }}{{ range(90000) | sum }}"
    )
    for _ in range(20):
        assert shown(template) == "-" * 40 + f"{2**10 * 3**-1}1[1, 1]1.0{sum(range(90000))}"


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_goes_wrong_is_named(template):
    with pytest.raises(ValueError, match=r"the chat template refuses these messages: \S"):
        shown(template)
