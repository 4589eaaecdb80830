"""Whatever a command is given, it ends with 0, 1 or 2 and says why in words; what is wrong is said before the work."""

import importlib
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from inference_opt.cli import app
from inference_opt.loading.tokenizer import Tokenizer
from tests.toys import toy

SIZES = '{"dim": 16, "depth": 1, "heads": 2}'


class Reached(Exception):
    """The work would begin here."""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty folder, up to where its work begins; return (status, all that was printed)."""
    monkeypatch.chdir(tmp_path)

    def reached(*args, **kwargs):
        raise Reached

    # A module that is imported from now on would keep what stands in for `load_model`.
    names = ("busy", "decode", "load", "mla", "prefix", "radix", "roofline", "speculative", "together")
    benches = {name: importlib.import_module(f"inference_opt.lab.bench.{name}") for name in (*names, "drafts")}
    importlib.import_module("inference_opt.api")
    monkeypatch.setattr("inference_opt.generate.load_model", reached)
    monkeypatch.setattr("inference_opt.loading.load.load_model", reached)
    monkeypatch.setattr("inference_opt.loading.download._download", reached)
    monkeypatch.setenv("INFERENCE_OPT_CACHE", str(tmp_path / "cache"))
    for name in names:
        monkeypatch.setattr(benches[name], f"bench_{name}", reached)
    monkeypatch.setattr("inference_opt.lab.bench.mla.bench_prompts", reached)

    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        if isinstance(result.exception, Reached):
            return "reached", result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return result.exit_code, result.output

    return run


WRITES = [
    (("generate", "hi"), "--json"),
    (("tour",), "--json"),
    (("tour",), "--report"),
    (("tour",), "--figure"),
    (("bench", "decode"), "--json"),
    (("bench", "load"), "--json"),
    (("bench", "load"), "--figure"),
    (("bench", "mla"), "--json"),
    (("bench", "prefix"), "--json"),
    (("bench", "radix"), "--json"),
    (("bench", "radix"), "--figure"),
    (("bench", "roofline"), "--json"),
    (("bench", "speculative"), "--json"),
    (("step", "rejection"), "--json"),
    (("step", "rejection"), "--output"),
]


@pytest.mark.parametrize(("command", "option"), WRITES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(call, command, option, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "here.svg").mkdir()
    for place in ("missing/a.svg", "file/a.svg", "here.svg", "/proc/a.svg", "n" * 256 + ".svg", "~no-such-user/a.svg"):
        status, printed = call(*command, option, place)
        assert status == 2, (place, printed)
        assert option in printed
    assert (tmp_path / "file").read_text() == "kept"


def test_two_options_that_name_one_file_are_refused(call, tmp_path):
    (tmp_path / "link.svg").symlink_to("a.svg")
    (tmp_path / "ablation").mkdir()
    for arguments in (
        ("tour", "--json", "a", "--report", "./a"),
        ("tour", "--json", "tour.html"),
        ("tour", "--figure", "a.svg", "--report", "link.svg"),
        ("step", "rejection", "--json", "a", "-o", tmp_path / "a"),
        ("ablate", "--json", "ablation/report.html"),
    ):
        status, printed = call(*arguments)
        assert status == 2
        assert "name the same file" in printed.replace("\n", " ")


def test_what_a_command_reads_is_not_written_over(call, tmp_path):
    for name in ("data.jsonl", "model.gguf"):
        (tmp_path / name).write_text("precious")
    for arguments in (
        ("ablate", "data.jsonl", "--json", "data.jsonl"),
        ("generate", "hi", "--model", "model.gguf", "--json", "model.gguf"),
        ("bench", "radix", "data.jsonl", "--json", "data.jsonl"),
        ("step", "--trace", "data.jsonl", "-o", "data.jsonl"),
    ):
        assert call(*arguments)[0] == 2
    assert {p.read_text() for p in tmp_path.iterdir()} == {"precious"}


def test_no_file_of_a_folder_that_is_read_is_written_over(call, tmp_path):
    (tmp_path / "m" / "deep").mkdir(parents=True)
    for name in ("config.json", "deep/p.jsonl", "report.html", "a.svg"):
        (tmp_path / "m" / name).write_text("precious")
    (tmp_path / "blob").write_text("precious")
    (tmp_path / "m" / "linked.json").symlink_to("../blob")
    (tmp_path / "to").symlink_to("m/config.json")
    for arguments in (
        ("generate", "hi", "--model", "m", "--json", "m/config.json"),
        ("generate", "hi", "--json", "to", "--model", "./m"),
        ("generate", "hi", "--model", "m", "--json", "m/linked.json"),
        ("ablate", "m", "--json", "m/deep/p.jsonl"),
        ("ablate", "--model", "m", "--json", "m/config.json"),
        ("tour", "--model", "m", "--report", "m/report.html"),
        ("tour", "--model", "m", "--figure", "m/a.svg"),
        ("bench", "decode", "--model", "m", "--json", "m/config.json"),
    ):
        status, printed = call(*arguments)
        assert status == 2, arguments
        assert "a file of the folder that" in " ".join(printed.split()), printed
    assert call("tour", "--model", "m", "--report", "m/new.html")[0] == "reached"
    assert call("tour", "--model", "m", "--report", "blob")[0] == "reached"


def test_devices_may_be_named_twice_and_a_figure_needs_a_format(call):
    assert call("tour", "--json", "/dev/null", "--report", "/dev/null", "--figure", "/dev/null")[0] == "reached"
    status, printed = call("tour", "--figure", "a.txt")
    assert (status, ".svg" in printed) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("generate", "hi", "--gamma", 3), "--gamma"),
        (("generate", "hi", "--seed", 3), "--seed"),
        (("generate", "hi", "--top-k", 3, "--top-p", 0.5, "--min-p", 0.1), "--top-k, --top-p, --min-p"),
        (("bench", "speculative", "--seed", 3), "--seed"),
        (("bench", "decode", "--busy", 2, "--batch", 8, "--peer"), "--batch, --peer"),
        (("step", "--trace", "a.json", "--seed", 3), "--seed"),
    ],
)
def test_options_that_would_change_nothing_are_refused(call, arguments, named):
    status, printed = call(*arguments)
    assert (status, f"error: {named} would have no effect" in " ".join(printed.split())) == (2, True)


def test_options_that_change_something_are_taken(call):
    assert call("generate", "hi", "--temperature", 1, "--seed", 3, "--top-k", 3)[0] == "reached"
    assert call("generate", "hi", "--drafter", "n-gram", "--gamma", 3)[0] == "reached"
    assert call("bench", "speculative", "--temperature", 1, "--seed", 3)[0] == "reached"
    assert call("bench", "decode", "--busy", 2, "--no-peer")[0] == "reached"


TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
VALUES = st.sampled_from(
    ["", " ", "nan", "inf", "-inf", "-1", "0", "1", "1e308", "9" * 30, "-" + "9" * 30, "0.5", ".", "/", "~", "--",
     "[/b]", "🙂", "\udce9", "{", "{}", "[]", "null",
     '{"dim": null}', '{"dim": "16"}', '{"dim": 1e9}', '{"seed": -1, "dim": 16}',
     "[" * 20_000, '{"dim": ' + "[" * 20_000, "owner/name/x", "a" * 5000]
) | TEXT  # fmt: skip
COMMANDS = [
    ("generate", "model", "max-new-tokens", "temperature", "top-k", "top-p", "min-p", "seed", "stop", "drafter", 
     "gamma", "dtype", "json"),
    ("tour", "model", "max-new-tokens", "dtype", "json", "report", "figure"),
    ("step", "seed", "trace", "json", "output"),
    ("ablate", "model", "technique", "metric", "design", "repeats", "requests", "max-new-tokens", "drafter",
     "page-size", "dtype", "json"),
    ("fetch",),
    ("bench decode", "model", "dtype", "batch", "new-tokens", "repeats", "busy", "json"),
    ("bench load", "model", "dtype", "device", "share", "variation", "budget", "drafter", "requests", "new-tokens",
     "ttft", "tpot", "repeats", "seed", "figure", "json"),
    ("bench gamma", "alpha", "cost", "batch", "shape", "card", "dtype", "context", "most", "json"),
    ("bench mla", "shape", "device", "dtype", "context", "prompt", "repeats", "json"),
    ("bench prefix", "model", "dtype", "requests", "stem", "new-tokens", "repeats", "json"),
    ("bench radix", "capacity", "sglang", "repeats", "seed", "figure", "json"),
    ("bench roofline", "shape", "card", "device", "dtype", "prompt", "batch", "context", "repeats", "json"),
    ("bench speculative", "model", "task", "drafter", "gamma", "dtype", "prompts", "new-tokens", "temperature", "seed",
     "repeats", "json"),
    ("bench kernels", "case", "repeats", "json"),
    ("bench engine", "shape", "batch", "context", "mode", "new-tokens", "decode-steps", "gpt-fast", "repeats", "json"),
    ("bench together", "shape", "requests", "stem", "new-tokens", "alpha", "dtype", "device", "repeats", "json"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(data=st.data())
def test_no_value_of_an_option_ends_in_a_traceback(call, monkeypatch, command, data):
    monkeypatch.setattr("inference_opt.experiment.study.build", lambda *args: (_ for _ in ()).throw(Reached))
    monkeypatch.setattr("inference_opt.loading.load._from_hub", lambda name: (_ for _ in ()).throw(Reached))
    first, *options = command
    arguments = first.split()
    if first in ("step", "generate", "fetch") and data.draw(st.booleans(), "an argument"):
        arguments += ["several-candidates"] if options else ["--", data.draw(VALUES, "argument")]
    for option in data.draw(st.lists(st.sampled_from(options), max_size=3), "options") if options else []:
        arguments += [f"--{option}={data.draw(VALUES, option)}"]
    assert call(*arguments)[0] in (0, 1, 2, "reached")


def test_every_scenario_refuses_a_seed_that_is_none(call):
    for seed in (-1, 2**63, 2**64):
        status, printed = call("step", "several-candidates", "--seed", seed)
        assert (status, "seed" in printed) == (2, True)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [('{"dim": "16"}', "dim"), ('{"dim": null}', "dim"), ('{"dim": 16, "heads": 2, "seed": "x"}', "seed"),
     ('{"dim": true}', "dim"), ('{"dim": NaN}', "dim"), ('{"width": 3}', "width"), ("{" * 9, "sizes must be JSON")],
)  # fmt: skip
def test_sizes_that_are_none_are_named(call, sizes, says, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    status, printed = call("ablate", "p.jsonl", "--model", sizes)
    assert (status, says in printed) == (2, True)


class Interrupted:
    """Stands for the work."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (PermissionError(13, "Permission denied", "x.json"), 2, "error: x.json: Permission denied\n"),
        (OSError("the disk is full"), 2, "error: the disk is full\n"),
        (RecursionError(), 2, "error: what was given is nested too deeply to be read\n"),
        (MemoryError(), 2, "error: not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: not enough memory"),
        (ValueError("model [/b] is none :smile:"), 2, "error: model [/b] is none :smile:\n"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'\nThis is a fault of inference-opt"),
    ],
)
def test_whatever_ends_a_command_is_said_in_words(run, monkeypatch, error, status, says):
    monkeypatch.setattr("inference_opt.generate.generate_text", Interrupted(error))
    found, out, err = run("generate", "hi")
    assert (found, out) == (status, "")
    assert err.startswith(says) if says else err == ""


