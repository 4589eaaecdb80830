"""Recording: what a trace holds, what it costs where nothing is recorded, what is said of bad ones."""

import gc
import json
import os
import sys
from fractions import Fraction

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.cache.pool import PagePool
from inference_opt.explain import views
from inference_opt.explain.player.page import frame, page
from inference_opt.explain.player.widget import Player
from inference_opt.explain.record import ROOT, Recorder, record
from inference_opt.explain.scenarios import SCENARIOS, play
from inference_opt.explain.scenarios.explore import explore
from inference_opt.explain.views.decoding import flops
from inference_opt.lab.eviction.learned import Odds
from inference_opt.radix.tree import RadixTree
from inference_opt.speculative import rules
from inference_opt.trace import Trace, emit, recording, watched
from tests.engine.invariants import assert_sound_tree
from tests.toys import SHAPES, run, toy

SCHEMA = json.loads((ROOT / "trace" / "trace.schema.json").read_text(encoding="utf-8"))


class Loud:
    """A subject that may not be asked."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")


def test_unrecorded_nothing_is_formatted_copied_or_checked():
    subject = Loud()
    emit("a.b", subject, fact=Loud())
    assert watched(subject) is subject
    assert watched(rules.token_wise) is rules.token_wise


def test_a_step_holds_a_whole_state_that_no_later_step_changes():
    pool = PagePool(4, 2)
    with record("two steps", watch=[pool]) as trace:
        pages = pool.allocate(2)
        pool.release(pages)
    first, second = trace.steps
    assert [first["event"], second["event"]] == ["pool.allocate", "pool.release"]
    assert first["text"] == "2 pages taken from the pool: 0, 1"
    assert first["state"]["pool"]["free"] == [3, 2]
    assert sorted(second["state"]["pool"]["free"]) == [0, 1, 2, 3]
    assert first["invariants"] == {"every free page is on the stack once": True}
    assert (first["counters"], second["counters"]) == ({"pages in use": 2}, {"pages in use": 0})
    pool.allocate(1)
    assert len(trace) == 2, "recording has ended"


def test_the_source_of_a_step_is_the_line_that_it_tells_of():
    with record() as trace:
        PagePool(2, 1).allocate(1)
    source = trace.sources[trace.steps[0]["source"]]
    lines = (ROOT / "cache" / "pool.py").read_text(encoding="utf-8").splitlines()
    assert source["file"] == "cache/pool.py"
    assert lines[source["line"] - 1].strip() == 'emit("pool.allocate", self, count=count, pages=pages)'
    for number, text in source["lines"]:
        assert lines[number - 1] == text


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"continuous-batching", "equal-prompts", "biased-rule"}))
def test_the_line_that_is_shown_is_one_that_ran(monkeypatch, name):
    """Python's own word for it: of each function, the lines of the call that began last are noted as they run."""
    ran, told, hear = {}, [], Recorder.hear

    def note(frame, event, arg):
        if "inference_opt" not in (file := frame.f_code.co_filename) or "explain/views" in file:
            return None
        if event == "call":
            ran[frame.f_code] = set()
        elif event == "line":
            ran[frame.f_code].add(frame.f_lineno)
        return note

    def heard(self, event, subject, data, code, line):
        told.append((event, code.co_filename, line, line in ran.get(code, ())))
        hear(self, event, subject, data, code, line)

    monkeypatch.setattr(Recorder, "hear", heard)
    before = sys.gettrace()
    sys.settrace(note)
    try:
        SCENARIOS[name].run()
    finally:
        sys.settrace(before)
    assert told
    assert [each for each in told if not each[-1]] == []


def test_a_broken_invariant_is_told_not_hidden():
    pool = PagePool(2, 1)
    with record() as trace:
        pool.allocate(1)
        pool._free.append(pool._free[0])
        emit("test.broken", pool)
    assert [s["invariants"]["every free page is on the stack once"] for s in trace.steps] == [True, False]


def test_sentences_count_spell_and_list(monkeypatch):
    monkeypatch.setitem(views.SENTENCES, "a.b", "{n:page}, {m:page}, {x:text}, {pages}, {f}")
    monkeypatch.setitem(views.SENTENCES, "a.c", "{x:text}; {pages}")
    with record(label=chr) as trace:
        emit("a.b", n=1, m=2, x=[99, 97], pages=[3, 4], f=Fraction(1, 3))
        emit("a.c", x=[], pages=[])
    assert [s["text"] for s in trace.steps] == ["1 page, 2 pages, “ca”, 3, 4, 1/3", "nothing; none"]
    assert trace.steps[0]["facts"]["f"] == "1/3"


