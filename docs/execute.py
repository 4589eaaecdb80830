"""Executes the notebooks that have changed, or the package has, since they last were: what `make docs` begins with.

They are kept in build/notebooks, where MyST-NB looks for them. `--write` also puts what they print and draw into the
notebooks themselves: the outputs to commit. Without names, all of notebooks/.

Where no widget runs (on GitHub, in the site), a player is shown as a picture: the file of chapters/figures that its
cell's metadata name, put into the output, so that a notebook that is downloaded alone has it too.

A notebook's exercises are run twice: as they are committed, not solved, and by themselves with the solutions put in.
"""

import base64
import contextlib
import copy
import logging
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors import load_executor
from nbclient import NotebookClient
from nbformat import NotebookNode

from inference_opt.explain.exercises import EXERCISES

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # that a cell may take


def execute(paths: list[Path]) -> None:
    """Execute the notebooks that are not in the cache as they are. SystemExit where one fails, with its traceback."""
    changed = max(path.stat().st_mtime for path in (ROOT / "refimpl").rglob("*.py"))
    for path in paths:
        cache.add_nb_to_project(str(path))
        with contextlib.suppress(KeyError):
            record = cache.match_cache_file(path)
            if (ROOT / "build" / "notebooks" / "executed" / record.hashkey / "base.ipynb").stat().st_mtime < changed:
                cache.remove_cache(record.pk)
    run = load_executor("local-parallel", cache, logging.getLogger("docs"))
    result = run.run_and_cache(filter_uris=[str(path) for path in paths], timeout=SECONDS)
    for name in result.succeeded:
        record = cache.match_cache_file(name)
        done = cache.get_cache_bundle(record.pk).nb
        for cell in done.cells:
            if cell.cell_type == "code":
                cell.outputs = pictured(joined(cell.outputs), cell.metadata.get("picture"))
        cache.cache_notebook_bundle(CacheBundleIn(done, record.uri, data=record.data), overwrite=True)
        print(f"{Path(name).name} executed in {record.data['execution_seconds']:.0f} s")
    if failed := result.excepted + result.errored:
        sys.exit("\n".join(f"{name} failed:\n{cache.get_project_record(name).traceback or ''}" for name in failed))


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs as they are kept: what was printed in one piece, and no views of widgets that are gone."""
    result: list[NotebookNode] = []
    for out in outputs:
        if out.output_type == "stream" and result and result[-1].get("name") == out.name:
            result[-1].text += out.text
            continue
        result.append(copy.deepcopy(out))
        result[-1].get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return result


def pictured(outputs: list[NotebookNode], picture: str | None) -> list[NotebookNode]:
    """A player's outputs with the picture that stands for it."""
    if picture:
        image = (ROOT / "chapters" / "figures" / picture).read_bytes()
        outputs[-1].data["image/png"] = base64.b64encode(image).decode()
    return outputs


def solve(path: Path) -> None:
    """Run a notebook's exercises with the solutions put in. SystemExit where one is not accepted."""
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if id := cell.metadata.get("exercise"):
            cell.source = EXERCISES[id].code(solved=True)
    with tempfile.TemporaryDirectory() as folder:  # where the learner's progress goes
        NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.source.startswith("check(") and "accepted" not in str(cell.outputs):
            sys.exit(f"{path.name}: {cell.source} with the solution put in:\n{cell.outputs}")


def write(path: Path) -> None:
    """Put the outputs of a notebook's last execution, and the seconds that it took, into the file."""
    notebook = nbformat.read(path, 4)
    record = cache.match_cache_notebook(notebook)
    ran = iter(cell for cell in cache.get_cache_bundle(record.pk).nb.cells if cell.cell_type == "code")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            run = next(ran)
            cell.execution_count = run.execution_count
            cell.outputs = pictured(run.outputs, cell.metadata.get("picture"))  # drawn anew since, perhaps
    took = f"Running all cells took {record.data['execution_seconds']:.0f} s on one core"
    title = notebook.cells[0]
    title.source, there = re.subn(r"Running all cells took \d+ s on one core", took, title.source)
    if not there:
        sys.exit(f"{path}: its first cell does not say 'Running all cells took 0 s on one core'")
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # as many notebooks at a time as cores
    cache = get_cache(ROOT / "build" / "notebooks")
    names = [Path(name).resolve() for name in sys.argv[1:] if name != "--write"]
    notebooks = names or sorted((ROOT / "notebooks").glob("*.ipynb"))
    execute(notebooks)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(solve, notebooks))
    if "--write" in sys.argv[1:]:
        for notebook in notebooks:
            write(notebook)
