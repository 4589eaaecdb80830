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
    parser.add_argument("--only", nargs="*", choices=list(ALL), default=list(ALL), help="which projects")
    parser.add_argument("--json", type=Path, help="where to write what was found")
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
        command = f"python -m inference_opt.lab.exactness.foreign --json {asked.json}"
        meta = {"command": command, "date": datetime.now(UTC).date().isoformat()}
        asked.json.write_text(json.dumps({**meta, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
