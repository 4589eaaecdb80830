"""The workflows parse, and run what there is: targets of the Makefile, Pythons that the package allows."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")}
STEPS = [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]
COMMANDS = sorted({command for step in STEPS if "run" in step for command in re.split(r"\n| && ", step["run"].strip())})


def test_there_is_one_for_the_tests_and_one_for_the_site():
    assert set(WORKFLOWS) == {"tests", "pages"}
    assert {"make tour", "make test", "make docs"} <= set(COMMANDS)
    (site,) = (step["with"]["path"] for step in STEPS if "upload-pages-artifact" in step.get("uses", ""))
    assert f" -b html -d build/doctrees . {site}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("sudo apt-get ")])
def test_a_command_is_a_target_that_exists(command):
    assert command.startswith("make ")
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_actions_are_official_and_pinned():
    for uses in (step["uses"] for step in STEPS if "uses" in step):
        assert re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", uses), uses


def test_a_job_may_write_only_what_it_publishes():
    for name, workflow in WORKFLOWS.items():
        assert "write" not in workflow["permissions"].values()
        assert workflow["concurrency"]["group"]
        for job in workflow["jobs"].values():
            writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
            assert writes <= ({"pages", "id-token"} if name == "pages" else set())


def test_the_oldest_python_and_a_newer_one_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest, newer = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={oldest}"
    assert tuple(map(int, newer.split("."))) > tuple(map(int, oldest.split(".")))