@pytest.fixture
def stub(monkeypatch):
    """A model of one layer, which has emoji to say, and its tokenizer."""
    import tokenizers

    texts = [*map(chr, range(97, 123)), "🙂", "→", "[/b]"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(texts, range(len(texts)))), unk_token="a"))
    backend.decoder = tokenizers.decoders.Fuse()
    model, script = toy(vocab_size=len(texts), max_context=64), iter([26, 27, 28, 7])

    def logits(hidden):
        out = torch.zeros(len(hidden), len(texts), dtype=torch.float64)
        out[0, next(script)] = 9.0
        return out

    model.logits = logits
    monkeypatch.setattr("inference_opt.generate.load_model", lambda name, dtype: (model, Tokenizer(backend)))


def test_a_terminal_that_lacks_a_character_ends_no_command(stub, monkeypatch, tmp_path):
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="cp1252")
    arguments = ["generate", "b", "--raw", "--max-new-tokens", "4", "--json", str(tmp_path / "a.json")]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", narrow)
        app(arguments, standalone_mode=False)
        app(["step", "rejection", "-o", str(tmp_path / "→.html")], standalone_mode=False)
        narrow.flush()
    said, where = raw.getvalue().splitlines()
    assert said == b"??[/b]h"
    assert where.endswith(b"?.html")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["text"] == "🙂→[/b]h"


def command(*arguments, **environment):
    begun = [sys.executable, "-W", "error::ResourceWarning", "-m", "inference_opt.cli", *arguments]
    return subprocess.Popen(begun, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_real_terminal_of_ascii_and_a_pipe_that_is_closed():
    with command("step", "--help", PYTHONIOENCODING="ascii") as narrow:
        out, err = narrow.communicate(timeout=120)
    assert (narrow.returncode, err) == (0, b"")
    out.decode("ascii")
    with command("step", "--list") as unread:
        unread.stdout.close()
        err = unread.stderr.read()
        assert unread.wait(120) in (0, 1, 141)
    assert err == b""
