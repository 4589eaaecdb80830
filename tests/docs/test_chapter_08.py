"""The numbers of chapter 08 and of docs/gpu.md are computed again: the worked example, the roofline, comparisons."""

import importlib.util
import json
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from inference_opt.explain.exercises import EXERCISES
from inference_opt.kernels.reference import merge_states

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs"))
import gpu_figures
from gpu_figures import BLOCKS, BUFFERS, KEYS, PIPELINES, SPLIT

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "chapters/08_kernels.md").read_text(encoding="utf-8")
SAID = " ".join(CHAPTER.split())
GPU = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
GPU_SAID = " ".join(GPU.split())
RUN = json.loads((ROOT / "docs/results/bench_kernels.json").read_text(encoding="utf-8"))
CASES = {each["case"]["name"]: each for each in RUN["results"]}
PEAK, BANDWIDTH = RUN["ceilings"]["product_flops"], RUN["ceilings"]["read_bandwidth"]


def row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def state(keys):
    """(sum of exponentials, output)."""
    total = sum(weight for weight, _ in keys)
    return total, Fraction(sum(weight * value for weight, value in keys), total)


def test_the_two_states_are_merged_as_the_text_says():
    for number, (weight, value) in enumerate(KEYS):
        assert row(number, weight, value, weight * value) in CHAPTER
    (a, out_a), (b, out_b), (total, out) = state(KEYS[:SPLIT]), state(KEYS[SPLIT:]), state(KEYS)
    assert f"| sum | {total} | | {total * out} |" in CHAPTER
    assert f"{total * out} / {total} = {out}." in SAID
    assert f"The sum of its exponentials is {a}, and its output is {a * out_a} / {a} = {out_a}." in SAID
    assert f"with the sum {b} and the output {b * out_b} / {b} = {out_b}." in SAID
    assert rf"\frac{{{a}}}{{{total}}} \cdot {out_a} + \frac{{{b}}}{{{total}}} \cdot {out_b} = {out}." in CHAPTER
    assert f"The plain mean of the two outputs, {(out_a + out_b) / 2}, would be wrong" in SAID
    task = " ".join(EXERCISES["08.merge"].task.split())
    for text in (SAID, task):
        assert all(f"({output}, ln {weight})" in text for output, weight in ((out_a, a), (out_b, b), (out, total)))
    outs = torch.tensor([out_a, out_b], dtype=torch.float64)[:, None, None, None]
    lses = torch.tensor([a, b], dtype=torch.float64).log()[:, None, None]
    merged, lse = merge_states(outs, lses)
    assert math.isclose(merged.item(), out)
    assert math.isclose(lse.exp().item(), total)


def test_the_running_softmax_takes_the_steps_of_the_table():
    (m, value), *others = KEYS
    l, acc = Fraction(1), Fraction(value)  # noqa: E741 (the papers' name)
    assert row(0, f"ln {m}", "", l, acc, acc / l).replace("|  |", "| |") in CHAPTER
    for number, (weight, value) in enumerate(others, 1):
        factor = Fraction(m, max(m, weight))
        new_l, new_acc = l * factor + Fraction(weight, max(m, weight)), acc * factor + value
        assert weight > m, "each key has the largest score so far"
        cells = f"{factor} · {l} + 1 = {new_l}", f"{factor} · {acc} + {value} = {new_acc}"
        m, l, acc = weight, new_l, new_acc  # noqa: E741
        assert row(number, f"ln {m}", factor, *cells, acc / l) in CHAPTER
    assert (m * l, acc / l) == state(KEYS)


def test_the_pipelines_take_as_long_as_the_caption_says():
    ends = [max(gpu_figures.timeline(BLOCKS, BUFFERS, parts).values()) + 1 for parts in PIPELINES.values()]
    assert f"The three take {ends[0]}, {ends[1]} and {ends[2]} units." in SAID


