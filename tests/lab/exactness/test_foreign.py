"""Foreign samplers: our randomness in torch's place, the loading of files, and what was found."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.lab.exactness.enumerate import every_path
from inference_opt.lab.exactness.exact import joint_law, step_law, total_variation
from inference_opt.lab.exactness.foreign import findings, sources, torch_samplers, transformers_samplers
from inference_opt.lab.exactness.foreign.scripted import scripted
from inference_opt.lab.exactness.foreign.sources import Checkout, Missing, Wheel, load
from inference_opt.lab.exactness.foreign.toys import tensor, whole
from inference_opt.lab.exactness.kit import judge
from inference_opt.lab.exactness.zoo import DRAFT, TARGET
from inference_opt.speculative import rules

ROUNDING = 1e-6
RESULTS = json.loads((Path(__file__).parents[3] / "docs/results/foreign.json").read_text("utf-8"))


def in_torch(target, draft, tokens, rng, residual=True):
    """Token-wise speculation as torch code writes it, for the tests alone."""
    tokens = torch.tensor([*tokens])
    p, q = (torch.stack([tensor(row) for row in rows]) for rows in (target, draft))
    with scripted(rng):
        at = torch.arange(len(tokens))
        passed = torch.rand_like(q[at, tokens]) * q[at, tokens] < p[at, tokens]
        n = int(passed.long().cumprod(0).sum())
        rest = p[n] if n == len(tokens) or not residual else (p[n] - q[n]).clamp(min=0)
        noise = torch.empty_like(rest).exponential_(1)
        last = torch.argmax(rest / noise, dim=-1, keepdim=True)
    return [*tokens[:n].tolist(), int(last)]


def test_torch_code_runs_on_every_path_of_its_randomness():
    law, ours = (step_law(TARGET, DRAFT, 2, rule) for rule in (in_torch, rules.token_wise))
    assert sum(law.values()) == 1
    assert total_variation(law, ours) < ROUNDING


def test_a_wrong_rule_in_torch_is_seen():
    wrong = step_law(TARGET, DRAFT, 2, lambda *given: in_torch(*given, residual=False))
    assert total_variation(wrong, step_law(TARGET, DRAFT, 2, rules.token_wise)) > 0.01


@given(st.floats(0, 1, width=32), st.sampled_from(["<", "<=", ">", ">="]))
def test_a_comparison_holds_as_often_as_its_threshold_says(threshold, sign):
    compare = {"<": torch.Tensor.__lt__, "<=": torch.Tensor.__le__, ">": torch.Tensor.__gt__, ">=": torch.Tensor.__ge__}

    def program(rng):
        with scripted(rng):
            number = torch.rand(1)
        at = torch.tensor([threshold])
        return bool({"<": number < at, "<=": number <= at, ">": number > at, ">=": number >= at}[sign])

    one = compare[sign](torch.tensor([0.0]), torch.tensor([1.0])).item()  # does the sign ask for small numbers?
    truth = sum((p for holds, p in every_path(program) if holds), Fraction(0))
    # all four comparisons are asked above, so the number is known by then: they must agree with one another
    assert truth == (Fraction(threshold) if one else 1 - Fraction(threshold))


def test_transformers_generates_the_targets_text():
    pytest.importorskip("transformers")
    law = findings.text_law(transformers_samplers.assisted(TARGET, DRAFT, 3))
    assert total_variation(law, joint_law(TARGET, 3)) < ROUNDING


def test_transformers_finds_drafts_in_the_prompt_and_generates_the_targets_text():
    pytest.importorskip("transformers")
    settings = {"prompt_lookup_num_tokens": 2, "prompt": [3, 0, 1, 2, 0]}
    law = findings.text_law(transformers_samplers.assisted(TARGET, None, 2, **settings))
    assert total_variation(law, joint_law(lambda text: TARGET((0, *text)), 2)) < ROUNDING


def test_transformers_drafters_of_the_installed_release():
    pytest.importorskip("transformers")
    try:
        filtered, likeliest = findings.drafters(None)
    except AttributeError as reason:  # releases move what the stand-in fills in
        pytest.skip(f"the installed release has other drafters: {reason}")
    for finding in (filtered, likeliest):
        assert finding.difference < ROUNDING


@pytest.mark.parametrize("project", ["gpt-fast", "DeepSpec", "dflash", "EAGLE", "MLX"])
def test_a_foreign_sampler_is_what_the_enumeration_says(project):
    try:
        found = findings.ALL[project]()
    except Missing as reason:
        pytest.skip(str(reason))
    for finding in found:
        assert finding.difference < ROUNDING, finding.mode


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of sources."""
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path))
    return tmp_path


def test_what_is_not_there_says_what_to_do(cache):
    for source, words in ((torch_samplers.DFLASH, "run with --download"), (torch_samplers.DEEPSPEC, "no clone of")):
        with pytest.raises(Missing, match=words):
            source.unpacked()


def test_another_file_of_the_same_name_is_refused(cache):
    (cache / "a.whl").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the file that was judged"):
        Wheel("a", "1", "a.whl", "0" * 64, 1).unpacked()


def test_a_module_is_loaded_without_what_it_imports(cache):
    into = cache / "unpacked" / "a+b-1111111111"
    (into / "engine").mkdir(parents=True)
    (into / "engine/core.py").write_text("from engine.rest import Big, helper\n\n@helper\ndef f(x): return x + 1\n")
    before = set(sys.modules)
    [module] = load(Checkout("a/b", "1" * 40, {"engine/core.py": ""}), "engine.core")
    assert module.f(1) == 2
    assert not {name for name in sys.modules if name.startswith("engine")} - before


def test_nothing_else_imports_foreign_code():
    package = Path(sources.__file__).parents[3]
    inside = Path(sources.__file__).parent
    for path in package.rglob("*.py"):
        if inside not in path.parents:
            assert "exactness.foreign" not in path.read_text("utf-8"), path


def test_the_results_hold_what_was_promised():
    rows = RESULTS["findings"]
    assert len({row["sampler"] for row in rows}) >= 6
    assert len({thread for row in rows for thread in row.get("thread", "").split(", ") if thread}) >= 4
    for row in rows:
        assert row["version"]
        assert row["sha256"]
        if row["method"] != "samples":
            assert row["difference"] < findings.ROUNDING, row["mode"]
            assert abs(row["bias"] - row["enumerated_bias"]) < 2 * findings.ROUNDING
            assert (row["verdict"] == "exact") == (row["bias"] < findings.ROUNDING)


def test_a_step_that_drafts_by_itself_gets_the_models():
    assert whole(TARGET, DRAFT, (0, 1), 2, None) == (TARGET, DRAFT, ((0, 1), 2))


def test_the_kit_judges_the_rule_of_transformers():
    pytest.importorskip("transformers")
    verify = transformers_samplers.verification()

    def sampler(draft, target, tokens, uniforms):
        rows = [torch.stack([tensor(row) for row in given]).log()[None] for given in (draft, target)]
        with scripted(uniforms):
            valid, _ = verify(torch.tensor([[*tokens]]), rows[0], len(tokens), rows[1])
        return valid[0].tolist()

    verdict = judge(sampler, gamma=1, tolerance=1e-5, search=0)
    assert verdict.bias < 1e-5
    assert verdict.impossible  # it compares u <= p / q: a number that is exactly 0 passes what the target never says
    assert "u ≤ p / q, and u = 0" in verdict.like
