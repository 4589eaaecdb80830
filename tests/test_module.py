"""The front as a module: it trains, is copied, saved and moved, and answers from the weights that it has now."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

from inference_opt import Engine, SamplingParams, TransformerWithOptimizations, naive
from inference_opt.model.linear import Linear, can_pack
from inference_opt.model.transformer import Transformer
from tests.toys import latent_toy, tokens_of, toy

SIZES = {"dim": 32, "depth": 2, "heads": 4, "vocab_size": 50, "max_context": 64}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])
PACKS = can_pack(torch.float32, torch.device("cpu"))


def front(**changes):
    model = TransformerWithOptimizations(**SIZES | changes)
    with torch.no_grad():  # sharper laws than an untrained model's, so that a wrong token shows
        model.model.head.weight.mul_(60)
    return model


def expected(model, new=14):
    prompt = IDS[0].tolist()
    return prompt + naive.generate(model.model, prompt, SamplingParams(max_new_tokens=new))


def loss(model):
    return nn.functional.cross_entropy(model(IDS)[0, :-1], IDS[0, 1:])


def frozen(dtype="float32", **changes):
    """As `from_pretrained` leaves it: packed where that is possible, and without gradients."""
    model = front(dtype=dtype, **changes)
    model.requires_grad_(False).model.pack()
    return model


CHANGES = {
    "counted": lambda p, q: p.copy_(q),
    "through data": lambda p, q: p.data.copy_(q),
    "replaced": lambda p, q: setattr(p, "data", q.clone()),
    "through numpy": lambda p, q: p.detach().numpy().__setitem__(..., q.numpy()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("switches", [{}, {"use_radix_attention": True, "page_size": 2}], ids=["plain", "radix"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_changed_weights_answer_however_they_were_changed(change, switches, dtype):
    model, other = front(dtype=dtype, **switches), front(dtype=dtype, seed=5)
    model.generate(IDS, 20)
    with torch.no_grad():
        for p, q in zip(model.model.parameters(), other.model.parameters()):
            CHANGES[change](p, q.detach())
    assert model.generate(IDS, 20)[0].tolist() == expected(other)


@pytest.mark.parametrize("where", [(0, 0), (3, 5), (-1, -1)])
def test_one_number_behind_torch_s_back_is_noticed_and_moved_rows_too(where):
    model = front(use_radix_attention=True)
    engines = []
    for change in (
        lambda w: None,
        lambda w: w.__setitem__(where, -w[where]),
        lambda w: w.copy_(w.flip(0)),
        lambda w: w.copy_(w.flip(1)),
        lambda w: None,
    ):
        change(model.model.layers[0].attention.qkv.weight.data)
        model.generate(IDS, 8)
        engines.append(model.engine)
    assert [a is b for a, b in itertools.pairwise(engines)] == [False, False, False, True]


def test_forget_is_for_what_is_not_noticed():
    model = frozen(use_radix_attention=True, page_size=2)
    other = frozen(seed=5)
    model.generate(IDS, 20)
    for p, q in zip(model.model.parameters(), other.model.parameters()):
        p.data.copy_(q)
    model.forget()
    assert model.engine is None
    assert model.generate(IDS, 20)[0].tolist() == expected(other)


@pytest.mark.parametrize("use_mla", [False, True])
def test_gradients_are_those_of_float64(use_mla):
    model = front(use_mla=use_mla)
    model.generate(IDS, 9)  # what inference made (angles, packed weights) is no hindrance
    exact = copy.deepcopy(model).double()
    exact.generate(IDS, 9)
    for each in (model, exact):
        loss(each).backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters()):
        assert p.requires_grad, name
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-5, msg=name)
    weight, at = exact.model.layers[0].attention.out.weight, (3, 4)  # and these are the differences' limit
    with torch.no_grad():
        values = []
        for by in (1e-6, -2e-6):
            weight[at] += by
            values.append(loss(exact).item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(weight.grad[at]), rel=1e-5, abs=1e-8)


def test_a_step_of_an_optimiser_changes_what_the_model_says():
    model = front(use_radix_attention=True)
    before, first = model.generate(IDS, 20), loss(model).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(3):
        optimiser.zero_grad()
        loss(model).backward()
        model.generate(IDS, 9)  # between the gradient and the step
        optimiser.step()
    assert loss(model).item() < first
    after = model.generate(IDS, 20)
    assert after[0].tolist() == expected(model)
    assert not torch.equal(after, before)


def test_frozen_weights_train_once_they_are_asked_to():
    model, reference = frozen(), front()
    assert any(p.is_mkldnn for p in model.parameters()) == PACKS
    assert not loss(model).requires_grad
    model.requires_grad_()
    for each in (model, reference):
        loss(each).backward()
    for p, q in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.skipif(not PACKS, reason="nothing is packed here")
def test_a_gradient_goes_through_packed_weights_or_is_refused():
    model, reference = frozen(), front()
    model.model.embed.weight.requires_grad_()
    for each in (model, reference):
        loss(each).backward()
    torch.testing.assert_close(model.model.embed.weight.grad, reference.model.embed.weight.grad)
    model.model.head.weight.requires_grad_()
    with pytest.raises(ValueError, match="packed weight has no gradient: call requires_grad_"):
        model(IDS)


def by_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": by_save}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [front, frozen], ids=["trains", "packed"])
def test_a_copy_has_the_weights_and_no_engine(way, make):
    model = make(use_radix_attention=True, page_size=1)
    small = len(pickle.dumps(model))
    text = IDS
    for _ in range(20):
        text = model.generate(text, text.shape[1] + 1)
    assert len(pickle.dumps(model)) == small
    other = COPIES[way](model)
    assert other.engine is None
    assert [p.is_mkldnn for p in other.parameters()] == [p.is_mkldnn for p in model.parameters()]
    assert torch.equal(other.generate(IDS, 20), model.generate(IDS, 20))
    wanted = model.generate(IDS, 20)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(model.generate(IDS, 20), wanted)


@pytest.mark.parametrize("make", [front, frozen], ids=["trains", "packed"])
@pytest.mark.parametrize("into", [front, frozen], ids=["into one that trains", "into a packed one"])
def test_a_state_dict_goes_from_one_to_the_other(make, into):
    model, other = make(), into(seed=5, use_radix_attention=True)
    other.generate(IDS, 20)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    packed = [p.is_mkldnn for p in other.parameters()]
    other.load_state_dict(torch.load(file))
    assert [p.is_mkldnn for p in other.parameters()] == packed
    assert torch.equal(other.generate(IDS, 20), model.generate(IDS, 20))


@pytest.mark.parametrize("make", [front, frozen], ids=["trains", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float32])
def test_a_model_takes_another_dtype(make, dtype):
    model = make(use_radix_attention=True)
    model.generate(IDS, 8)
    assert model.to(dtype).eval().train() is model
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(IDS).dtype == dtype
    assert model.generate(IDS, 8).shape == (1, 8)
    if dtype == torch.float64:
        assert model.generate(IDS, 20)[0].tolist() == expected(model)


@pytest.mark.skipif(not PACKS, reason="nothing is packed here")
def test_tied_weights_stay_one_tensor_wherever_they_are_dense():
    model = toy(dtype=torch.float32, tied_embeddings=True).pack()
    assert model.head.weight.is_mkldnn
    for dense in (copy.deepcopy(model).unpack(), copy.deepcopy(model).double(), copy.deepcopy(model).requires_grad_()):
        assert dense.head.weight is dense.embed.weight


@pytest.mark.skipif(not PACKS, reason="nothing is packed here")
@pytest.mark.parametrize("model", [toy(dtype=torch.float32, tied_embeddings=True), latent_toy(dtype=torch.float32)])
def test_a_packed_twin_shares_what_is_not_packed(model):
    twin = model.packed()
    assert all(m.weight.is_mkldnn for m in twin.modules() if isinstance(m, Linear))
    assert twin.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert not any(p.is_mkldnn for p in model.parameters())
    assert twin.packed() is twin
    assert not any(p.requires_grad for p in twin.parameters())
    assert isinstance(twin, Transformer)
    assert toy().packed().dtype == torch.float64


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_engine_is_not_copied(copying):
    with pytest.raises(TypeError, match=r"an Engine is not copied or saved.*make another of its model"):
        copying(Engine(toy()))


def test_an_engine_forgets_its_prefixes_and_loses_no_token():
    model = toy(vocab_size=50, max_context=64)
    params, prompts = SamplingParams(max_new_tokens=12), [[1, 2, 3, 4, 5], [1, 2, 3, 9]]
    engine = Engine(model, page_size=2)
    requests = [engine.add(prompt, params) for prompt in prompts]
    for _ in range(4):
        engine.step()
    engine.forget()
    assert len(engine.tree) == 0
    assert engine.pool.free == engine.pool.num_pages
    while engine.requests:
        engine.step()
    assert [each.output for each in requests] == [naive.generate(model, prompt, params) for prompt in prompts]
    with torch.no_grad():
        for p in model.parameters():
            p.data.mul_(-1.1)
    engine.forget()
    assert tokens_of(engine.generate(prompts, params)) == [naive.generate(model, prompt, params) for prompt in prompts]


@pytest.mark.parametrize("name", ["dim", "depth", "heads", "vocab_size", "kv_heads", "ffn_dim", "max_context", "seed"])
def test_a_pretrained_model_has_sizes_of_its_own(name):
    with pytest.raises(ValueError, match=rf"{name} cannot be chosen: some-model has sizes"):
        TransformerWithOptimizations.from_pretrained("some-model", **{name: 4})


@pytest.mark.parametrize("name", ["page_size", "num_pages"])
def test_pages_are_of_an_engine(name):
    with pytest.raises(ValueError, match=f"{name} has no effect: the switch it belongs to is off"):
        front(**{name: 16})
    assert getattr(front(use_speculative_decoding=True, **{name: 16}), name) == 16


def test_options_of_a_call_that_would_have_no_effect_are_refused():
    model = TransformerWithOptimizations(dim=16, depth=1, heads=2, vocab_size=20, max_context=32)
    for option in ({"logprobs": True}, {"gamma": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} has no effect"):
            model.generate(torch.tensor([[1, 2]]), 8, **option)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_mla": "yes"}, "use_mla must be True or False"),
        ({"use_radix_attention": 1}, "use_radix_attention must be True or False"),
        ({"use_radix_attention": True, "page_size": 0}, "page_size must be at least 1"),
        ({"use_radix_attention": True, "num_pages": "9"}, "num_pages must be an integer"),
        ({"use_speculative_decoding": True, "rule": "block"}, "rule must be one of"),
        ({"dim": "16"}, "dim must be an integer, got '16'"),
        ({"heads": None}, "heads must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_sizes_and_switches_are_what_they_say(option, message):
    with pytest.raises(ValueError, match=message):
        TransformerWithOptimizations(**{"dim": 16, "depth": 2, "heads": 2, "vocab_size": 20} | option)


@pytest.mark.usefixtures("untyped")
def test_ids_that_cannot_hold_the_vocabulary_are_refused_before_the_work():
    model = TransformerWithOptimizations(dim=16, depth=1, heads=2, vocab_size=300, max_context=32)
    for dtype in (torch.uint8, torch.int8):
        with pytest.raises(ValueError, match="cannot hold token 299"):
            model.generate(torch.ones(1, 2, dtype=dtype), 8)
    assert model.generate(torch.ones(1, 2, dtype=torch.int16), 8).dtype == torch.int16


def test_weights_that_lie_anywhere_in_memory_are_looked_at():
    """A flat vector of all weights puts some of them at odd places."""
    sizes = {"dim": 8, "depth": 1, "heads": 2, "vocab_size": 21, "max_context": 32, "use_mla": True}
    model = TransformerWithOptimizations(**sizes, mla_latent_dim=9, use_radix_attention=True)
    before = model.generate(torch.tensor([[1, 2]]), 8)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters())
    assert any(p.storage_offset() % 2 for p in model.parameters())
    assert torch.equal(model.generate(torch.tensor([[1, 2]]), 8), before)


@pytest.mark.parametrize("switches", [{}, {"use_radix_attention": True}])
def test_broken_weights_are_an_error_with_every_switch(switches):
    model = TransformerWithOptimizations(dim=16, depth=1, heads=2, vocab_size=50, max_context=40, **switches)
    assert model.stats is None
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="could not be continued"):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3)


def test_new_tokens_may_be_counted_without_the_prompt():
    model = TransformerWithOptimizations(dim=16, depth=1, heads=2, vocab_size=50, use_radix_attention=True)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.generate(ids, max_new_tokens=4), model.generate(ids, 7))
    assert model.stats.new_tokens == 8
    for both in ({}, {"max_length": 7, "max_new_tokens": 4}):
        with pytest.raises(ValueError, match="expected max_length, which counts the prompt, or max_new_tokens"):
            model.generate(ids, **both)