@pytest.mark.parametrize("parts", PIPELINES.values())
def test_a_pipeline_keeps_the_order_and_its_buffers(parts):
    start = gpu_figures.timeline(6, 2, parts)
    for block in range(6):
        assert start["load", block] < start["score", block] < start["sum", block]
        if block >= 2:
            assert start["load", block] > start["sum", block - 2], "its buffer is still in use"
    for part in parts:
        mine = [at for (stage, _), at in start.items() if stage in part]
        assert len(mine) == len(set(mine)), "warps do one thing at a time"


def test_the_ridge_is_that_of_the_data_sheet_and_of_the_run():
    sheet = gpu_figures.PEAK / gpu_figures.BANDWIDTH
    ridge, peak, read = f"{PEAK / BANDWIDTH:.0f}", f"{PEAK / 1e12:.0f}", f"{BANDWIDTH / 1e12:.2f}"
    assert f"reads 3.35 · 10¹² bytes, by its data sheet: {sheet:.0f} operations for each byte" in SAID
    assert f"ours did {peak} · 10¹² and read {read} · 10¹²: about {ridge} operations a byte" in SAID
    assert f"989 / 3.35 = {sheet:.0f} operations a byte" in GPU_SAID
    assert (
        f"reached {peak} · 10¹² operations a second, and a large sum read {read} TB/s: a ridge of {ridge}." in GPU_SAID
    )
    assert f"a sum over 4 GiB read {BANDWIDTH / 1e9:,.0f} GB/s" in SAID
    assert f"ran at {peak} TFLOP/s" in SAID
    latent = CASES["mla128-128x4096"]
    assert f"{latent['operations'] / latent['bytes']:.0f} operations for each byte. That is nearly the ridge" in SAID
    micro, twice = 1e6 * latent["times"]["inference-opt"]["seconds"], gpu_figures.measured()["l2"]
    assert f"2 · {latent['bytes'] / 1e6:.0f} MB in {micro:.0f} µs, or {twice / 1e12:.1f} TB/s" in SAID


def test_the_comparisons_are_those_of_the_committed_run():
    def faster(name, peer="FlashInfer", than="inference-opt"):
        times = CASES[name]["times"]
        return times[peer]["seconds"] / times[than]["seconds"]

    verify = sorted(faster(name) for name in CASES if name.startswith("verify"))
    assert f"{verify[0]:.1f} to {verify[-1]:.1f} times faster." in SAID
    (mixed,) = {f"{faster(name):.1f}" for name in CASES if name.startswith("mixed")}
    assert f"*A chunk of a prompt together with 63 decodes*: {mixed} times faster" in SAID
    prompts = [name for name in CASES if name.startswith("prefill") and "mla" not in name]
    wide = sorted(100 * (faster(name) - 1) for name in prompts if "narrow" not in name)
    assert f"with heads of width 128, {wide[0]:.0f} to {wide[-1]:.0f}% faster" in SAID
    (narrow,) = {f"{100 * (1 - faster(name)):.0f}" for name in prompts if "narrow" in name}
    assert f"With heads of 64, {narrow}% slower" in SAID
    one, prompt = 1 - 1 / faster("mla16-1x32768"), 1 - faster("prefill-mla16-2x4096")
    assert f"equal in a batch, {one:.0%} less time for the single long sequence, {prompt:.0%} slower on prompts" in SAID
    latent = faster("mla128-128x4096"), faster("mla128-128x4096-two")
    assert f"{latent[0]:.0%} of FlashInfer's speed with one query, {latent[1]:.0%} with two" in SAID
    alone, peer = faster("stem-64x16640", "inference-opt, no cascade"), faster("stem-64x16640")
    assert (
        f"{alone:.1f} times faster than if each request reads it, and {peer:.1f} times faster than FlashInfer" in SAID
    )
    decode = [faster(name) for name in CASES if name.startswith(("gqa", "ragged"))]
    assert min(decode) > 1, "as fast as FlashInfer or faster"
    split = faster("gqa-1x32768", "step 1: one program a head", "step 2: split")
    rows = [faster(name, "step 3: page table") for name in ("gqa-1x32768", "gqa-128x1024")]
    assert f"It is {split:.0f} times faster" in SAID
    assert f"It is {rows[0]:.1f} and {rows[1]:.1f} times faster than version 3." in SAID


