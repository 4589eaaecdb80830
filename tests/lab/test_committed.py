"""The committed figures are found from any folder, or it is said what to do."""

import json

import pytest

from inference_opt.lab import committed as module
from inference_opt.lab.committed import committed


def test_figures_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "command" in json.loads(committed("bench_radix").read_text(encoding="utf-8"))


def test_without_the_repository_it_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nothing\.json is not there \(found: .*bench_radix.*clone it"):
        committed("nothing")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=r"none is there.*install it from there"):
        committed("bench_radix")
