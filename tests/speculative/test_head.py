"""The trained drafter's network: its contract, its files, its training; the packaged one is worth having."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_opt import Engine, SamplingParams, load_model
from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.lab.training.block_diagonal import BlockDiagonalAttention
from inference_opt.lab.training.eagle import Unrolled, fit, unroll
from inference_opt.model.attention import NoCache
from inference_opt.model.linear import can_pack
from inference_opt.speculative.eagle import Eagle
from inference_opt.speculative.head import DraftHead
from tests.toys import tokens_of, toy


def random_head(target, taps=(0, 2), reduced=7, seed=0):
    head = DraftHead(target.config, taps, reduced).to(target.dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(0, 0.3, generator=generator) if p.ndim > 1 else p.fill_(1)
    head.use_head_of(target, torch.randperm(target.config.vocab_size, generator=generator)[:reduced])
    return head


@pytest.fixture(scope="module")
def target():
    return toy(depth=3).requires_grad_(False)


def step(head, features, embeds, batch):
    return head(features, embeds, batch.positions, batch)


def test_one_batch_gives_the_states_of_slot_by_slot(target):
    head, c = random_head(target), target.config
    tokens, positions = torch.randint(0, 13, (9,)), torch.arange(8)
    _, tapped = target.hidden_states(tokens, torch.arange(9), NoCache([9]), taps=head.taps)
    features, embeds = head.fuse([t[:8] for t in tapped]), target.embed(tokens[1:])
    whole = head(features, embeds, positions, NoCache([8]))
    cache = ContiguousCache(1, c.kv_heads, c.head_dim, [8], target.dtype, target.device)
    for t in range(8):
        state = step(head, features[t : t + 1], embeds[t : t + 1], cache.batch([1]))
        torch.testing.assert_close(state[0], whole[t], rtol=1e-12, atol=1e-12)
    assert head.logits(whole).shape == (8, 7)


def test_each_pass_of_the_training_is_what_drafting_computes(target):
    """Pass j at slot t: read the text up to slot t − j + 1, then draft by its own states, fed the text's tokens."""
    head, c, passes = random_head(target), target.config, 4
    tokens = torch.randint(0, 13, (2, 10))
    rows = {"tokens": tokens, "answer": torch.tensor([0, 4]), "ended": torch.tensor([10, 9])}
    logits, guesses = unroll(target, head, rows, passes)
    slots = [(0, t) for t in range(3, 8)] + [(1, t) for t in range(3, 7)]  # from passes − 1, and two before the end
    assert len(logits) == len(slots)
    for i, (row, t) in enumerate(slots):
        text = tokens[row]
        _, tapped = target.hidden_states(text, torch.arange(10), NoCache([10]), taps=head.taps)
        torch.testing.assert_close(logits[i], target(text, torch.arange(10), NoCache([10]))[t + 1])
        features, embeds = head.fuse(tapped), target.embed(text.roll(-1))
        for j in range(1, passes + 1):
            cache = ContiguousCache(1, c.kv_heads, c.head_dim, [10], target.dtype, target.device)
            read = t - j + 2  # slots with the target's features
            state = step(head, features[:read], embeds[:read], cache.batch([read]))[-1:]
            for slot in range(read, t + 1):
                state = step(head, state, embeds[slot : slot + 1], cache.batch([1]))
            torch.testing.assert_close(guesses[j - 1][i], head.logits(state)[0], rtol=1e-9, atol=1e-9)


def test_rows_attend_to_themselves_alone():
    q, k, v = torch.randn(12, 4, 6), torch.randn(12, 2, 6), torch.randn(12, 2, 6)
    expected = NoCache([6, 6]).attend(0, q, k, v, 0.3)
    torch.testing.assert_close(BlockDiagonalAttention(2).attend(0, q, k, v, 0.3), expected)
    torch.testing.assert_close(Unrolled(2).attend(0, q, k, v, 0.3), expected)


