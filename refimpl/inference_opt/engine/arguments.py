"""What an engine is built from, checked before anything is built."""

from typing import Any

from inference_opt.model.transformer import Transformer
from inference_opt.values import integer, shown, switch

ARGUMENTS = {  # of engines elsewhere, and what to write here
    "enable_prefix_caching": "write radix=True or radix=False",
    "block_size": "write page_size=",
    "max_num_seqs": "write max_running=",
    "max_num_batched_tokens": "write token_budget=",
    "gpu_memory_utilization": "write num_pages=, the size of the KV cache",
    "kv_cache_memory_bytes": "write num_pages=, the size of the KV cache",
    "max_model_len": "the context's length is the model's own",
    "n_ctx": "the context's length is the model's own",
    "speculative_config": "write drafter=, and gamma= for the number of drafts a step",
    "speculative_model": "write drafter=SmallerModel(model), from inference_opt.speculative",
    "draft_model": "write drafter=SmallerModel(model), from inference_opt.speculative",
    "num_speculative_tokens": "write gamma=",
    "model_path": "load_model(path) returns the model and its tokenizer",
    "dtype": "it is an argument of load_model",
    "device": "it is an argument of load_model",
    "quantization": "weights are used as load_model reads them",
    "tensor_parallel_size": "see inference_opt.model.parallel",
    "seed": "it is an argument of SamplingParams",
    "rng": "a request's noise comes from its seed, an argument of SamplingParams",
}
METHODS = {  # of engines elsewhere
    "()": "write generate(prompt)",
    "chat": "give the messages to generate",
    "create_chat_completion": "give the messages to generate",
    "create_completion": "write generate(prompt)",
    "add_request": "write add(prompt)",
    "abort_request": "write abort(id)",
    "has_unfinished_requests": "write bool(engine.requests)",
    "get_tokenizer": "it is engine.tokenizer",
    "encode": "write engine.tokenizer.encode(text); generate takes text, too",
    "generate_text": "write generate(prompt).text",
    "stream_text": "write stream(prompt), whose deltas have .text",
    "stream_generate": "write stream(prompt), whose deltas have .text",
}


class Name(str):
    """The id of a request that was given none: shown without quotes, and equal to no id that a user could give."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and str.__eq__(self, other)

    def __repr__(self) -> str:
        return str(self)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Name, str(self)))


SIZES = {  # and the least that each can be, unless someone else checks it
    "page_size": None, "num_pages": None, "gamma": None,
    "token_budget": 1, "max_running": 1, "patience": 0, "draft_rows": 0, "decode_steps": 1,
}  # fmt: skip
OPTIONAL = ("num_pages", "gamma", "draft_rows")  # None stands for a default


def checked(model: Any, radix: Any, tokenizer: Any, **others: Any) -> tuple[Any, Any, Any, dict[str, int]]:
    """`page_size`, `num_pages`, `gamma` and the scheduler's limits, as integers. ValueError for anything else."""
    if isinstance(model, tuple) and model and isinstance(model[0], Transformer):
        raise ValueError("model must be a Transformer, got what load_model returns: model, tokenizer = load_model(…)")
    if not isinstance(model, Transformer):
        raise ValueError(f"model must be a Transformer, as load_model returns it first, got {shown(model)}")
    switch("radix", radix)
    if tokenizer is not None and not hasattr(tokenizer, "detokenizer"):
        raise ValueError(f"tokenizer must be a Tokenizer, as load_model returns it, or None, got {shown(tokenizer)}")
    sizes: dict[str, Any] = {
        name: None if name in OPTIONAL and others[name] is None else integer(name, others[name], least)
        for name, least in SIZES.items()
    }
    return sizes.pop("page_size"), sizes.pop("num_pages"), sizes.pop("gamma"), sizes
