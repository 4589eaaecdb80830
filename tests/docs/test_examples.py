"""The worked examples of the chapters: their numbers are computed here, by the project's code where it has some."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from inference_opt import Engine, SamplingParams
from inference_opt.cache.paged import slots_of
from inference_opt.lab.bench.parallel import ALL
from inference_opt.model.attention import NoCache
from inference_opt.model.transformer import Transformer
from inference_opt.radix.tree import RadixTree
from inference_opt.speculative.cost import expected_tokens
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.rules import residual
from tests.speculative.test_head import random_head
from tests.toys import toy

CHAPTERS = {path.stem[:2]: path for path in (Path(__file__).resolve().parents[2] / "chapters").glob("*.md")}


def says(chapter, *parts):
    """Each part stands in the chapter, wherever its lines break."""
    text = " ".join(CHAPTERS[chapter].read_text(encoding="utf-8").split())
    for part in parts:
        assert " ".join(part.split()) in text, f"chapter {chapter} does not say: {part}"


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def test_a_number_that_is_not_there_is_named():
    with pytest.raises(AssertionError, match="chapter 02 does not say: slot 77"):
        says("02", "slot 77")


def test_01_bytes_of_a_quantised_cache():
    layers, heads, width = 30, 3, 64  # SmolLM2-135M
    vectors = 2 * layers * heads
    says("01", f"{vectors * width:,} bytes instead of {vectors * width * 2:,}", f"{vectors * (width // 2 + 4):,}.")


def test_01_who_shares_a_scale():
    keys = torch.tensor([[0.1, -0.2, 0.3, 8], [0.3, 0.1, -0.1, 7]], dtype=torch.float64)
    by_key = keys.abs().amax(dim=1, keepdim=True) / 7
    assert (keys / by_key).round()[0].tolist() == [0, 0, 0, 7]
    by_channel = keys.abs().amax(dim=0) / 7
    stored = (keys / by_channel).round()[0, 0]
    says("01", *(f"({', '.join(f'{x:g}' for x in key)})".replace("-", "−") for key in keys.tolist()))
    says("01", f"8 / 7 = {by_key[0, 0]:.2f}", f"0.3 / 7 = {by_channel[0]:.3f}")
    says("01", f"0.1 is stored as {stored:g}, which is read as {stored * by_channel[0]:.3f}")


TABLE, SIZE, LETTERS = (3, 0, 2), 2, "abcdef"


def test_02_six_tokens_in_three_pages():
    t = torch.arange(6)
    slots = slots_of(torch.tensor(TABLE), t, SIZE).tolist()
    says("02", row("token", *LETTERS), row("$t$", *t.tolist()))
    says("02", row("page", *(slot // SIZE for slot in slots)), row("slot", *slots))
    d = LETTERS.index("d")
    says("02", f"{TABLE[d // SIZE]} \\cdot {SIZE} + {d % SIZE} = {slots[d]}", f"the page table {TABLE}")


def test_02_a_window_in_five_layers_of_six():
    text, window = 32_768, 1_024
    kept = text + 5 * window
    says("02", f"{text:,} + 5 · {window:,} = {kept:,} tokens, instead of 6 · {text:,} = {6 * text:,}")
    says("02", f"That is {kept / (6 * text):.0%}.")


def drawn(tree):
    """The tree as the chapter writes it."""

    def draw(node):
        text = "".join(chr(token) for token in node.tokens)
        below = [draw(child) for child in node.children.values()]
        tail = f" > {below[0]}" if len(below) == 1 else f" > ({', '.join(below)})" if below else ""
        return f"{text} / {' '.join(map(str, node.pages))}{tail}"

    return ", ".join(draw(child) for child in tree.roots[None].children.values())


def test_03_six_tokens_through_the_tree():
    tree = RadixTree(page_size=SIZE)

    def call(name, argument, pages=None):
        if name == "evict":
            got, said = tree.evict(argument), argument
        else:
            tokens = [ord(letter) for letter in argument]
            got = (tree.match(tokens) if pages is None else tree.insert(tokens, pages)).pages
            said = " ".join(argument) + ("" if pages is None else f", {pages}")
        says("03", row(f"`{name}({said})`", f"pages {', '.join(map(str, got))}", f"`{drawn(tree)}`"))

    call("insert", LETTERS, [*TABLE])
    call("match", "abcdxy")
    call("insert", "abcdxy", [3, 0, 5])
    call("match", "abcz")
    call("insert", LETTERS, [7, 8, 9])
    call("evict", 1)


def test_03_loading_against_computing():
    c = ALL["Llama-3.1-8B"]
    token = 2 * c.kv_heads * c.head_dim * c.depth * 2  # bytes in bfloat16
    with torch.device("meta"):
        weights = sum(p.numel() for p in Transformer(c).parameters())
    says("03", f"{token:,} bytes", f"2 · {weights / 1e9:.2f} · 10⁹ operations, or {2 * weights / 1e9:.1f} GFLOP")
    says("03", f"400 TFLOP/s needs {2 * weights / 400e12 * 1e6:.0f} µs")
    says("03", f"loading takes {token / 64e9 * 1e6:.1f} µs; from a disk of 7 GB/s it takes {token / 7e9 * 1e6:.1f} µs")


def test_04_what_a_prompt_weighs_on_the_network():
    c = ALL["Llama-3.1-8B"]
    prompt = 2_000 * 2 * c.kv_heads * c.head_dim * c.depth * 2
    says("04", f"{prompt / 1e6:.0f} MB", f"{prompt / 50e9 * 1e3:.1f} ms over a network of 50 GB/s")


def complexes(*numbers):
    def said(z):
        parts = [f"{z.real:g}"] * bool(z.real) + [f"{abs(z.imag):g}j".replace("1j", "j")] * bool(z.imag)
        joined = (" − " if z.imag < 0 else " + ").join(parts)
        return ("−" if z.imag < 0 and not z.real else "") + joined.replace("-", "−")

    return [said(z) for z in numbers]


def test_05_two_heads_and_one_frequency():
    a, turn, x, q = (1, 2j), 1j, 1 + 1j, 3
    keys = [factor * x for factor in a]
    says("05", row("$k_1 = x$", *complexes(keys[0], turn * keys[0])))
    says("05", row("$k_2 = 2\\mathrm{j}\\,x$", *complexes(keys[1], turn * keys[1])))
    says("05", row("$z = x$, which is stored", *complexes(x, turn * x)))
    changed = complex(a[1]).conjugate() * q
    product = complex(q).conjugate() * (turn * keys[1])
    assert a[1] * (turn * x) == turn * keys[1]
    assert changed.conjugate() * (turn * x) == product

    def tex(z):
        return complexes(z)[0].replace("−", "-").replace("j", "\\mathrm{j}")

    says(
        "05", f"becomes ${tex(changed)}$", f"= {tex(product)}$, and", f"= {tex(product)}$. (The score is the real part"
    )
    says("05", f"real part, −{-product.real:g}.")


def test_05_sparse_attention_counted():
    d_c, d_rope, heads, stored, chosen = 512, 64, 128, 100_000, 2_048
    dense = heads * (2 * d_c + d_rope)
    indexer = 64 * 128
    says("05", f"$2 d_c + d_R = {2 * d_c + d_rope:,}$".replace(",", "{,}"))
    says("05", f"{dense * stored / 1e9:.1f} billion", f"{indexer * stored / 1e9:.2f} billion")
    says("05", f"{dense * chosen / 1e9:.2f} billion")
    says("05", f"together {dense * stored / (indexer * stored + dense * chosen):.1f} times fewer")
    says("05", f"takes {d_c + 16 + d_rope * 2} bytes", f"takes {128 + 4} more")
    says("05", f"{(d_c + d_rope) * 61 * 2:,} bytes a token", f"stores {2 * 8 * 128 * 126 * 2:,}")


def test_06_which_tokens_are_kept():
    p, q = (np.array([Fraction(n, 100) for n in law]) for law in ((50, 30, 20), (40, 35, 25)))
    least, excess = np.minimum(p, q), residual(p, q)

    def said(numbers):
        return f"({', '.join(f'{float(x):g}' for x in numbers)})$"

    says("06", f"$p = {said(p)} and $q = {said(q)}", f"$\\min(p, q) = {said(least)}", f"residual is ${said(excess)}")
    says("06", f"accepted with probability {float(least.sum()):g}", f"with probability {float(excess.sum()):g}, always")
    assert (least + excess == p).all()


def test_06_which_state_meets_which_token(monkeypatch):
    """The slots that the drafter reads, with what, recorded in an engine: the chapter's table, in words."""
    target = toy(depth=3).requires_grad_(False)
    head, prompt, read = random_head(target), [1, 2, 3], []
    run = Eagle._run

    def recorded(self, tables, slots, counts, features, following):
        states = run(self, tables, slots, counts, features, following)
        read.append((slots, counts, features, following, states))
        return states

    monkeypatch.setattr(Eagle, "_run", recorded)
    engine = Engine(target, drafter=Eagle(head, confidence=0.0), gamma=3, num_pages=16)
    engine.generate([prompt], SamplingParams(max_new_tokens=6))
    (slots, counts, features, following, states), (second, *_), (third, *_) = read[:3]
    assert (slots, counts, second, third) == ([0], [3], [3], [4])
    _, tapped = target.hidden_states(torch.tensor(prompt), torch.arange(3), NoCache([3]), taps=head.taps)
    torch.testing.assert_close(features, head.fuse(tapped))  # the target's own, of slots 0 to 2
    assert following[:2] == prompt[1:]
    torch.testing.assert_close(read[1][2][0], states[-1])  # slot 3 reads the drafter's state of slot 2
    torch.testing.assert_close(read[2][2][0], read[1][4][0])
    words = dict(zip(prompt, ("The", "cat", "sat")))
    after = [words[prompt[1]], words[prompt[2]], "on", "the", "mat", "and"]
    for slot in range(3):
        predicts = f'(known: "{after[slot + 1]}")' if slot < 2 else f'the first draft: "{after[3]}"'
        says("06", row(slot, f'the target\'s, after "{words[prompt[slot]]}"', after[slot], predicts))
    for slot, which in ((second[0], "second"), (third[0], "third")):
        predicts = f'the {which} draft: "{after[slot + 1]}"'
        says("06", row(slot, f"the drafter's, of slot {slot - 1}", after[slot], predicts))


def test_06_experts_that_are_read():
    def experts(rows, chosen=8, of=256):
        return of * (1 - (1 - chosen / of) ** rows)

    says("06", f"are {experts(1):g} for one row, {experts(4):.1f} for four and {experts(8):.1f} for eight")
    says("06", f"{experts(128):.0f} of the 256 experts")
    assert round(experts(8) / experts(1)) == 7
    emitted = [expected_tokens(alpha, 1) for alpha in (0.85, 0.9)]
    says("06", f"1 + α = {emitted[0]:.2f} to {emitted[1]:.2f} tokens")


def test_09_a_sum_in_another_order():
    big, one = torch.tensor(2.0**24), torch.tensor(1.0)
    assert (big + one) + one == 2**24
    assert big + (one + one) == 2**24 + 2
    says("09", "$(2^{24} + 1) + 1 = 2^{24}$, but $2^{24} + (1 + 1) = 2^{24} + 2$")