def test_a_recording_is_cut_at_its_size_and_says_so():
    pool = PagePool(64, 1)
    with record("cut", max_bytes=2000) as trace:
        for _ in range(64):
            pool.allocate(1)
    assert pool.free == 0, "the code ran on"
    assert 1 <= len(trace) < 64
    assert trace.cut == (
        f"the recording was cut after {len(trace)} steps: the next would have passed max_bytes = 2,000"
    )
    assert trace.cut in page(trace)


class Breaking:
    """A subject that cannot be shown."""

    def __init__(self, error):
        self.error = error


@views.snapshot.register
def broken(subject: Breaking):
    raise subject.error


@pytest.mark.parametrize("what", ["a sentence", "a snapshot", "a label", "a fact", "text that is no Unicode"])
def test_what_cannot_be_shown_cuts_the_recording_and_nothing_else(monkeypatch, what):
    monkeypatch.setitem(views.SENTENCES, "a.b", "{nothing}" if what == "a sentence" else "all is well")

    def label(token):
        if what == "a label":
            raise KeyError(token)
        return "\ud800" if what.startswith("text") else str(token)

    tree = RadixTree(1)
    with record(label=label) as trace:
        if what == "a sentence":
            emit("a.b")
        elif what == "a snapshot":
            emit("a.b", Breaking(ZeroDivisionError("no")))
        elif what == "a fact":
            nested = []
            nested.append(nested)
            emit("a.b", nested=nested)
        node = tree.insert([1, 2], [0, 1]).node
        tree.lock(node)
    assert len(trace) == 0
    assert "recording was cut after 0 steps: the next, " in trace.cut
    assert "could not be shown" in trace.cut
    assert (tree.cached([1, 2]), node.locks, recording()) == (2, 1, False)


def test_an_interrupted_recording_is_over_and_the_tree_is_sound():
    tree = RadixTree(1)
    tree.insert([1, 2, 3], [0, 1, 2])
    with pytest.raises(KeyboardInterrupt), record(watch=[Breaking(KeyboardInterrupt())]) as trace:
        tree.insert([1, 2, 4], [0, 1, 3])  # it splits an edge, and tells of that first
    assert (recording(), trace.cut) == (False, "")
    assert_sound_tree(tree)
    assert tree.insert([1, 2, 4], [0, 1, 3]).pages == [0, 1, 3]
    with record() as trace:
        tree.evict(1)
    assert trace.events() == ["radix.evict"]


