"""Latent attention is one function in every form, over every cache; what it keeps, what it costs, what it refuses."""

import json
import math
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inference_opt.cache.contiguous import ContiguousCache
from inference_opt.cache.paged import PagedCache
from inference_opt.lab.training.block_diagonal import BlockDiagonalAttention
from inference_opt.loading.checkpoint import SafetensorsFolder
from inference_opt.loading.formats import config_from_hf
from inference_opt.model.attention import QUERY_BLOCK, NoCache
from inference_opt.model.config import ExpertsShape, LatentShape, ModelConfig
from inference_opt.model.mla import LatentAttention, use_form
from inference_opt.model.rope import frequencies
from tests.loading.test_checkpoint_errors import CONFIG, SHAPES, load_folder, write_folder
from tests.toys import LATENT_SHAPES, latent_toy, run, toy

CPU = torch.device("cpu")
EXACT = 1e-10
FORMS = ["explicit", "absorbed", None]
LENGTHS = st.lists(st.one_of(st.integers(1, 12), st.just(QUERY_BLOCK + 5)), min_size=1, max_size=3)
V2 = ModelConfig(  # one layer of DeepSeek-V2
    vocab_size=102_400,
    dim=5120,
    depth=1,
    heads=128,
    kv_heads=128,
    head_dim=192,
    ffn_dim=12_288,
    max_context=163_840,
    latent=LatentShape(512, 64, 128, 128, q_lora_rank=1536),
)


def tokens_of(lengths, seed=0):
    return torch.randint(13, (sum(lengths),), generator=torch.Generator().manual_seed(seed))


def error(ours, expected):
    assert ours.shape == expected.shape
    return float(((ours - expected).abs().amax(-1) / expected.abs().amax(-1)).max())


@torch.inference_mode()
def whole(model, lengths, tokens, form):
    use_form(model, form)
    return model(tokens, torch.cat([torch.arange(n) for n in lengths]), NoCache(lengths))


@torch.inference_mode()
def by_the_equations(model, h, angles):
    """Eqs. 9 to 19 of 2405.04434 for one sequence, a head and a query at a time; rotations by complex numbers."""
    attention, c, shape = model.layers[0].attention, model.config, model.config.latent
    half = shape.qk_rope_head_dim // 2
    stretched = c.rope_scaling.attention_factor if c.rope_scaling else 1.0

    def norm(x, module):
        return x if module is None else module.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x):
        cos, sin = (angles.cos() * stretched).double(), (angles.sin() * stretched).double()
        pairs = torch.complex(x[:, :half], x[:, half:]) * torch.complex(cos, sin)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    down = attention.kv_down(h)
    latent, k_rope = norm(down[:, : shape.kv_lora_rank], attention.kv_latent_norm), down[:, shape.kv_lora_rank :]
    query = h if shape.q_lora_rank is None else norm(attention.q_down(h), attention.q_latent_norm)
    query, up = query @ attention.q.weight.T, latent @ attention.kv_up.weight.T
    mixed = []
    for head in range(c.heads):
        q = query[:, head * c.head_dim : (head + 1) * c.head_dim]
        group, width = head // (c.heads // c.kv_heads), shape.qk_nope_head_dim + shape.v_head_dim
        k, v = up[:, group * width : (group + 1) * width].tensor_split([shape.qk_nope_head_dim], dim=1)
        q = torch.cat((q[:, : shape.qk_nope_head_dim], turned(q[:, shape.qk_nope_head_dim :])), dim=-1)
        k = torch.cat((k, turned(k_rope)), dim=-1)
        scale = 1 / math.sqrt(c.head_dim)
        if c.rope_scaling and c.rope_scaling.mscale_all_dim and c.rope_scaling.factor > 1:
            scale *= (0.1 * c.rope_scaling.mscale_all_dim * math.log(c.rope_scaling.factor) + 1) ** 2
        mixed.append(torch.stack([(q[i] @ k[: i + 1].T * scale).softmax(-1) @ v[: i + 1] for i in range(len(h))]))
    return attention.out(torch.cat(mixed, dim=-1))


