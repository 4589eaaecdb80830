"""Files are written whole or not at all, through links, and never over what is no file."""

import io
import json
import os
import stat
import threading

import pytest

from inference_opt import generate
from inference_opt.files import folder, printable, whole, writable, write_json, write_whole


def names(place):
    return sorted(path.name for path in place.iterdir())


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "real")
    (tmp_path / "dangling").symlink_to("far/new")
    write_whole(tmp_path / "link", "new")
    write_whole(tmp_path / "dangling", "made")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "far" / "real").read_text() == "new"
    assert (tmp_path / "far" / "new").read_text() == "made"


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_fifo_is_written_in_place(tmp_path, through_a_link):
    fifo = path = tmp_path / "fifo"
    os.mkfifo(fifo)
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to(fifo)
    got = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    write_json(writable(path), {"a": 1})
    reader.join(30)
    assert json.loads(got[0]) == {"a": 1}
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert path.is_symlink() == through_a_link
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_a_descriptor_that_names_no_file_is_written_in_place(tmp_path):
    # What a shell's >(…) is: a pipe under /dev/fd.
    if not os.path.exists("/dev/fd"):  # noqa: PTH110
        pytest.skip("there is no /dev/fd here")
    reading, writing = os.pipe()
    write_whole(f"/dev/fd/{writing}", "through")
    os.close(writing)
    with os.fdopen(reading) as file:
        assert file.read() == "through"


def test_what_standard_output_goes_to_is_gone_on_with(tmp_path, capfd):
    print("before", flush=True)
    write_whole("/dev/stdout", "figures\n")
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nfigures\nafter\n"


def test_modes_are_kept_and_new_files_obey_the_mask(tmp_path):
    (tmp_path / "private").write_text("")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "shared").write_text("")
    (tmp_path / "shared").chmod(0o666)
    earlier = os.umask(0o027)
    try:
        for name in ("private", "shared", "new"):
            write_whole(tmp_path / name, "x")
    finally:
        os.umask(earlier)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert modes == {"private": 0o600, "shared": 0o666, "new": 0o640}


def test_another_name_of_the_file_keeps_the_whole_old_content(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    write_whole(tmp_path / "a", "new")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError("x")])
@pytest.mark.parametrize("earlier", [None, "earlier"])
def test_what_ends_early_leaves_what_was_there_and_nothing_else(tmp_path, interruption, earlier):
    path = tmp_path / "a"
    if earlier:
        path.write_text(earlier)
    before = names(tmp_path)

    def begin():
        with whole(path) as file:
            file.write(b"half")
            raise interruption

    with pytest.raises(type(interruption)):
        begin()
    assert names(tmp_path) == before
    assert not earlier or path.read_text() == earlier


def test_a_disk_that_is_full_when_all_is_handed_over(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a", "x")
    assert names(tmp_path) == []


def test_a_name_of_the_greatest_length_and_half_a_surrogate_pair(tmp_path):
    path = tmp_path / ("n" * 255)
    write_json(path, {"command": "\udce9"})
    assert json.loads(path.read_text()) == {"command": "\udce9"}


def test_places_that_cannot_be_written_are_refused_and_nothing_changes(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    bad = ["missing/a", "file/a", ".", "loop", "n" * 256, "~no-such-user-here/a", "/proc/a"]
    for name in bad:
        with pytest.raises(ValueError, match=r"folder|written|home|Could not"):
            writable(tmp_path / name if name[0] not in "~/" else name)
    for name in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"is no folder|cannot be written"):
            folder(tmp_path / name)
    assert folder(tmp_path / "to" / "be" / "made") == tmp_path / "to" / "be" / "made"
    assert names(tmp_path) == ["file", "loop"]


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_whole("~/a", "x")
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", None])
def test_what_an_encoding_lacks_is_replaced(encoding, monkeypatch):
    text = "µ → 🙂 \ud800 here"
    shown = printable(text, encoding)
    assert shown.endswith("here")
    shown.encode(encoding or "utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding or "utf-8"))
    generate._print(text)
    assert raw.getvalue().endswith(b" here")
