"""Mistakes that implementations of DeepSeek's attention and routing have shipped, each put back into ours.

Four fixed models, one for each way that their checkpoints differ, are compared with `transformers` at every position,
in both forms, as one piece and in chunks over both caches. As it stands, our code passes; with `wrong` in the place of
`right`, in the source of one function, it does not. What a mistake leaves alone is said, too: a comparison of the
first position, or of unchunked prompts, would have let it pass.
"""

import inspect
import textwrap
from typing import NamedTuple

import pytest
import torch

from inference_opt.cache.contiguous import ContiguousBatch, ContiguousCache
from inference_opt.cache.paged import PagedBatch, PagedCache
from inference_opt.loading import checkpoint, formats
from inference_opt.model import mla
from inference_opt.model.attention import NoCache
from inference_opt.model.config import ModelConfig, RopeScaling
from inference_opt.model.experts import Router
from inference_opt.model.mla import LatentAttention, use_form
from inference_opt.model.rope import RopeTable
from tests.model.test_architectures import CPU, EXACT
from tests.model.test_deepseek import CLASSES, expected_logits
from tests.toys import run

SEEN = 1e-3  # of the largest logit: what a mistake changes, where it does
LENGTH = 40
CUTS = 7, 8, 30, LENGTH
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
    "beta_fast": 4,
    "beta_slow": 1,
}
SIZES = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 7,
    "n_routed_experts": 9,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 2e-3,
    "rope_parameters": YARN,
    "experts_implementation": "eager",
}
MODELS = {
    "v2": ("deepseek_v2", {"topk_method": "group_limited_greedy"}),
    "v2-lite": ("deepseek_v2", {"topk_method": "greedy", "q_lora_rank": None}),
    "v3": ("deepseek_v3", {"norm_topk_prob": True}),
    "v3-halves": ("deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{name: (folder, prompt, logits of transformers)}."""
    models = {}
    for seed, (name, (arch, options)) in enumerate(MODELS.items()):
        make_config, make_model = CLASSES[arch]
        model = make_model(make_config(**SIZES | options)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, p in (*model.named_parameters(), *model.named_buffers()):
                if "inv_freq" not in parameter:
                    p.normal_(1.0 if "norm" in parameter else 0.0, 0.5, generator=generator)
                if "kv_a_proj" in parameter or "q_a_proj" in parameter:
                    p.mul_(0.05)  # latents so small that the eps of their norms shows
        prompt = torch.randint(31, (LENGTH,), generator=generator)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        models[name] = folder, prompt, expected_logits(model, prompt)
    return models


def in_one_piece(model, prompt):
    return model(prompt, torch.arange(LENGTH), NoCache([LENGTH]))


def in_chunks(model, prompt, paged):
    kept = {"dtype": model.dtype, "device": CPU} | model.config.kv_shape
    if paged:
        pages = [5, 0, 11, 3, 12, 8, 1, 13, 4, 9, 2, 7, 10, 6]
        cache = PagedCache(**kept, num_pages=len(pages), page_size=3)
        batch = lambda a, b: cache.batch([pages], [a], [b - a])  # noqa: E731
    else:
        cache = ContiguousCache(**kept, capacity=[LENGTH])
        batch = lambda a, b: cache.batch([b - a])  # noqa: E731
    return torch.cat([run(model, prompt[a:b], batch(a, b)) for a, b in zip([0, *CUTS], CUTS)])


@torch.inference_mode()
def errors(saved):
    """Of every position, the largest logit's being 1: [form, whole or over which cache, position]."""
    folder, prompt, expected = saved
    model, scale = checkpoint.SafetensorsFolder(folder).load(torch.float64, CPU), expected.abs().amax(-1)
    ways = []
    for form in ("explicit", "absorbed"):
        use_form(model, form)
        logits = [in_one_piece(model, prompt), in_chunks(model, prompt, False), in_chunks(model, prompt, True)]
        ways.append(torch.stack([(each - expected).abs().amax(-1) / scale for each in logits]))
    return torch.stack(ways)


class Bug(NamedTuple):
    name: str  # with the thread where it was met, if it was
    model: str
    where: str  # it shows: "everywhere", "behind the first" position only, "in chunks" only, or "at loading"
    owner: object
    function: str
    right: str
    wrong: str


SCALE = "self.head_dim**-0.5 * corrected"
TO_HALVES = "_neighbours_to_halves(rotated.flatten(0, 1), len(by_head)).view(rotated.shape)"
NORMED = "latent = self.kv_latent_norm(latent)"
# fmt: off
BUGS = [
    # Rotary pairs
    Bug("neighbours are read as halves (transformers#39687)", "v2", "behind the first",
        checkpoint, "_latent_to_halves", TO_HALVES, "rotated"),
    Bug("halves are read as neighbours (vllm#26995)", "v3-halves", "behind the first",
        formats, "_latent_from_hf", 'fields.get("rope_interleave", FLAG, False)', "True"),
    Bug("the keys' rows are reordered and not the queries'", "v3", "behind the first",
        checkpoint, "_latent_to_halves", 'or "self_attn.q_b_proj" in name', ""),
    Bug("the queries' rows are reordered and not the keys'", "v2-lite", "behind the first",
        checkpoint, "_latent_to_halves", 'elif "self_attn.kv_a_proj_with_mqa" in name', "elif False"),
    # YaRN's scales
    *(Bug(f"YaRN's scale of the logits is {how}", model, "behind the first",
          RopeScaling, "logit_scale", "** 2", wrong)
      for model in ("v2", "v3")
      for how, wrong in (("missing (transformers#47435)", "** 0"), ("not squared", "** 1"),
                         ("squared twice", "** 4"), ("inverted", "** -2"))),
    Bug("YaRN's scale is not applied", "v2-lite", "behind the first",
        ModelConfig, "attention_scale", "* corrected", ""),
    Bug("cos and sin without YaRN's attention_factor", "v2", "behind the first",
        RopeTable, "__init__", "angle.cos() * factor, angle.sin() * factor", "angle.cos(), angle.sin()"),
    Bug("attention_factor as without mscale_all_dim", "v3", "behind the first",
        RopeScaling, "attention_factor", "if self.mscale and self.mscale_all_dim", "if False"),
    # The scale
    Bug("scaled by d_c + d_R (ollama#13893)", "v2", "behind the first",
        ModelConfig, "attention_scale", SCALE, 'self.kv_shape["head_dim"] ** -0.5 * corrected'),
    Bug("scaled by d_h", "v3", "behind the first",
        ModelConfig, "attention_scale", SCALE, "self.latent.qk_nope_head_dim**-0.5 * corrected"),
    # Norms of the latents
    Bug("no norm of the latent", "v2", "everywhere",
        LatentAttention, "forward", "if self.kv_latent_norm is not None", "if False"),
    Bug("no norm of the queries' latent (sglang#3072)", "v3", "behind the first",
        LatentAttention, "forward", "self.q_latent_norm(self.q_down(x))", "self.q_down(x)"),
    Bug("norms of the latents with the model's eps (transformers#44317)", "v2", "everywhere",
        LatentAttention, "__init__", "LATENT_EPS", "config.norm_eps"),
    Bug("the rotated key is normed with the latent", "v3", "behind the first",
        LatentAttention, "forward", NORMED, f"{NORMED}; k_rope = nn.functional.rms_norm(k_rope, k_rope.shape[-1:])"),
    # q_lora_rank none
    Bug("a norm of queries that have no latent (NVIDIA-NeMo/Megatron-Bridge#5261)", "v2-lite", "behind the first",
        LatentAttention, "forward", "x if shape.q_lora", "nn.functional.rms_norm(x, x.shape[-1:]) if shape.q_lora"),
    Bug("q_lora_rank null is DeepSeek-V2's", "v2-lite", "at loading",
        formats, "_latent_from_hf", '"q_lora_rank", SIZE, None)', '"q_lora_rank", SIZE, 1536)'),
    Bug("queries without a latent are looked for as if they had one", "v2-lite", "at loading",
        checkpoint, "_sources", "and config.latent.q_lora_rank is not None", ""),
    # The shared rotated key
    Bug("the rotated key is rotated twice", "v2", "behind the first",
        LatentAttention, "forward", "rotate(k_rope, *rope)", "rotate(rotate(k_rope, *rope), *rope)"),
    Bug("the key is not rotated", "v3", "behind the first",
        LatentAttention, "forward", "rotate(k_rope, *rope)", "k_rope"),
    Bug("only the first head has the rotated key", "v3", "behind the first",
        LatentAttention, "expand", "k_rope.expand(-1, self.kv_heads, -1)",
        "nn.functional.pad(k_rope, (0, 0, 0, self.kv_heads - 1))"),
    # Chunked prefill
    Bug("a chunk does not see the latents before it (vllm#26042)", "v2", "in chunks",
        LatentAttention, "over", "self.expand(kept)", "self.expand(kept[-len(q) :])"),
    Bug("a chunk, absorbed, does not see the latents before it", "v3", "in chunks",
        LatentAttention, "over", "absorbed, kept, kept[", "absorbed, kept[-len(q) :], kept[-len(q) :]["),
    Bug("a chunk's mask begins with the text", "v2", "in chunks",
        mla, "causal_attention", "torch.arange(keys - queries, keys, ", "torch.arange(queries, "),
    Bug("a chunk's positions begin at 0 (contiguous)", "v3", "in chunks",
        ContiguousBatch, "__init__", "torch.arange(new.start, new.stop, ", "torch.arange(new.stop - new.start, "),
    Bug("a chunk's positions begin at 0 (paged)", "v2", "in chunks",
        PagedBatch, "__init__", "torch.cat([none, *spans])", "torch.cat([none, *(span - span[0] for span in spans)])"),
    # Routing
    Bug("the correction, made to choose, weighs too", "v3", "everywhere",
        Router, "forward", "score.gather(1, chosen)", "choice.gather(1, chosen)"),
    Bug("the correction does not choose", "v3-halves", "everywhere",
        Router, "forward", "score if self.correction is None", "score if True"),
    *(Bug(f"groups do not limit ({m})", m, "everywhere",
          Router, "forward", "shape.n_group > 1", "False") for m in ("v2", "v3", "v3-halves")),
    *(Bug(f"a group's worth is its best expert's ({m})", m, "everywhere",
          Router, "forward", "topk(2, dim=-1)", "topk(1, dim=-1)") for m in ("v3", "v3-halves")),
    Bug("a group's worth is its two best experts' (v2)", "v2", "everywhere",
        Router, "forward", "if shape.corrected else grouped", "if True else grouped"),
    *(Bug(f"no routed_scaling_factor ({m})", m, "everywhere",
          Router, "forward", "weights * shape.routed_scaling_factor", "weights") for m in MODELS),
    Bug("norm_topk_prob is not heeded where true", "v3", "everywhere",
        Router, "forward", "if shape.norm_topk_prob", "if False"),
    Bug("norm_topk_prob is not heeded where false", "v3-halves", "everywhere",
        Router, "forward", "if shape.norm_topk_prob", "if True"),
    Bug("V3 scores by softmax", "v3", "everywhere",
        Router, "forward", "affinity.sigmoid() if", "affinity.softmax(-1) if"),
    Bug("V2 scores by sigmoid", "v2", "everywhere",
        Router, "forward", "else affinity.softmax(dim=-1)", "else affinity.sigmoid()"),
]
# fmt: on


@pytest.mark.parametrize("model", MODELS)
def test_holds(saved, model):
    assert errors(saved[model]).max() < EXACT


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.model}: {bug.name}")
def test_the_bug_put_back_is_seen(monkeypatch, saved, bug):
    whole = inspect.getattr_static(bug.owner, bug.function)
    function = inspect.unwrap(whole.fget if isinstance(whole, property) else whole)
    source, scope = textwrap.dedent(inspect.getsource(function)), {}
    assert bug.right in source, "the source has changed: put the same mistake into the new one"
    # Outside its class, a function knows no super().
    wrong = source.replace(bug.right, bug.wrong).replace("super()", f"super({bug.owner.__name__}, self)")
    exec(wrong, function.__globals__, scope)
    monkeypatch.setattr(bug.owner, bug.function, scope[bug.function])
    if bug.where == "at loading":
        with pytest.raises(ValueError, match=r"self_attn\.q_\w+\.weight' is missing"):
            errors(saved[bug.model])
        return
    seen = errors(saved[bug.model])
    assert seen[..., 1:].max() > SEEN
    if bug.where == "behind the first":
        assert seen[..., 0].max() < EXACT
    elif bug.where == "in chunks":
        assert max(seen[:, 0].max(), seen[..., : CUTS[0]].max()) < EXACT
    elif bug.owner is not Router:  # there, a token may be routed right by chance
        assert seen[..., 0].min() > SEEN
