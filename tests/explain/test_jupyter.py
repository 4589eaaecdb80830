"""JupyterLab itself, driven by a browser: a notebook is run, stepped with the keyboard, and a control is changed."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from tests.explain.browser import launched


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab of its own in an empty folder; yields its address."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed: pip install '.[lab]'")
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from inference_opt.explain.scenarios.explore import explore\nexplore('diverging-insert')"
            )
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "steps.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(8)
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | folders, cwd=tmp_path)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=1).close()
                break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/lab/tree/steps.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_a_notebook_is_run_stepped_and_its_control_changed(lab):
    expect = pytest.importorskip("playwright.sync_api").expect
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.goto(lab)
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=120_000)  # a cell run before the kernel is there is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        player = page.locator(".player")
        player.wait_for(timeout=120_000)
        where, pictures = player.locator(".where"), player.locator(".scenes")
        assert where.inner_text() == "1 / 17"
        player.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert where.inner_text() == "4 / 17"
        before = pictures.inner_html()
        page.keyboard.press("ArrowLeft")
        assert pictures.inner_html() != before
        page.keyboard.press("j")  # a command of the notebook elsewhere
        assert pictures.inner_html() == before
        size = page.get_by_label("page size")
        size.fill("4")
        size.press("Enter")
        expect(pictures).not_to_have_js_property("innerHTML", before, timeout=60_000)  # other pages, another picture
        assert where.inner_text() == "4 / 17", "the place is kept"
        size.fill("-3")
        size.press("Enter")
        page.get_by_role("alert").get_by_text("page size: expected a whole number from 1").wait_for(timeout=60_000)
        assert size.input_value() == "-3", "what was typed is not changed"
