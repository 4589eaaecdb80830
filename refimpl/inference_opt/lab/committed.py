"""The figures that the book quotes: docs/results in the repository, wherever a notebook is run from."""

from pathlib import Path

import inference_opt

RESULTS = Path(inference_opt.__file__).parents[2] / "docs" / "results"


def committed(name: str) -> Path:
    """The JSON file of that name. ValueError, with what to do, if the package was installed without the repository."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RESULTS.glob("*.json"))) or "none is there"
        raise ValueError(
            f"{path} is not there (found: {known}). The committed figures stand in the repository, not in the package: "
            "clone it and install it from there, with `pip install -e .`"
        )
    return path
