"""Other projects' decoders on CUDA, measured beside the engine: the same shape, random weights, the same prompts."""

import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inference_opt.environment import elapsed
from inference_opt.model.config import ExpertsShape, ModelConfig
from inference_opt.model.transformer import count_weights

# Prompts, new tokens → seconds of prefill, tokens a second in decode (None if it cannot be told from noise).
Decoder = Callable[[list[list[int]], int], tuple[float, float | None]]


def _shape(config: ModelConfig) -> Any:
    """`transformers`' configuration of this shape. ValueError if it is not installed."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ValueError("--peer needs transformers: pip install 'inference-opt[test]', or say --no-peer") from error
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tied_embeddings,
    }
    latent = config.latent
    if latent is None:
        if config.experts:
            raise ValueError("the peers have no model of this shape: grouped queries, and experts with shared ones")
        return AutoConfig.for_model("llama", **sizes, attn_implementation="sdpa")
    # A model without experts is one whose first layers, all of them, are dense.
    experts = config.experts or ExpertsShape(2, 1, 1, 1, first_k_dense_replace=config.depth)
    v2, method, scoring = "deepseek_v2", "greedy" if experts.n_group == 1 else "group_limited_greedy", "softmax"
    version, method, scoring = ("deepseek_v3", "noaux_tc", "sigmoid") if experts.corrected else (v2, method, scoring)
    names = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    of_experts = ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"]
    of_experts += ["first_k_dense_replace", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"]
    return AutoConfig.for_model(
        version,
        **sizes,
        **{name: getattr(latent, name) for name in names},
        **{name: getattr(experts, name) for name in of_experts},
        topk_method=method,
        scoring_func=scoring,
        moe_layer_freq=1,
        rms_norm_eps=config.norm_eps,
    )


def _llama(config: ModelConfig) -> Any:
    """`transformers`' model of this shape, with random weights and no end token."""
    shape = _shape(config)
    from transformers import AutoModelForCausalLM

    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape).bfloat16().eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def transformers(config: ModelConfig) -> Decoder:
    """The decoder `generate` of `transformers`."""
    model = _llama(config)

    def seconds(prompts: list[list[int]], new: int) -> float:
        began = time.perf_counter()
        ids = torch.tensor(prompts, device="cuda")
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert out.shape[1] == len(prompts[0]) + new
        torch.cuda.synchronize()
        return elapsed(began)

    return _decoder(seconds)


def continuous_batching(config: ModelConfig) -> Decoder:
    """`transformers`' `generate_batch`: continuous batching on a paged cache, set up once."""
    model = _llama(config)
    from transformers import GenerationConfig

    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    @torch.no_grad()
    def seconds(prompts: list[list[int]], new: int) -> float:
        began = time.perf_counter()
        out = model.generate_batch(prompts, generation_config=greedy, max_new_tokens=new, persistent_manager=True)
        assert sorted(len(each.generated_tokens) for each in out.values()) == [new] * len(prompts)
        return elapsed(began)

    return _decoder(seconds)


def _decoder(seconds: Callable[[list[list[int]], int], float]) -> Decoder:
    """The decoder of a peer that does not report its first tokens: the time of a run with one token is subtracted.

    On a busy machine the run with one token may take longer than the whole one. Then there is no rate.
    """

    def decode(prompts: list[list[int]], new: int) -> tuple[float, float | None]:
        whole = seconds(prompts, new)  # first, so that what a peer sets up has room for all tokens
        first = seconds(prompts, 1)
        return first, len(prompts) * (new - 1) / (whole - first) if whole > first else None

    return decode


def has_vllm(config: ModelConfig) -> bool:
    """Whether vLLM is installed, and has a model of this shape."""
    return importlib.util.find_spec("vllm") is not None and bool(config.latent or not config.experts)