def test_training_lowers_the_loss_and_says_what_was_reached():
    target = toy(depth=3).float().requires_grad_(False)
    rows, length = 24, 20
    corpus = {
        "tokens": torch.randint(0, 13, (rows, length)),
        "answer": torch.full((rows,), 4),
        "ended": torch.full((rows,), 16),
        "kind": torch.arange(rows) % 3,
        "greedy": torch.arange(rows) % 2 == 0,
    }
    options = Namespace(
        seed=0, held_out=12, reduced=9, taps=[0, 2], start=None, lr=3e-3, minutes=0.05, batch=4, passes=2, every=1,
        compile=False,
    )  # fmt: skip
    head, figures = fit(target, corpus, options)
    losses = [point["loss"] for point in figures["curve"]]
    assert min(losses) < losses[0]
    assert figures["steps"] == len(losses)
    assert figures["vocabulary"] == len(head.token_ids) == 9
    for rates in figures["acceptance"].values():
        assert all(0 <= rate <= 1 for law in rates.values() for rate in law)


def test_a_head_survives_its_file(target, tmp_path):
    head = random_head(target)
    head.save(tmp_path / "head.safetensors", seed="3")
    again = DraftHead.load(target, tmp_path / "head.safetensors")
    assert again.taps == (0, 2)
    assert torch.equal(again.token_ids, head.token_ids)
    for name, p in again.named_parameters():
        wanted = head.get_parameter(name)
        assert torch.equal(p, wanted if name == "head.weight" else wanted.bfloat16().double())
    assert not list(tmp_path.glob("*.part"))


def test_beside_float32_the_head_runs_in_bfloat16_where_it_can(tmp_path):
    target = toy(depth=3).float()
    random_head(target).save(tmp_path / "head.safetensors")
    head = DraftHead.load(target, tmp_path / "head.safetensors")
    half = can_pack(torch.bfloat16, target.device)
    assert head.dtype == (torch.bfloat16 if half else torch.float32)
    prompts, params = [[1, 2, 3, 4], [5, 6, 7]], SamplingParams(max_new_tokens=12)
    drafted = Engine(target, drafter=Eagle(head), gamma=3, num_pages=16)
    assert tokens_of(drafted.generate(prompts, params)) == tokens_of(
        Engine(target, num_pages=16).generate(prompts, params)
    )
    assert drafted.stats.drafted_tokens


def test_files_that_are_no_head_for_this_target(target, tmp_path):
    path = tmp_path / "head.safetensors"
    random_head(target).save(path)
    with pytest.raises(ValueError, match="another target: its width is 16"):
        DraftHead.load(toy(dim=24, head_dim=6), path)
    with pytest.raises(ValueError, match="another target"):
        DraftHead.load(toy(depth=2), path)
    with pytest.raises(ValueError, match="its tensors are not the expected"):
        DraftHead.load(toy(depth=3, ffn_dim=20), path)
    tensors = load_file(path)
    save_file(tensors, path)  # without what describes it
    with pytest.raises(ValueError, match="not a draft head"):
        DraftHead.load(target, path)
    save_file({n: t for n, t in tensors.items() if n != "token_ids"}, path, {"taps": json.dumps([0])})
    with pytest.raises(ValueError, match="not a draft head"):
        DraftHead.load(target, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a draft head"):
        DraftHead.load(target, path)
    with pytest.raises(ValueError, match="not a draft head"):
        DraftHead.load(target, tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"eagle-smollm2-135m\.safetensors was made for another target"):
        DraftHead.load(target)


def test_the_packaged_head_is_worth_having(apart, smollm2_path):
    apart(the_packaged_head_is_worth_having, smollm2_path)


def the_packaged_head_is_worth_having(path):
    model, tokenizer = load_model(path, dtype="float32")
    prompt = tokenizer.chat("Complete this Python function.\n\n```python\ndef mean(numbers):\n```")
    engine = Engine(model, drafter=Eagle(), gamma=2, num_pages=40)
    [text] = tokens_of(engine.generate([prompt], SamplingParams(max_new_tokens=48)))
    assert tokens_of(engine.generate([prompt], SamplingParams(max_new_tokens=48, gamma=0))) == [text]
    assert engine.stats.acceptance > 0.4
