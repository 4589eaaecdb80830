"""Prompts to study: a file or folder of one's own, or one of the workloads that come with the package.

JSONL, CSV and Parquet files hold one request in each row: `prompt` (text) or `messages` (a chat that ends with the
user's turn; in CSV as JSON), and optionally `reference`, an answer on which perplexity is measured too. Text files are
cut at empty lines into requests of up to `PIECE` characters.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from inference_opt.files import home
from inference_opt.loading.prompts import load_prompts
from inference_opt.loading.tokenizer import Tokenizer

PIECE = 2_000  # characters
FIELDS = ("prompt", "messages", "reference")
TEXT = (".txt", ".md", ".rst")
TABLES = (".jsonl", ".csv", ".parquet")
# The built-in workloads, and the new tokens that such an answer takes.
BUILT_IN = {"few-shot": 12, "chat": 48, "editing": 64, "summarising": 32}
NEW_TOKENS = 32  # for other workloads


@dataclass(frozen=True)
class Row:
    """One request: the text or the chat to continue, and an answer if one is known."""

    messages: list[dict[str, str]]
    raw: bool  # a text to continue as it is; False: a user's turn
    reference: str | None = None

    def ids(self, tokenizer: Tokenizer | None) -> list[int]:
        """Tokens, in the model's chat format if it has one. Without a tokenizer: bytes."""
        if tokenizer is not None and tokenizer.chat_template and not self.raw:
            return tokenizer.chat(self.messages)
        text = "\n\n".join(message["content"] for message in self.messages)
        return list(text.encode()) if tokenizer is None else tokenizer.encode(text)


@dataclass(frozen=True)
class Dataset:
    """Requests under a name, and the default number of tokens by which each is continued."""

    name: str
    rows: list[Row]
    new_tokens: int = NEW_TOKENS


def load_dataset(source: str | Path) -> Dataset:
    """A built-in workload by name, a file, or a folder of files, in the order of their names.

    ValueError, with file and row, for files that are missing, empty, of another kind or not UTF-8, and for rows without
    a prompt.
    """
    if str(source) in BUILT_IN:
        return Dataset(str(source), _built_in(str(source)), BUILT_IN[str(source)])
    path = home(source)
    if not str(source) or not path.exists():
        raise ValueError(f"dataset {source} does not exist: expected a file, a folder, or one of {', '.join(BUILT_IN)}")
    if path.is_dir():  # but not "._a.txt", in which macOS stores attributes of a.txt
        names = (p for p in path.rglob("*") if p.suffix.lower() in TEXT + TABLES and not p.name.startswith("._"))
        files = sorted(p for p in names if p.is_file())
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"dataset {path} is a FIFO or a device: expected a file or a folder")
    rows = [row for file in files for row in _read(file)]
    if not rows:
        raise ValueError(f"dataset {path} is empty: expected requests in {', '.join(TEXT + TABLES)} files")
    return Dataset(path.stem, rows)


def _built_in(name: str) -> list[Row]:
    """The built-in workloads, written for this project (MIT) on texts in the public domain.

    `data/speculative.jsonl` names the source of each text.
    """
    known = {prompt.name: prompt.text for prompt in load_prompts("speculative")}
    texts = [text.split("\n\n", 1)[1] for title, text in known.items() if title.startswith("summarising")]
    if name == "editing":
        return [_row({"prompt": text}, title) for title, text in known.items() if title.startswith("editing")]
    if name == "summarising":  # three passages at a time
        ask = "Summarize each of the following passages in one sentence.\n\n"
        threes = [[*texts[i:], *texts[:i]][:3] for i in range(len(texts))]
        return [_row({"prompt": ask + "\n\n---\n\n".join(three)}, name) for three in threes]
    data = json.loads((resources.files("inference_opt") / "data" / "study.json").read_text(encoding="utf-8"))
    if name == "chat":
        return [_row({"messages": turns}, name) for turns in data["chat"]]
    solved = "\n".join(f"Question: {q}\nAnswer: {a}\n" for q, a in data["solved"])
    stem = "Answer the question about the passages in a few words.\n\n" + "\n\n".join(texts[:3]) + "\n\n" + solved
    return [
        _row({"prompt": f"{stem}\nQuestion: {q}\nAnswer:", "reference": f" {a}"}, name) for q, a in data["few-shot"]
    ]


