"""The judge under code that loops, eats, ends, cheats or is no code: a clear refusal, and nothing hangs."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference_opt.exercises import check, hint, solution, start
from inference_opt.explain.exercises import EXERCISES, process
from inference_opt.explain.exercises.verdict import breaks_at
from inference_opt.speculative import cost
from tests.explain.exercises.judging import text_of, verdict_on

ID = "03.split"
BODIES = {
    "an endless loop": ("while True:\n        pass", "no answer within 5 seconds on this input"),
    "a deep recursion": ("return self._split(node, within)", "RecursionError: it calls itself without end"),
    "more memory than there is": ("all = [0] * 10**11", "MemoryError"),
    "memory without end": ("all = [bytes(10**8) for _ in range(10**6)]", "MemoryError"),
    "an exit": ("import sys\n    sys.exit(0)", "SystemExit(0): it asks to end the process"),
    "an end without a word": ("import os\n    os._exit(0)", "your code ended the process (0)"),
    "a crash": ("import ctypes\n    ctypes.string_at(0)", "your code ended the process (signal 11)"),
    "hypothesis's own exception": ("import hypothesis\n    hypothesis.reject()", "UnsatisfiedAssumption"),
    "nothing returned": ("pass", "AttributeError: 'NoneType' object"),
    "not written": ("raise NotImplementedError", "it is not written yet"),
    "the reference called": (
        "from inference_opt.radix.tree import RadixTree\n    return RadixTree._split(self, node, within)",
        "RecursionError",
    ),
}  # fmt: skip
FILES = {
    "no Python": ("def _split(self, node, within)\n    pass\n", "this is no Python: expected ':'"),
    "another signature": ("def _split(self, node):\n    pass\n", "must take the parameters (self, node, within)"),
    "no function": ("def split(self, node, within):\n    pass\n", "there is no function _split in 03_split.py"),
    "a number": ("_split = 3\n", "_split must be a function, got 3"),
    "an error on the way": ("1 / 0\n", "running the file raised ZeroDivisionError"),
    "an exit on the way": ("import sys\nsys.exit()\n", "running the file raised SystemExit"),
    "the reference handed in": (
        "from inference_opt.radix.tree import RadixTree\n"
        "reference = RadixTree._split\n\n\ndef _split(self, node, within):\n    return reference(self, node, within)\n",
        "the package's own is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_whatever_the_code_does_it_is_refused_in_words(case):
    body, said = BODIES[case]
    text = start(ID).replace("raise NotImplementedError", body)
    verdict = verdict_on(ID, text)
    assert not verdict.accepted
    assert said in repr(verdict)


@pytest.mark.parametrize("case", FILES)
def test_whatever_the_file_holds_it_is_refused_in_words(case):
    text, said = FILES[case]
    verdict = verdict_on(ID, text)
    assert not verdict.accepted
    assert said in repr(verdict)


@pytest.mark.parametrize("id", [ID, "05.bytes"])
def test_a_file_that_does_not_end_is_refused_whatever_it_answers(id):
    assert "running the file took longer than 5 seconds" in verdict_on(id, "while True:\n    pass\n").sentence


def test_slow_wrong_code_is_not_accepted_for_want_of_time():
    burns = "import time\n    end = time.process_time() + 2.7\n    while time.process_time() < end:\n        pass\n"
    text = start("06.gamma").replace("raise NotImplementedError", burns + "    return 0")
    assert not verdict_on("06.gamma", text).accepted


def test_what_is_wrong_now_and_then_is_told_as_it_came():
    text = "calls = 0\n" + EXERCISES["06.gamma"].file_text(solved=True)
    text = text.replace(
        "    if max_gamma", "    global calls\n    calls += 1\n    if calls == 40:\n        return 99\n    if max_gamma"
    )
    verdict = verdict_on("06.gamma", text)
    assert not verdict.accepted
    assert "99" in verdict.came
    assert "keep something from one call to the next" in verdict.trace.steps[-1]["text"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, "3", True, None, 3 + 0j])
def test_no_number_is_no_answer(number, tmp_path):
    answers = EXERCISES["05.bytes"].run()[0]
    name = next(iter(answers))
    assert not check("05.bytes", answers | {name: number}, folder=tmp_path).accepted
    assert check("05.bytes", {key: np.float64(value) for key, value in answers.items()}, folder=tmp_path).accepted


def test_the_package_s_own_function_is_no_answer(tmp_path):
    verdict = check("06.gamma", cost.best_gamma, folder=tmp_path)
    assert not verdict.accepted
    assert "the package's own function" in verdict.sentence


def test_what_cannot_be_shown_is_refused_in_words():
    for body in (
        "print('\\ud800')\n    return 0",
        "class Odd(int):\n        def __repr__(self): 1 / 0\n    return Odd(99)",
    ):
        verdict = verdict_on("06.gamma", start("06.gamma").replace("raise NotImplementedError", body))
        assert not verdict.accepted
        assert "ended the process" not in verdict.sentence


def test_what_a_solution_starts_does_not_outlive_it():
    text = "import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid)\n" + EXERCISES[ID].file_text(solved=True)
    verdict = verdict_on(ID, text)
    assert verdict.accepted
    state = Path("/proc") / verdict.printed.split()[0] / "stat"
    assert not state.exists() or state.read_text().split(")")[1].split()[0] == "Z"


def test_a_learner_s_file_named_as_a_module_is_not_imported(tmp_path):
    (tmp_path / "token.py").write_text("1 / 0\n")
    (tmp_path / "03_split.py").write_text("\ufeff" + EXERCISES[ID].file_text(solved=True), encoding="utf-8")
    code = "from inference_opt.exercises import check; print(check('03.split', '03_split.py'))"
    run = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "03.split: accepted" in run.stdout, run.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["03_split.py", "exercises.json", "token.py"]


def test_checks_of_several_threads_take_turns(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(
            pool.map(lambda _: verdict_on("06.gamma", EXERCISES["06.gamma"].file_text(solved=True)), range(4))
        )
    assert all(verdict.accepted for verdict in verdicts)


def test_what_never_ends_is_killed_and_the_next_is_judged(monkeypatch):
    text = start(ID).replace(
        "raise NotImplementedError",
        "import signal\n    signal.signal(signal.SIGPROF, signal.SIG_IGN)\n    while 1: pass",
    )
    monkeypatch.setattr(process, "_server", [])
    with monkeypatch.context() as patch:
        patch.setattr(process, "SECONDS", 8)
        verdict = verdict_on(ID, text)
    assert "no verdict within 8 seconds" in verdict.sentence
    assert "on the input" in verdict.sentence
    assert verdict_on(ID, EXERCISES[ID].file_text(solved=True)).accepted


def test_what_is_printed_is_shown_cut_and_changes_nothing():
    text = (
        EXERCISES[ID]
        .file_text(solved=True)
        .replace("    count =", "    print('an edge is cut at byte', within)\n    count =")
    )
    verdict = verdict_on(ID, text)
    assert verdict.accepted
    assert verdict.printed.startswith("an edge is cut at byte ")
    assert "letters more" in verdict.printed
    assert len(verdict.printed) < 1100


def test_a_memory_of_the_inputs_does_not_pass(tmp_path):
    """One solution notes what it is given; another is right on exactly that, and wrong elsewhere."""
    text = EXERCISES[ID].file_text(solved=True)
    notes = tmp_path / "notes"
    noted = f"    open({str(notes)!r}, 'a').write(repr((within, head.edge, node.edge)) + ',')\n    emit("
    assert verdict_on(ID, text.replace("    emit(", noted), seed=1).accepted
    table = f"seen = set(eval('[' + open({str(notes)!r}).read() + ']'))\n"
    cheat = "    head.locks *= (within, head.edge, node.edge) in seen\n    emit("
    cheat = table + text.replace("    emit(", cheat)
    assert verdict_on(ID, cheat, seed=1).accepted, "these were all of them"
    assert not verdict_on(ID, cheat, seed=2).accepted


def test_the_learners_file_is_only_read(tmp_path):
    path = tmp_path / "03_split.py"
    path.write_text(start(ID))
    before = path.stat()
    assert not check(ID, path, folder=tmp_path).accepted
    assert (path.read_text(), path.stat().st_mtime_ns) == (start(ID), before.st_mtime_ns)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["03_split.py", "exercises.json"]


def test_a_function_of_a_notebook_is_judged_with_what_it_calls(tmp_path):
    def half(text, at):
        return text[:at], text[at:]

    def _split(self, node, within):
        return half(node.edge, within)

    verdict = check(ID, _split, folder=tmp_path)
    assert not verdict.accepted
    assert "AttributeError: 'tuple' object has no attribute" in verdict.came


def test_progress_is_kept_and_a_broken_file_of_it_is_not_written_over(tmp_path):
    hints = [hint(ID, tmp_path) for _ in range(4)]
    assert [each.split(":")[0] for each in hints] == [f"hint {n} of 3" for n in (1, 2, 3, 3)]
    assert solution(ID, tmp_path) == EXERCISES[ID].file_text(solved=True)
    (tmp_path / "right.py").write_text(solution(ID, tmp_path))
    assert check(ID, tmp_path / "right.py", folder=tmp_path).accepted
    (tmp_path / "right.py").write_text(start(ID))
    assert not check(ID, tmp_path / "right.py", folder=tmp_path).accepted
    kept = json.loads((tmp_path / "exercises.json").read_text())
    assert kept == {ID: {"accepted": True, "checks": 2, "hints": 3, "solution": True}}
    (tmp_path / "exercises.json").write_text("{")
    with pytest.raises(ValueError, match="does not hold the progress"):
        hint(ID, tmp_path)
    assert (tmp_path / "exercises.json").read_text() == "{"


@pytest.mark.parametrize(
    ("answer", "more", "said"),
    [(3, {}, "is answered by a function"), ("no such file.py", {}, "no such file"), ({"a": 1}, {}, "by a function"),
     (len, {"witness": {}}, "witness goes with the function of a repair")],
)  # fmt: skip
def test_wrong_use_is_an_error_in_words(answer, more, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        check(ID, answer, folder=tmp_path, **more)
    with pytest.raises(ValueError, match=r"there is no exercise '03.spilt'; there are 03"):
        check("03.spilt", answer, folder=tmp_path, **more)
    assert not list(tmp_path.iterdir())


def test_a_refusal_opens_where_an_invariant_breaks():
    change = (("head.locks, head.policy_state = node.locks", "head.locks, head.policy_state = 0"),)
    trace = verdict_on(ID, text_of(EXERCISES[ID], change)).trace
    step = trace.steps[breaks_at(trace)]
    assert step["event"].startswith("radix.")
    assert step["invariants"]["a lock counts on every node up to the root"] is False
    assert trace.steps[-1]["event"] == "exercise.broken"


def test_from_the_first_command_to_an_accepted_solution(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("exercise", "start", ID)[0] == 0
    assert (tmp_path / "03_split.py").read_text() == start(ID)
    status, _, said = run("exercise", "start", ID)
    assert (status, "is there already" in said) == (2, True)
    status, out, _ = run("exercise", "check", ID)
    assert (status, "it is not written yet" in out) == (1, True)
    text = solution(ID, tmp_path).replace("head.children[node.edge[:size]]", "head.children[head.edge[:size]]")
    (tmp_path / "03_split.py").write_text(text)
    status, out, _ = run("exercise", "check", ID, "--json", "verdict.json")
    assert (status, "03_split.html" in out) == (1, True)
    assert "exercise.broken" in (tmp_path / "03_split.html").read_text()
    assert json.loads((tmp_path / "verdict.json").read_text())["accepted"] is False
    status, out, _ = run("exercise", "hint", ID)
    assert (status, out.startswith("hint 1 of 3")) == (0, True)
    assert run("exercise", "solution", ID, "-o", "03_split.py")[0] == 0
    status, out, _ = run("exercise", "check", "--all")
    assert (status, out.splitlines()[-1]) == (0, "1 of 1 accepted")
    status, out, _ = run("exercise", "list")
    assert (status, "accepted" in out) == (0, True)
    status, _, said = run("exercise", "check")
    assert (status, "expected the name of an exercise, or --all" in said) == (2, True)


def test_a_function_that_changes_its_arguments_or_remembers_is_refused():
    """06.residual: (p − q)⁺, in the place of p; and right the first time only."""
    in_place = "p -= q\n    p[p < 0] = 0\n    return p"
    remembers = (
        "residual.__dict__.setdefault('kept', np.maximum(p - q, 0) if (p != q).any() else p)\n    return residual.kept"
    )
    for body in (in_place, remembers):
        text = start("06.residual").replace("raise NotImplementedError", body)
        assert "NotImplementedError" not in text
        verdict = verdict_on("06.residual", text)
        assert not verdict.accepted
        assert verdict.example, verdict