def _draw(model: torch.nn.Module) -> None:
    """Random weights as `Transformer.init_weights` makes them."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.fill_(1.0)
            else:
                p.normal_(0.0, 0.02)


def vllm_engine(folder: str, **options: Any) -> tuple[Any, Any]:
    """The library, and its engine in this process for the model in a folder."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    library: Any = importlib.import_module("vllm")
    fixed = {"skip_tokenizer_init": True, "max_model_len": 4_096, "max_num_seqs": 256, "enable_prefix_caching": False}
    return library, library.LLM(folder, dtype="bfloat16", disable_log_stats=True, **(fixed | options))


@cache
def vllm(config: ModelConfig) -> Callable[[dict[str, Any]], Decoder]:
    """vLLM's engine in this process, made once for a shape, with random weights; how requests sample → its decoder.

    It keeps two fifths of the card's memory, so that there is room for two shapes and for ours; more where its weights
    need more. (Then there is room for this shape alone.)

    A router of vLLM's own random weights sends all tokens to much the same experts, which reads less. So the weights of
    a mixture of experts are drawn again, as `random_model` draws ours.
    """
    shape = _shape(config)
    names = {"llama": "Llama", "deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}
    shape.architectures = [f"{names[shape.model_type]}ForCausalLM"]
    shape.dtype = torch.bfloat16
    needed = 2 * count_weights(config) / torch.cuda.mem_get_info()[1] + 0.1
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        library, llm = vllm_engine(folder, load_format="dummy", gpu_memory_utilization=max(0.4, needed))
    if config.experts:
        llm.apply_model(_draw)

    def sampled(how: dict[str, Any]) -> Decoder:
        how = {"temperature": 0.0} | how | ({"logprobs": 0} if how.get("logprobs") else {})

        def seconds(prompts: list[list[int]], new: int) -> float:
            params = library.SamplingParams(max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False, **how)
            began = time.perf_counter()
            out = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
            assert all(len(each.outputs[0].token_ids) == new for each in out)
            return elapsed(began)

        return _decoder(seconds)

    return sampled


def gpt_fast(config: ModelConfig, folder: Path, longest: int) -> Decoder:
    """gpt-fast's model from a checkout (github.com/pytorch-labs/gpt-fast), compiled as in its `generate.py`.

    One request, greedy. ValueError if the folder holds no gpt-fast.
    """
    if not (folder / "model.py").is_file():
        raise ValueError(f"{folder} holds no model.py: expected a checkout of github.com/pytorch-labs/gpt-fast")
    sys.path.insert(0, str(folder))
    module: Any = importlib.import_module("model")
    sys.path.remove(str(folder))
    torch._inductor.config.coordinate_descent_tuning = True
    args = module.ModelArgs(
        vocab_size=config.vocab_size,
        dim=config.dim,
        n_layer=config.depth,
        n_head=config.heads,
        n_local_heads=config.kv_heads,
        intermediate_size=config.ffn_dim,
        rope_base=config.rope_theta,
    )
    with torch.device("cuda"):
        model = module.Transformer(args).bfloat16().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, 0.0, 0.02)
        model.setup_caches(max_batch_size=1, max_seq_length=longest)

    def one(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        best: torch.Tensor = model(token, position)[:, -1].argmax(dim=-1, keepdim=True)
        return best

    compiled = torch.compile(one, mode="reduce-overhead", fullgraph=True)

    @torch.inference_mode()
    def decode(prompts: list[list[int]], new: int) -> tuple[float, float]:
        began = time.perf_counter()
        ids = torch.tensor(prompts, device="cuda")
        token = one(ids, torch.arange(ids.shape[1], device="cuda"))
        position = torch.tensor([ids.shape[1]], device="cuda")
        torch.cuda.synchronize()
        prefilled = time.perf_counter()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # its own choice for one token
            for _ in range(new - 1):
                token = compiled(token, position).clone()
                position += 1
        torch.cuda.synchronize()
        return prefilled - began, (new - 1) / elapsed(prefilled)

    return decode
