"""Datasets: the same requests from every kind of file, and errors that name the row."""

import csv
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.experiment.datasets import BUILT_IN, PIECE, load_dataset

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)
ROWS = st.lists(st.tuples(TEXTS, st.none() | TEXTS), min_size=1, max_size=4)


@given(rows=ROWS)
def test_every_kind_of_table_gives_the_same_requests(rows, tmp_path_factory):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("tables")
    dicts = [{"prompt": prompt, "reference": reference} for prompt, reference in rows]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, dicts)), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(dicts), folder / "a.parquet")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "reference"])
        writer.writeheader()
        writer.writerows(dicts)
    expected = [(prompt, reference) for prompt, reference in rows]
    for suffix in ("jsonl", "parquet", "csv"):
        found = load_dataset(folder / f"a.{suffix}").rows
        assert [(row.messages[0]["content"], row.reference) for row in found] == expected, suffix
    assert len(load_dataset(folder).rows) == 3 * len(rows)


@given(text=TEXTS)
def test_text_is_cut_and_nothing_but_empty_lines_is_lost(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes((text * 200).encode() + b"\r\n\r\nthe end")
    pieces = [row.messages[0]["content"] for row in load_dataset(path).rows]
    assert all(0 < len(piece) <= PIECE for piece in pieces)
    assert pieces[-1].endswith("the end")
    read = path.read_text(encoding="utf-8-sig")
    assert "".join("".join(pieces).split()) == "".join(read.split())


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_workloads(name):
    rows = load_dataset(name).rows
    assert len(rows) >= 5
    assert all(row.messages[-1]["role"] == "user" for row in rows)
    texts = [row.messages[-1]["content"] for row in rows]
    assert len({json.dumps(row.messages) for row in rows}) == len(rows)
    if name == "few-shot":
        assert all(text[:4000] == texts[0][:4000] for text in texts)
        assert all(row.reference for row in rows)
    if name == "chat":
        turns = [len(row.messages) for row in rows]
        assert turns == sorted(turns)
        assert set(turns) == {1, 3, 5}


BAD = {
    "empty.jsonl": ("", "is empty"),
    "a.bin": ("x", "of an unknown kind"),
    "no_prompt.jsonl": ('{"prompt": "x"}\n{"text": "y"}', r"line 2 has no prompt"),
    "blank.csv": ("prompt\nfirst\n  \n", r"row 2 has no prompt"),
    "broken.jsonl": ('{"prompt": "x"}\n\n{"prompt', "line 3: not JSON"),
    "list.jsonl": ("[1]", "line 1: expected an object"),
    "latin.txt": (b"fine\nna\xefve", "line 2: not UTF-8"),
    "assistant.jsonl": ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: messages must be a list"),
    "messages.csv": ('messages\n"[{"\n', "row 1: messages are not JSON"),
    "reference.jsonl": ('{"prompt": "x", "reference": 3}', "line 1: reference must be text"),
    "no.parquet": ("x", "is not a Parquet file"),
    "nested.jsonl": ('{"prompt": ' + "[" * 100_000, "line 1: not JSON that can be read: nested too deeply"),
    "number.jsonl": ('{"prompt": NaN}', "line 1: prompt must be text, got nan"),
    "half.jsonl": ('{"prompt": "a\\ud800b"}', "line 1: half of a surrogate pair"),
    "turn.jsonl": ('{"messages": [{"role": "user", "content": " "}]}', "line 1 has no prompt"),
    "comma.csv": ("prompt\nfine\nI came, I saw\n", "row 2: 2 cells, but the header has 1"),
    "twice.csv": ("prompt,prompt\nx,y\n", "two columns have the same name"),
    "quote.csv": ('prompt\n"never ended\n', "is not a CSV file"),
    "columns.csv": ("question\nx\n", "expected a column"),
    "pointer.jsonl": ("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "git lfs pull"),
    "pointer.parquet": ("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "git lfs pull"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_row(name, tmp_path):
    content, says = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=says):
        load_dataset(path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "a.jsonl")
    for name in ("a.jsonl", "c.jsonl"):
        with pytest.raises(ValueError, match="FIFO"):
            load_dataset(tmp_path / name)
    for empty in ("", tmp_path / "b.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"does not exist|is empty"):
            load_dataset(empty)


def test_a_long_line_is_cut_once(tmp_path):
    (tmp_path / "a.txt").write_text("x" * (1000 * PIECE + 1) + " " * PIECE)
    rows = load_dataset(tmp_path / "a.txt").rows
    assert [len(row.messages[0]["content"]) for row in rows] == [PIECE] * 1001
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 500_000)
    assert len(load_dataset(tmp_path / "a.csv").rows[0].messages[0]["content"]) == 500_000
    assert csv.field_size_limit() == 131_072


def test_columns_that_are_not_read_do_no_harm(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    late = pa.array([10**15], type=pa.timestamp("s"))
    bytes_ = pa.array([b"\xff"]).view(pa.string())
    parquet.write_table(pa.table({"prompt": ["x"], "late": late, "bytes": bytes_}), tmp_path / "a.parquet")
    assert load_dataset(tmp_path / "a.parquet").rows[0].messages[0]["content"] == "x"
    (tmp_path / "._a.txt").write_bytes(b"\xff")
    assert len(load_dataset(tmp_path).rows) == 1


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_dataset(tmp_path)
