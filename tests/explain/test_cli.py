"""`inference-opt step` as a user meets it."""

import json
import sys

import pytest

from inference_opt import cli
from inference_opt.explain.scenarios import SCENARIOS
from inference_opt.trace import Trace


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; return (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["inference-opt", "step", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status or 0, *capsys.readouterr()

    return call


def test_the_list_names_every_scenario_with_a_sentence(run):
    status, out, _ = run("--list")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(SCENARIOS)
    assert all(line.rstrip().endswith(".") for line in lines)


def test_a_scenario_becomes_one_html_file(run, tmp_path):
    status, out, err = run("rejection", "-o", "out.html")
    assert (status, err) == (0, "")
    assert out == f"2 steps: {tmp_path / 'out.html'}\n"
    whole = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert whole.startswith("<!doctype html>")
    assert "speculation.reject" in whole
    assert run("rejection")[0] == 0
    assert (tmp_path / "rejection.html").read_text(encoding="utf-8") == whole, "the same every time"


def test_json_alone_writes_the_trace_alone_and_a_trace_can_be_shown(run, tmp_path):
    assert run("rejection", "--json", "trace.json")[:2] == (0, "")
    trace = Trace.load(tmp_path / "trace.json")
    assert trace.events() == ["speculation.reject", "speculation.replace"]
    assert run("--trace", "trace.json")[0] == 0
    assert (tmp_path / "trace.html").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_seed_is_the_scenarios_chance(run, tmp_path):
    run("rejection", "--seed", 3, "--json", "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["steps"][0]["event"] == "speculation.accept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no scenario 'nothing'; there are: naive-decoding, "),
        ([], "expected the name of a scenario"),
        (["page-pool", "--seed", "1"], "scenario 'page-pool' has no seed"),
        (["--trace", "missing.json"], "missing.json"),
        (["page-pool", "--trace", "x.json"], "expected the name of a scenario, or --trace FILE"),
        (["rejection", "-o", "no/folder.html"], "no/folder.html"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_truncated_trace_is_said_in_one_line(run, tmp_path):
    (tmp_path / "half.json").write_text('{"format": "inference-opt tr')
    status, _, err = run("--trace", "half.json")
    assert status == 2
    assert err.startswith("error: half.json is not a whole trace")