@pytest.mark.parametrize("at", range(1, 40))
def test_recording_ends_wherever_it_is_interrupted(at):
    left = at

    def interrupt(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.endswith(("explain/record.py", "trace/emit.py")):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return interrupt

    pool = PagePool(4, 1)
    sys.settrace(interrupt)
    try:
        with record():
            pool.allocate(1)
            pool.allocate(1)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    gc.collect()
    assert not recording()
    assert all(views.invariants(pool).values())


def test_numbers_that_json_does_not_have_are_text():
    with record() as trace:
        emit("a.b", x=float("inf"), y=[float("nan"), 1.5], z=torch.tensor([-torch.inf]))
    assert trace.steps[0]["facts"] == {"x": "inf", "y": ["nan", 1.5], "z": ["-inf"]}


def test_deep_trees_are_recorded_saved_and_read(tmp_path):
    tree = RadixTree(1)
    for n in range(1, 1500):
        tree.insert(range(n), range(n))
    with record(max_bytes=10**9) as trace:
        tree.match([0, 1])
    assert not trace.cut
    assert len(trace.steps[0]["state"]["tree"]["nodes"]) == 1500
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json").as_json() == trace.as_json()


def test_a_policy_s_own_books_are_not_the_tree_s_steps():
    tree, pool = RadixTree(1, Odds(4, 1)), PagePool(4, 1)
    with record() as trace:
        tree.match([1, 2])
        tree.insert([1, 2], pool.allocate(2))
        pool.allocate(1)
    assert trace.events() == ["radix.match", "pool.allocate", "radix.insert", "pool.allocate"]
    assert trace.steps[-1]["state"]["tree"]["nodes"] == views.snapshot(tree)["nodes"]


def test_only_some_events_are_kept():
    tree = RadixTree(1)
    with record(only=("radix.lock", "radix.unlock")) as trace:
        node = tree.insert([1], [0]).node
        tree.lock(node)
        tree.unlock(node)
    assert trace.events() == ["radix.lock", "radix.unlock"]


def test_recordings_nest():
    pool = PagePool(4, 1)
    with record() as outer:
        pool.allocate(1)
        with record() as inner:
            pool.allocate(1)
        pool.allocate(1)
    assert (len(outer), len(inner)) == (2, 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_fits_the_schema_and_comes_back_from_a_file(name, tmp_path):
    trace = play(name)
    whole = trace.as_json()
    jsonschema.validate(whole, SCHEMA)
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json").as_json() == whole == json.loads(json.dumps(whole))
    assert not trace.cut
    broken = {held for s in trace.steps for held, so in s["invariants"].items() if not so}
    expected = {"the first token has the target's distribution", "the texts have the target's distribution"}
    assert broken == (expected if name == "biased-rule" else set())


@given(SHAPES, st.integers(1, 6), st.integers(0, 9))
def test_operations_are_those_that_torch_counts(shape, new, kept):
    model = toy(**shape)
    cache = ContiguousCache(**model.config.kv_shape, capacity=[kept + new], dtype=model.dtype, device=model.device)
    ids = torch.arange(kept + new) % model.config.vocab_size
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        if kept:
            run(model, ids[:kept], cache.batch([kept]))
        with FlopCounterMode(display=False) as counted:
            run(model, ids[kept:], cache.batch([new]), rows=torch.tensor([new - 1]))
    assert flops(model, new, kept + new) == counted.get_total_flops()


def test_a_scenario_says_what_it_shows():
    for scenario in SCENARIOS.values():
        assert scenario.sentence.endswith(".")
        assert scenario.about


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"version": 1}, "version 1; this code reads version 2: record it anew"),
        (lambda t: t | {"format": "x"}, "not a trace"),
        (lambda t: [t], "not a trace"),
        (
            lambda t: t | {"steps": [t["steps"][0] | {"source": 9}]},
            r"steps\[0\]\.source: 9 names no source, there are [1-9]",
        ),
        (
            lambda t: t | {"steps": [t["steps"][0] | {"text": None}]},
            r"steps\[0\]\.text: None is not of type 'string'",
        ),
        (
            lambda t: {name: part for name, part in t.items() if name != "labels"},
            "the trace: 'labels' is a required property",
        ),
        (lambda t: t | {"sources": [3]}, r"sources\[0\]: 3 is not of type 'object'"),
        (lambda t: t | {"sources": t["sources"] * 40, "steps": t}, "steps: a dict is not of type 'array'"),
        (lambda t: t | {"steps": [None]}, r"steps\[0\]: None is not of type 'object'"),
        (lambda t: t | {"more": 1}, "the trace: .*'more' was unexpected"),
        (lambda t: t | {"steps": [t["steps"][0] | {"event": "Said"}]}, r"steps\[0\]\.event: 'Said' does not match"),
        (
            lambda t: t | {"steps": [t["steps"][0] | {"counters": {"drafts": "many"}}]},
            r"steps\[0\]\.counters\.drafts: 'many' is not valid",
        ),
        (lambda t: t | {"labels": {"a": float("nan")}}, "NaN is no number of JSON"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_reason(change, message, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(change(play("rejection").as_json())))
    with pytest.raises(ValueError, match=message) as error:
        Trace.load(file)
    assert str(error.value).startswith(f"{file}: ")
    assert len(str(error.value)) < len(str(file)) + 120
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_with_a_reason(tmp_path):
    file = tmp_path / "trace.json"
    play("rejection").save(file)
    file.write_text(file.read_text()[:-200])
    with pytest.raises(ValueError, match=r"not a whole trace.*truncated"):
        Trace.load(file)


def test_only_a_regular_file_is_read_as_a_trace(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "pipe", tmp_path / "folder", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file") as error:
            Trace.load(file)
        assert str(error.value).startswith(str(file))
    with pytest.raises(ValueError, match="is not there"):
        Trace.load(tmp_path / "missing")


def test_a_trace_nested_without_end_is_refused(tmp_path):
    file = tmp_path / "trace.json"
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        Trace.load(file)


def test_questions_are_put_to_steps_that_there_are_and_have_wrong_answers():
    trace = play("rejection")
    for at in (-1, 0, 2):
        with pytest.raises(ValueError, match=f"expected a step from 1 to 1, behind one that is shown, got {at}"):
            trace.ask_number(at, "?", 1, "so", {})
    for wrong in ([("b", "not so")], [("b", "not so"), ("a", "not so")], [("b", "not so"), ("b", "no")]):
        with pytest.raises(ValueError, match="expected two or more wrong answers, all different"):
            trace.ask(1, "?", ("a", "so"), *wrong)
    trace.ask(1, "?", ("b", "so"), ("c", "not so"), ("a", "no"))
    assert trace.steps[1]["question"] == {
        "ask": "?",
        "choices": [["a", "no"], ["b", "so"], ["c", "not so"]],
        "right": 1,
    }
    trace.ask_number(1, "?", 2, "so", {3: "more", 2: "wrong in other recordings", 0: "less"})
    assert trace.steps[1]["question"]["beliefs"] == [[0, "less"], [3, "more"]]


def test_a_page_opens_at_steps_that_there_are():
    trace = play("rejection")
    assert ", true, 1);" in page(trace, at=1)
    assert ", true, 1);" in frame(trace, at=1)
    assert Player(trace, at=1).at == 1
    for shown in (page, frame, Player):
        for at in (-1, len(trace)):
            with pytest.raises(ValueError, match=f"at must be the index of a step, 0 to 1 in this trace, got {at}"):
                shown(trace, at=at)


def test_what_came_is_compared_as_it_is_written():
    given = {"p": (Fraction(1, 3),), "table": {1: {2}}, "q": torch.tensor([0.1 + 0.2, 2]).double()}
    rows = [("a", torch.tensor([0.3]), [0.3]), ("b", Fraction(1, 3), 1 / 3), ("c", {2, 1}, {1, 2}), ("d", 1, True)]
    with record("x") as trace:
        emit("exercise.given", given=given)
        emit("exercise.broken", sentence="it {holds}", given=given, rows=rows)
    jsonschema.validate(trace.as_json(), SCHEMA)
    assert trace.steps[0]["text"] == "the input: p = (1/3,), table = {1: {2}}, q = [0.3, 2]"
    assert trace.steps[1]["text"] == "it {holds}"
    assert trace.steps[1]["invariants"] == {"it {holds}": False}
    assert trace.steps[1]["state"]["comparison"] == {
        "kind": "comparison",
        "given": [["p", "(1/3,)"], ["table", "{1: {2}}"], ["q", "[0.3, 2]"]],
        "rows": [
            ["a", "[0.3]", "[0.3]", True],
            ["b", "1/3", "0.333333", False],
            ["c", "{1, 2}", "{1, 2}", True],
            ["d", "1", "True", False],
        ],
        "broken": "it {holds}",
    }


def test_scenarios_and_parameters_that_there_are_not():
    with pytest.raises(ValueError, match="there is no scenario 'x'; there are: naive-decoding, "):
        play("x")
    with pytest.raises(ValueError, match="'page-pool' has no seed; what may be changed: prompts, page_size, num_pages"):
        play("page-pool", seed=1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("block-verification", {"gamma": 0}),
        ("block-verification", {"gamma": 1}),
        ("several-candidates", {"candidates": 0}),
        ("several-candidates", {"candidates": 9}),
        ("draft-tree", {"depth": 0}),
        ("draft-tree", {"depth": 3, "width": 9}),
        ("naive-decoding", {"prompt": "a", "new_tokens": 1}),
        ("kv-cache", {"new_tokens": 300, "temperature": 0.0}),
        ("pieces-of-attention", {"lengths": "1", "sharing": 9, "prefix": 0}),
        ("pieces-of-attention", {"lengths": "64 65 2000", "sharing": 0, "heads": 2}),
    ],
)
def test_scenarios_play_at_the_ends_of_what_may_be_asked(name, changes):
    trace = play(name, **changes)
    jsonschema.validate(trace.as_json(), SCHEMA)
    assert all(held for one in trace.steps for held in one["invariants"].values())


def test_a_tree_too_large_to_show_is_refused():
    with pytest.raises(ValueError, match="depth 300 and width 2 has more than 40 nodes"):
        play("draft-tree", depth=300)


def test_the_page_holds_no_way_out_and_no_way_in(monkeypatch):
    monkeypatch.setitem(views.SENTENCES, "a.b", "{x:text} </script><!--")
    with record("</script><script>alert(1)</script>", label=lambda token: "</script>") as trace:
        PagePool(1, 1).allocate(1)
        emit("a.b", x=[1])
    whole = page(trace)
    assert whole.count("</script>") == 3, "the table's, the trace's, the player's"
    assert 'srcdoc="' in frame(trace) == trace._repr_html_()


def test_controls_run_the_scenario_again_and_say_what_is_wrong():
    controls, said, player = explore("diverging-insert").children
    page_size, evict = controls.children[3:]
    before = player.trace
    page_size.value = 1
    assert player.trace["steps"][0]["state"]["tree"]["page_size"] == 1
    evict.value = 0
    assert not any(s["event"] == "radix.evict" for s in player.trace["steps"])
    page_size.value, evict.value = 2, 3
    assert player.trace == before
    boxes = explore("page-pool")
    controls, said, player = boxes.children
    kept = player.trace
    controls.children[2].value = 1
    assert "can never fit" in said.value
    assert player.trace == kept
