"""What starting costs: nothing heavy is imported before it is needed, and Ctrl-C meanwhile is no fault."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import inference_opt

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {re.split("[><=]", each)[0] for each in PROJECT["dependencies"]}
FOR_THE_SITE = {re.split("[><=]", each)[0] for each in PROJECT["optional-dependencies"]["docs"]}
NAMES = ", ".join(inference_opt.__all__)


def fresh(code, *arguments, **options):
    """Run code in a new interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def imported_by(code):
    """Names of the modules, top level only, that code leaves imported in a new interpreter."""
    done = fresh(f"{code}\nimport sys\nprint(*sorted(sys.modules), file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stderr.split()}


def test_the_package_imports_nothing_until_a_name_is_asked_for():
    assert not imported_by("import inference_opt") & DEPENDENCIES
    assert "torch" in imported_by("import inference_opt; inference_opt.Engine")
    assert "numpy" in imported_by("import inference_opt; inference_opt.naive.generate")


def test_its_names_import_no_plots_no_widgets_and_no_command_line():
    needed = imported_by("import torch, numpy, jaxtyping, safetensors.torch, tokenizers")
    more = imported_by(f"from inference_opt import {NAMES}") - needed - {"inference_opt"}
    assert not {name for name in more - sys.stdlib_module_names if "cython" not in name}  # NumPy's own


def at_import(tree):
    """Names that importing a file imports: those inside functions are imported later."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_import(node)


def test_the_site_s_environment_can_import_every_module():
    """The site is built where only its own dependencies are installed, and its pages import what they describe."""
    package = Path(inference_opt.__file__).parent
    sources = [ast.parse(file.read_text(encoding="utf-8")) for file in package.rglob("*.py")]
    roots = {name.split(".")[0] for source in sources for name in at_import(source)}
    foreign = roots - sys.stdlib_module_names - {"inference_opt"}
    of = packages_distributions()
    assert "pytest" in foreign
    assert not {name for name in foreign if not {each.lower() for each in of[name]} & (DEPENDENCIES | FOR_THE_SITE)}


def test_a_name_that_is_none_is_said_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'inference_opt' has no attribute 'nothing'"):
        inference_opt.nothing  # noqa: B018
    assert {*inference_opt.__all__, "__version__"} <= set(dir(inference_opt))


WAITS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"}


def openmp(code, **chosen):
    """What a new interpreter's environment says to OpenMP after the code; `chosen` is what its user had set."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITS} | chosen
    show = f"import os; print({{name: os.environ[name] for name in {WAITS} if name in os.environ}})"
    done = fresh(f"{code}\n{show}", env=environment)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout), done.stderr


def test_waiting_threads_are_told_to_sleep_soon_before_torch_is_there_and_only_then():
    assert openmp("import inference_opt")[0] == inference_opt.OPENMP_WAIT
    assert openmp("import torch, inference_opt") == ({}, "")


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_how_the_user_wants_threads_to_wait_is_kept(chosen):
    assert openmp("import inference_opt", **chosen)[0] == chosen


def test_the_number_of_threads_is_the_user_s():
    count = "import inference_opt, torch; assert torch.get_num_threads() == 1"
    assert openmp(count, OMP_NUM_THREADS="1")[0] == {"OMP_NUM_THREADS": "1"} | inference_opt.OPENMP_WAIT


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings another OpenMP")
def test_openmp_reads_it_when_torch_is_imported():
    said = openmp("import inference_opt, torch", OMP_DISPLAY_ENV="verbose")[1]
    assert re.findall("GOMP_SPINCOUNT = '(.*)'", said) == list(inference_opt.OPENMP_WAIT.values())


def test_help_and_version_import_nothing_heavy():
    every_help = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from inference_opt.cli import app

def commands(group, path=()):
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))

asked = [[*path, "--help"] for path in commands(get_command(app))]
assert len(asked) > 12, asked
for arguments in [*asked, ["--version"], []]:
    result = CliRunner().invoke(app, arguments)
    assert "Usage" in result.output or arguments == ["--version"], arguments
"""
    assert imported_by(every_help) & DEPENDENCIES == {"typer", "rich"}


def test_the_version_is_the_package_s(run):
    assert run("--version")[:2] == (0, f"inference-opt {inference_opt.__version__}\n")


@pytest.mark.parametrize("module", ["torch", "numpy.linalg", "torch.functional", "inference_opt.engine.engine"])
def test_ctrl_c_during_the_imports_leaves_no_traceback(module, tmp_path):
    interrupted_at = """
import os, signal, sys
module, file = sys.argv[1:]

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from inference_opt import cli
sys.argv[1:] = ["step", "naive-decoding", "-o", file]
cli.main()
"""
    done = fresh(interrupted_at, module, str(tmp_path / "page.html"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["step", "--help"], ["step", "--list"]])
def test_what_cannot_be_printed_is_said_in_a_line(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "inference_opt.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