def _read(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs.github.com/spec/"):
            raise ValueError(f"{path} is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`")
    if suffix in TABLES:
        for place, row in _table(path, suffix):
            yield _row(row, f"{path}, {place}")
    elif suffix in TEXT:
        for piece in _pieces(_text(path)):
            yield Row([{"role": "user", "content": piece}], raw=True)
    else:
        raise ValueError(f"{path} is of an unknown kind: expected {', '.join(TEXT + TABLES)}")


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")  # with its own line ends, which may belong to a prompt
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _table(path: Path, suffix: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table, each with its place in the file."""
    if suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'inference-opt[study]'") from error
        try:
            with path.open("rb") as file:
                table = parquet.ParquetFile(file)
                columns = _columns(path, table.schema_arrow.names)
                rows = table.read(columns).to_pylist()
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a Parquet file, or holds no text ({error})") from None
        yield from _numbered(rows)
    elif suffix == ".csv":
        yield from _numbered(_csv(path))
    else:
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                yield f"line {number}", _json(line, f"{path}, line {number}: not JSON")


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} ({error})") from None
    except RecursionError:
        raise ValueError(f"{what} that can be read: nested too deeply") from None


def _columns(path: Path, names: list[str]) -> list[str]:
    """Those columns of a table that are read. ValueError if there is no prompt, or one name occurs twice."""
    found = [name for name in names if name in FIELDS]
    if len(set(found)) < len(found):
        raise ValueError(f"{path}: two columns have the same name, of {', '.join(found)}")
    if not {"prompt", "messages"} & set(found):
        raise ValueError(f'{path} has no prompt: expected a column "prompt" or "messages", got {str(names)[:80]}')
    return found


def _csv(path: Path) -> list[dict[str, str]]:
    text = _text(path)
    limit = csv.field_size_limit(len(text) + 1)  # a setting of the whole process; a field may be as long as the file
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error})") from None
    finally:
        csv.field_size_limit(limit)
    if not lines:
        return []
    head = lines[0]
    _columns(path, head)
    for number, line in enumerate(lines[1:], 1):
        if len(line) > len(head):
            raise ValueError(
                f"{path}, row {number}: {len(line)} cells, but the header has {len(head)} (quote text with a comma)"
            )
    return [dict(zip(head, line)) for line in lines[1:]]


def _numbered(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _row(row: Any, where: str) -> Row:
    """A request from a row. ValueError names the row and the field."""
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with "prompt" or "messages", got {str(row)[:60]!r}')
    reference, prompt, messages = (row.get(name) for name in ("reference", "prompt", "messages"))
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f"{where}: reference must be text, got {str(reference)[:60]}")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"{where}: prompt must be text, got {str(prompt)[:60]}")
    if prompt and prompt.strip():
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(messages, str) and messages:
        messages = _json(messages, f"{where}: messages are not JSON")
    if not messages:
        raise ValueError(f'{where} has no prompt: expected text under "prompt", or a list under "messages"')
    fine = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not fine or messages[-1]["role"] != "user":
        expected = 'a list of {"role": …, "content": …} that ends with the user\'s turn'
        raise ValueError(f"{where}: messages must be {expected}, got {str(messages)[:80]}")
    if not messages[-1]["content"].strip():
        raise ValueError(f"{where} has no prompt: the user's turn is empty")
    for text in (reference or "", *(message["content"] for message in messages)):
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{where}: half of a surrogate pair is not a character: {text[:60]!a}")
    return Row(messages, raw=False, reference=reference or None)


def _pieces(text: str) -> Iterator[str]:
    """Requests from a text: paragraphs, joined while they fit into a piece. A longer paragraph is cut."""
    piece = ""
    for paragraph in filter(str.strip, re.split(r"(?:\r?\n){2,}", text)):
        if piece and len(piece) + len(paragraph) + 2 > PIECE:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
        *cut, piece = (piece[i : i + PIECE] for i in range(0, len(piece), PIECE))
        yield from filter(str.strip, cut)
    if piece.strip():
        yield piece
