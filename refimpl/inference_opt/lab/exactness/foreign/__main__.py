"""`python -m inference_opt.lab.exactness.foreign`: judge the foreign samplers that are there."""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

from inference_opt.lab.exactness.foreign.findings import ALL, SOURCES, judge_all
from inference_opt.lab.exactness.foreign.sources import Missing, folder


def main() -> None:
    """Parse, fetch if asked, judge, write."""
    parser = argparse.ArgumentParser(description=f"Judge samplers of other projects, from {folder()}.")
    parser.add_argument(
        "--download", action="store_true", help="first fetch the wheels with pip: 1.1 GB, vLLM's above all"
    )
    parser.add_argument(
        "--only", nargs="*", choices=list(ALL), default=list(ALL), help="which projects; rows of others in FILE stay"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was found")
    asked = parser.parse_args()
    if asked.download:
        folder().mkdir(parents=True, exist_ok=True)
        for source in SOURCES:
            try:
                source.download()
            except Missing as reason:
                print(reason)
    found = judge_all(tuple(asked.only))
    if asked.json:
        before = json.loads(asked.json.read_text("utf-8")) if asked.json.exists() else {"findings": [], "skipped": {}}
        command = "python -m inference_opt.lab.exactness.foreign --json docs/results/foreign.json"
        rows = [row for row in before["findings"] if row["project"] not in asked.only] + found["findings"]
        rows.sort(key=lambda row: list(ALL).index(row["project"]))
        skipped = {project: why for project, why in before["skipped"].items() if project not in asked.only}
        written = {
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            "findings": rows,
            "skipped": {**skipped, **found["skipped"]},
        }
        asked.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