def test_the_loop_of_chapter_02_becomes_the_call_that_is_shown():
    """The versions' differences are held to the code by tests/kernels/test_kernels.py."""
    shown = CHAPTER.partition("```diff\n")[2].partition("```")[0].splitlines()
    for sign, name in (("-", "paged"), ("+", "paged_kernel")):
        code = (ROOT / f"refimpl/inference_opt/cache/{name}.py").read_text(encoding="utf-8").splitlines()
        lines = [line[1:] for line in shown if line[0] == sign]
        assert lines
        assert set(lines) <= set(code)


def test_the_questions_have_the_answers_that_can_be_computed():
    assert state(((3, 2), (1, 10))) == (4, 4)
    assert "3/4 · 2 + 1/4 · 10 = 4, the log-sum-exp is ln 4" in SAID
    read, done = 2 * 8192 * 8 * 128 * 2, 4 * 8192 * 32 * 128
    assert f"are {read / 1e6:.1f} MB, which takes {1e6 * read / 3.08e12:.1f} µs" in SAID
    assert f"{done / 1e6:.0f} million operations, which takes {1e6 * done / 777e12:.2f} µs" in SAID
    empty = {pieces: -64 * pieces % 264 for pieces in (4, 5, 8)}
    assert f"{empty[4]} places are empty" in SAID
    assert f"the second round has {264 - empty[5]} programs and {empty[5]} empty places" in SAID
    assert f"the second round has {264 - empty[8]} programs, and {empty[8]} places are empty" in SAID


def test_the_rates_of_the_card_follow_from_its_data_sheet():
    assert f"{gpu_figures.CLOCK / 1e9:.2f} GHz" in GPU
    assert f"| {gpu_figures.SHARED_RATE / 1e12:.0f} TB/s |" in GPU
    assert f"about {gpu_figures.REGISTER_RATE / 1e12:.0f}".startswith("about 40")
    assert "about 400 TB/s" in GPU
    assert f"| {gpu_figures.measured()['l2'] / 1e12:.1f} TB/s and more |" in GPU
    assert f"| {gpu_figures.BANDWIDTH / 1e12:.2f} TB/s; {BANDWIDTH / 1e12:.2f} measured |" in GPU
    assert round(gpu_figures.PEAK / gpu_figures.FLOAT32) == 15
    one = CASES["gqa-1x32768"]
    read, done = one["bytes"], one["operations"]
    assert f"{read / 1e6:.0f} MB" in GPU
    assert f"{done / 1e9:.2f} · 10⁹" in GPU
    micro = [1e6 * t for t in (read / BANDWIDTH, done / PEAK, one["times"]["inference-opt"]["seconds"])]
    assert f"takes {micro[0]:.0f} µs; the operations would take {micro[1]:.1f} µs" in GPU_SAID
    assert f"The kernel of the chapter takes {micro[2]:.0f} µs." in GPU_SAID
    engine = json.loads((ROOT / "docs/results/bench_engine_smollm2.json").read_text(encoding="utf-8"))
    step = engine["results"][0]
    assert step["batch"] == 1
    assert f"takes {1e6 / step['inference-opt']['decode']:.0f} µs" in GPU_SAID
    assert f"would take only {1e6 / step['limit']:.0f} µs" in GPU_SAID


def test_the_kernel_of_the_page_adds(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", GPU, flags=re.DOTALL)
    path = tmp_path / "added.py"  # Triton reads a kernel's source from its file
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("added", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = torch.randn(2, 600, device=device)
    out = torch.full((601,), torch.nan, device=device)
    module.add[(-(-600 // 256),)](x, y, out, 600, BLOCK=256)
    assert torch.equal(out[:600], x + y)
    assert out[600].isnan()