@given(LATENT_SHAPES, st.integers(1, 20), st.sampled_from(FORMS))
@torch.inference_mode()
def test_one_layer_computes_the_equations(shape, n, form):
    model = latent_toy(**shape)
    use_form(model, form)
    h = torch.randn(n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    angles = torch.outer(torch.arange(n).float(), frequencies(model.config))  # float32, as everywhere
    ours = model.layers[0].attention(h, model.rope.at(torch.arange(n)), 0, NoCache([n]))
    assert error(ours, by_the_equations(model, h, angles)) < EXACT


@given(LATENT_SHAPES, LENGTHS)
def test_every_form_gives_the_same_logits(shape, lengths):
    model, tokens = latent_toy(**shape, max_context=QUERY_BLOCK + 5), tokens_of(lengths)
    expected = whole(model, lengths, tokens, "explicit")
    for form in ("absorbed", None):
        assert error(whole(model, lengths, tokens, form), expected) < EXACT


@given(LATENT_SHAPES, st.integers(1, 4), st.integers(1, 12))
@torch.inference_mode()
def test_rows_of_equal_length_are_trained_on_the_same_function(shape, rows, length):
    model, lengths = latent_toy(**shape), [length] * rows
    tokens = tokens_of(lengths)
    expected = whole(model, lengths, tokens, "absorbed")
    assert error(model(tokens, torch.arange(length).repeat(rows), BlockDiagonalAttention(rows)), expected) < EXACT


def caches(model, lengths, page_size, data):
    """Both caches for texts of these lengths, filled with NaN, and for each how to make a batch."""
    kept = {"dtype": model.dtype, "device": CPU} | model.config.kv_shape
    contiguous = ContiguousCache(**kept, capacity=lengths)
    needed = [-(-n // page_size) for n in lengths]
    pages = data.draw(st.permutations(range(sum(needed) + 2)))
    tables = [[pages.pop() for _ in range(count)] for count in needed]
    paged = PagedCache(**kept, num_pages=sum(needed) + 2, page_size=page_size)
    for tensor in (*chain(*contiguous.keys), *paged.keys):
        tensor.fill_(torch.nan)

    def batch(fed, counts):
        part = [i for i, count in enumerate(counts) if count]
        return paged.batch([tables[i] for i in part], [fed[i] for i in part], [counts[i] for i in part])

    return lambda fed, counts: contiguous.batch(counts), batch


@given(LATENT_SHAPES, st.lists(st.integers(1, 12), min_size=1, max_size=3), st.sampled_from([1, 3, 16]), st.data())
@torch.inference_mode()
def test_any_chunking_over_any_cache_gives_the_logits_of_one_piece(shape, lengths, page_size, data):
    model, tokens = latent_toy(**shape), tokens_of(lengths)
    texts = tokens.split(lengths)
    expected = whole(model, lengths, tokens, "explicit").split(lengths)
    both, fed = caches(model, lengths, page_size, data), [0] * len(lengths)
    while any(n < end for n, end in zip(fed, lengths)):
        counts = [data.draw(st.integers(0, end - n)) for n, end in zip(fed, lengths)]
        if not any(counts):
            counts = [end - n for n, end in zip(fed, lengths)]
        chunk = torch.cat([text[n : n + count] for text, n, count in zip(texts, fed, counts)])
        right = torch.cat([rows[n : n + count] for rows, n, count in zip(expected, fed, counts)])
        use_form(model, data.draw(st.sampled_from(FORMS)))  # what is kept is the same, whoever reads it
        for batch in both:
            assert error(run(model, chunk, batch(fed, counts)), right) < EXACT
        fed = [n + count for n, count in zip(fed, counts)]


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_long_chunks_over_long_pasts(form):
    lengths = [3 * QUERY_BLOCK]
    model, tokens = latent_toy(max_context=lengths[0], q_lora_rank=5), tokens_of(lengths)
    expected = whole(model, lengths, tokens, "explicit")
    use_form(model, form)
    cache = ContiguousCache(**model.config.kv_shape, capacity=lengths, dtype=model.dtype, device=CPU)
    logits = torch.cat([run(model, part, cache.batch([len(part)])) for part in tokens.split([9, 300, 1, 74])])
    assert error(logits, expected) < EXACT


@given(LATENT_SHAPES)
def test_what_is_multiplied_with_the_input_lies_in_one_tensor(shape):
    model = latent_toy(**shape)
    tokens = tokens_of([5])
    before = whole(model, [5], tokens, "absorbed")
    attention = model.layers[0].attention
    first = attention.q if attention.shape.q_lora_rank is None else attention.q_down
    rows = torch.cat([first.weight.detach(), attention.kv_down.weight.detach()])
    assert torch.equal(attention.stacked(), rows)
    assert attention.stacked().data_ptr() == first.weight.data_ptr()  # the layer's own weights, no copy of them
    assert torch.equal(whole(model, [5], tokens, "absorbed"), before)
    with torch.no_grad():
        attention.kv_down.weight.fill_(3.0)
    assert (attention.stacked()[len(first.weight) :] == 3).all()


@pytest.mark.parametrize("form", ["", "naive", "Explicit", "training", 1])
def test_a_form_that_there_is_not(form):
    with pytest.raises((ValueError, TypeError), match="form"):
        use_form(latent_toy(), form)
    assert {layer.attention.form for layer in latent_toy().layers} == {None}


def test_forms_are_set_where_there_is_latent_attention():
    model = latent_toy()
    use_form(model, "absorbed")
    assert {layer.attention.form for layer in model.layers} == {"absorbed"}
    use_form(toy(), "absorbed")


# What it costs.


# Products over a width of 1 are none, for torch: it multiplies and adds, and does not count.
SEVERAL = st.fixed_dictionaries({n: st.integers(2, 9) for n in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")})
COUNTED = st.builds(lambda shape, widths: latent_toy(**shape | widths).layers[0].attention, LATENT_SHAPES, SEVERAL)


@torch.inference_mode()
def multiplications(attention, form, queries, keys):
    """Of what `over` really runs, as torch counts them."""
    attention.form, shape = form, attention.shape
    q = torch.randn(queries, attention.heads, shape.qk_nope_head_dim + shape.qk_rope_head_dim, dtype=torch.float64)
    kept = torch.randn(keys, 1, shape.kv_lora_rank + shape.qk_rope_head_dim, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        attention.over(q, kept)
    return counter.get_total_flops() // 2


@given(COUNTED, st.integers(1, QUERY_BLOCK), st.integers(0, 300))
def test_the_cheaper_form_is_chosen(attention, queries, past):
    keys = queries + past
    explicit, absorbed, chosen = (multiplications(attention, f, queries, keys) for f in ("explicit", "absorbed", None))
    assert attention.absorbs(queries, keys) == (absorbed <= explicit)
    assert chosen == min(explicit, absorbed)


@given(COUNTED, st.integers(1, QUERY_BLOCK), st.integers(0, 300))
def test_multiplications_are_those_of_the_products_shapes(attention, queries, past):
    keys = queries + past
    s, heads, kv_heads = attention.shape, attention.heads, attention.kv_heads
    nope, rope, value, latent = s.qk_nope_head_dim, s.qk_rope_head_dim, s.v_head_dim, s.kv_lora_rank
    made = keys * latent * kv_heads * (nope + value)
    explicit = made + heads * queries * keys * (nope + rope) + heads * queries * keys * value
    absorb = queries * heads * nope * latent + queries * heads * latent * value
    absorbed = absorb + heads * queries * keys * (latent + rope) + heads * queries * keys * latent
    assert multiplications(attention, "explicit", queries, keys) == explicit
    assert multiplications(attention, "absorbed", queries, keys) == absorbed


def test_deepseek_v2_absorbs_where_it_decodes_and_not_where_it_prefills():
    with torch.device("meta"):
        attention = LatentAttention(V2)
    for keys in (10, 100, 10_000, 160_000):
        assert attention.absorbs(1, keys)
        assert attention.absorbs(5, keys)  # drafts to verify
    for tokens in (1, 10, 1000, 100_000):
        assert not attention.absorbs(tokens, tokens)  # a prompt
    # However long the past: a pair costs 2 · 512 + 64 for 320, and a key is made for 256 · 512.
    assert [attention.absorbs(queries, 10**9) for queries in (170, 171)] == [True, False]


# What is kept.


def held_bytes(cache):
    """Every storage behind a cache's tensors, once: a view costs nothing."""
    storages = {}

    def collect(value):
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, list):
            for item in value:
                collect(item)

    collect([cache.keys, cache.values])
    return sum(storages.values())


@pytest.mark.parametrize("paged", [True, False])
def test_bytes_a_token_of_deepseek_v2_and_of_multi_head_attention(paged):
    sizes = {"vocab_size": 8, "dim": 5120, "depth": 1, "heads": 128, "kv_heads": 128, "ffn_dim": 8, "max_context": 8}
    for config, expected in ((V2, 1152), (ModelConfig(**sizes, head_dim=128), 65_536)):
        kept = {"dtype": torch.bfloat16, "device": CPU} | config.kv_shape
        cache = PagedCache(**kept, num_pages=2, page_size=4) if paged else ContiguousCache(**kept, capacity=[5, 3])
        assert held_bytes(cache) == 8 * expected
        assert cache.bytes_per_token() == expected == 2 * config.kv_elements_per_token


@given(st.one_of(LATENT_SHAPES, st.none()), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_elements_a_token_are_what_the_tensors_hold(shape, depth, page_size, pages):
    config = (toy(depth=depth) if shape is None else latent_toy(depth=depth, **shape)).config
    kept = {"dtype": torch.float64, "device": CPU} | config.kv_shape
    for cache, tokens in (
        (PagedCache(**kept, num_pages=pages, page_size=page_size), pages * page_size),
        (ContiguousCache(**kept, capacity=[page_size] * pages), pages * page_size),
    ):
        assert held_bytes(cache) == 8 * tokens * config.kv_elements_per_token
        assert cache.bytes_per_token() == 8 * config.kv_elements_per_token


# What is refused.

GOOD = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 3, "v_head_dim": 5, "q_lora_rank": 6}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [0, -2, 2.0, "2", None])
def test_widths_that_are_none(name, value):
    if (name, value) == ("q_lora_rank", None):
        assert LatentShape(**GOOD | {name: value}).q_lora_rank is None
        return
    with pytest.raises((ValueError, TypeError), match=name):
        LatentShape(**GOOD | {name: value})


def test_an_odd_width_cannot_be_rotated():
    with pytest.raises(ValueError, match="qk_rope_head_dim must be even, because pairs are rotated; got 3"):
        LatentShape(**GOOD | {"qk_rope_head_dim": 3})


@pytest.mark.parametrize("head_dim", [2, 4, 6])
def test_the_width_of_a_query_is_that_of_its_parts(head_dim):
    with pytest.raises(ValueError, match=rf"head_dim \({head_dim}\) must be .* \(3 \+ 2\)"):
        toy(latent=LatentShape(**GOOD), head_dim=head_dim)


EXPERTS = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "n_shared_experts": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_routed_experts": 0}, "0 experts cannot be divided into 1 equal groups"),
        ({"n_group": 4}, "6 experts cannot be divided into 4 equal groups"),
        ({"n_group": 0}, "6 experts cannot be divided into 0 equal groups"),
        ({"n_group": 3, "topk_group": 0}, r"topk_group must lie in \[1, n_group = 3\], got 0"),
        ({"n_group": 3, "topk_group": 4}, r"topk_group must lie in \[1, n_group = 3\], got 4"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok must lie in \[1, 6\], .*got 0"),
        ({"num_experts_per_tok": 7}, r"num_experts_per_tok must lie in \[1, 6\], .*got 7"),
        ({"n_group": 3, "num_experts_per_tok": 3}, r"num_experts_per_tok must lie in \[1, 2\], .*got 3"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size must be positive"),
        ({"n_shared_experts": -1}, "n_shared_experts not negative"),
        ({"n_group": 6, "num_experts_per_tok": 1, "corrected": True}, "so each group needs two or more"),
    ],
)
def test_experts_that_there_cannot_be(changes, message):
    ExpertsShape(**EXPERTS)
    with pytest.raises(ValueError, match=message):
        ExpertsShape(**EXPERTS | changes)


DEEPSEEK_V2 = {
    "model_type": "deepseek_v2",
    "vocab_size": 7,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 2,
    "qk_nope_head_dim": 3,
    "v_head_dim": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 3,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": False,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "max_position_embeddings": 64,
    "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "mscale_all_dim": 1.0},
}
DEEPSEEK_V3 = DEEPSEEK_V2 | {
    "model_type": "deepseek_v3",
    "q_lora_rank": 6,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
}


def test_what_is_read_of_a_config():
    config = config_from_hf(DEEPSEEK_V2)
    assert config.latent == LatentShape(4, 2, 3, 5, None, rope_interleave=True, normed=True)
    assert config.experts == ExpertsShape(6, 2, 3, 1, 1, 3, 2, 2.5, norm_topk_prob=False, corrected=False)
    assert (config.head_dim, config.rope_dim, config.kv_heads) == (5, 2, 2)
    assert config.attention_scale == pytest.approx((0.1 * math.log(4) + 1) ** 2 / math.sqrt(5), rel=1e-15)
    greedy = config_from_hf(DEEPSEEK_V2 | {"topk_method": "greedy", "n_group": None, "topk_group": None})
    assert (greedy.experts.n_group, greedy.experts.topk_group) == (1, 1)
    config = config_from_hf(DEEPSEEK_V3 | {"rope_interleave": False})
    assert config.latent == LatentShape(4, 2, 3, 5, 6, rope_interleave=False, normed=True)
    assert config.experts == ExpertsShape(6, 2, 3, 1, 1, 3, 2, 2.5, norm_topk_prob=True, corrected=True)
    # transformers leaves out of config.json what it holds to be known.
    bare = {k: v for k, v in DEEPSEEK_V3.items() if k not in ("topk_method", "scoring_func", "moe_layer_freq")}
    assert config_from_hf(bare) == config_from_hf(DEEPSEEK_V3)
    assert config_from_hf(DEEPSEEK_V2 | {"n_routed_experts": None}).experts is None
    assert config_from_hf(DEEPSEEK_V2 | {"num_key_value_heads": None}) == config_from_hf(DEEPSEEK_V2)


YARN = DEEPSEEK_V2["rope_scaling"]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (DEEPSEEK_V2, {"num_key_value_heads": 1}, r"num_key_value_heads \(1\) differs from num_attention_heads \(2\)"),
        (DEEPSEEK_V3, {"num_key_value_heads": 4}, r"num_key_value_heads \(4\) differs from num_attention_heads \(2\)"),
        (DEEPSEEK_V2, {"qk_rope_head_dim": 3}, "qk_rope_head_dim must be even"),
        (DEEPSEEK_V2, {"qk_rope_head_dim": 0}, "qk_rope_head_dim must be a positive integer, got 0"),
        (DEEPSEEK_V2, {"topk_method": "magic"}, "topk_method 'magic'"),
        (DEEPSEEK_V2, {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
        (DEEPSEEK_V3, {"topk_method": "greedy"}, "chosen by 'greedy' .* takes 'noaux_tc'"),
        (DEEPSEEK_V2, {"scoring_func": "sigmoid"}, "from 'sigmoid' scores .* deepseek_v2 takes .* 'softmax'"),
        (DEEPSEEK_V3, {"scoring_func": "softmax"}, "from 'softmax' scores .* deepseek_v3 takes .* 'sigmoid'"),
        (DEEPSEEK_V2, {"norm_topk_prob": True}, "norm_topk_prob=true is not computed for DeepSeek-V2"),
        (DEEPSEEK_V2, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK_V2, {"rope_scaling": YARN | {"attention_factor": 1.5}}, "attention_factor"),
        (DEEPSEEK_V2, {"rope_scaling": {"type": "yarn", "mscale": 1.0}}, r"lacks 'rope_scaling\.factor'"),
        (DEEPSEEK_V2, {"n_group": 4}, "6 experts cannot be divided into 4 equal groups"),
        (DEEPSEEK_V2, {"num_experts_per_tok": 5}, r"num_experts_per_tok must lie in .*got 5"),
        (DEEPSEEK_V3, {"n_group": 6}, "so each group needs two or more"),
        (DEEPSEEK_V2, {"hidden_act": "gelu"}, "'gelu'"),
        (DEEPSEEK_V3, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ],
)
def test_a_deepseek_configuration_not_computed_here(config, changes, message):
    config_from_hf(config)
    with pytest.raises(ValueError, match=message):
        config_from_hf(config | changes)


NEEDED = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
ROUTED = ("num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group")


@pytest.mark.parametrize("key", [*NEEDED, *ROUTED])
@pytest.mark.parametrize("without", ["key", "value"])
@pytest.mark.parametrize("config", [DEEPSEEK_V2, DEEPSEEK_V3], ids=["v2", "v3"])
def test_a_missing_key_of_a_deepseek_configuration(config, key, without):
    fields = {k: v for k, v in config.items() if k != key} | ({} if without == "key" else {key: None})
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        config_from_hf(fields)


# A checkpoint of another architecture.


def test_a_llama_checkpoint_that_says_it_is_deepseek(tmp_path):
    with pytest.raises(ValueError, match="lacks 'kv_lora_rank'"):
        load_folder(write_folder(tmp_path, {"model_type": "deepseek_v2", "num_key_value_heads": 2}))
    widths = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 2, "v_head_dim": 4}
    changes = {"model_type": "deepseek_v2", "num_key_value_heads": 2, "q_lora_rank": None} | widths
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.kv_a_proj_with_mqa\.weight' is missing"):
        load_folder(write_folder(tmp_path, changes))
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.q_a_proj\.weight' is missing"):
        load_folder(write_folder(tmp_path, changes | {"q_lora_rank": 3}))


LAYER = "model.layers.0."
LATENT_TENSORS = {n: s for n, s in SHAPES.items() if "_proj" not in n or "mlp" in n} | {
    f"{LAYER}self_attn.q_a_proj.weight": (6, 8),
    f"{LAYER}self_attn.q_a_layernorm.weight": (6,),
    f"{LAYER}self_attn.q_b_proj.weight": (10, 6),
    f"{LAYER}self_attn.kv_a_proj_with_mqa.weight": (6, 8),
    f"{LAYER}self_attn.kv_a_layernorm.weight": (4,),
    f"{LAYER}self_attn.kv_b_proj.weight": (16, 4),
    f"{LAYER}self_attn.o_proj.weight": (8, 10),
}
DENSE = {k: v for k, v in DEEPSEEK_V3.items() if "expert" not in k} | {"num_hidden_layers": 1}


def load_tensors(folder, shapes=LATENT_TENSORS, changes=()):
    (folder / "config.json").write_text(json.dumps(DENSE | dict(changes)))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return SafetensorsFolder(folder).load(torch.float64, CPU)


def test_a_deepseek_checkpoint_that_says_it_is_another(tmp_path):
    assert load_tensors(tmp_path).config.latent == LatentShape(4, 2, 3, 5, 6)
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' is missing"):
        load_tensors(tmp_path, changes={"q_lora_rank": None})
    with pytest.raises(ValueError, match=r"self_attn\.[qkv]_proj\.weight' is missing"):
        load_tensors(tmp_path, changes=CONFIG)
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.mlp\.gate\.weight' is missing"):
        load_tensors(tmp_path, changes={k: v for k, v in DEEPSEEK_V3.items() if "expert" in k} | {
            "first_k_dense_replace": 0})  # fmt: skip
    with pytest.raises(ValueError, match=r"q_a_proj\.bias' is missing"):
        load_tensors(tmp_path, changes={"attention_bias": True})
    extra = {f"{LAYER}self_attn.q_proj.weight": (10, 8)}
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' has no place"):
        load_tensors(tmp_path, LATENT_TENSORS | extra)


FURTHER = {name.replace("layers.0", "layers.1"): shape for name, shape in LATENT_TENSORS.items() if LAYER in name}
PREDICTS = FURTHER | {  # as DeepSeek-V3 stores it
    "model.layers.1.embed_tokens.weight": (7, 8),
    "model.layers.1.enorm.weight": (8,),
    "model.layers.1.hnorm.weight": (8,),
    "model.layers.1.eh_proj.weight": (8, 16),
    "model.layers.1.shared_head.norm.weight": (8,),
    "model.layers.1.shared_head.head.weight": (7, 8),
}


@pytest.mark.parametrize("said", [{}, {"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 3}])
def test_the_layer_that_predicts_a_token_further_is_left_out_and_named(tmp_path, said):
    with pytest.warns(UserWarning, match=r"model\.layers\.1\.\* is not loaded: multi-token prediction") as warnings:
        model = load_tensors(tmp_path, LATENT_TENSORS | PREDICTS, said)
    assert len(model.layers) == len(warnings) == 1
    assert "\n" not in str(warnings[0].message)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (PREDICTS, {"num_nextn_predict_layers": 0}),  # Kimi K2: it has none
        (FURTHER, {}),  # an ordinary layer: num_hidden_layers is wrong
        ({name.replace("layers.1", "layers.2"): shape for name, shape in PREDICTS.items()}, {}),
    ],
)
def test_another_further_layer_is_refused(tmp_path, tensors, said):
    with pytest.raises(ValueError, match=r"'model\.layers\.[12]\..*' has no place"):
        load_tensors(tmp_path, LATENT_TENSORS | tensors, said)


@pytest.mark.parametrize("name", sorted(LATENT_TENSORS))
def test_a_missing_tensor_of_a_deepseek_checkpoint(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        load_tensors(tmp_path, {n: s for n, s in LATENT_TENSORS.items() if n != name})


@pytest.mark.parametrize("name", sorted(LATENT_TENSORS))
@pytest.mark.parametrize("more", [-5, -1, 1, 2])
def test_a_tensor_of_another_shape_in_a_deepseek_checkpoint(tmp_path, name, more):
    rows, *rest = LATENT_TENSORS[name]
    if rows + more < 1:
        rows, more = 1 - more, more
    with pytest.raises(ValueError, match=rf"{name}: .* asks for shape"):
        load_tensors(tmp_path, LATENT_TENSORS | {name: (rows + more, *rest)})
