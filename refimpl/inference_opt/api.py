"""One class with a switch for each technique: the shortest way to try them, alone and together."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inference_opt.cache import generate as static
from inference_opt.conversion.pretrained import latent_model
from inference_opt.engine.engine import Engine
from inference_opt.engine.speculation import CHAIN_RULES, Rule
from inference_opt.engine.stats import Stats
from inference_opt.loading.load import load_model, parse_device, parse_dtype
from inference_opt.loading.tokenizer import Tokenizer, needed
from inference_opt.model.attention import NoCache
from inference_opt.model.config import LatentShape, ModelConfig
from inference_opt.model.transformer import Transformer, check_fits
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.drafter import Drafter
from inference_opt.speculative.models import FirstLayers, SmallerModel
from inference_opt.values import integer, shown, switch

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Arguments that a pretrained model determines itself.
SIZES = {"dim", "depth", "heads", "vocab_size", "kv_heads", "ffn_dim", "max_context", "seed"}


class TransformerWithOptimizations(nn.Module):
    """A transformer, and the techniques that generate with it.

    A model that is built from sizes has random weights (drawn from `seed`), which train like any module's.
    `from_pretrained` loads real ones. `kv_heads` defaults to `heads` (multi-head attention), and `ffn_dim` to 8/3 · dim
    rounded up to a multiple of 64, as in Llama.

    `use_radix_attention`: `generate` runs on an `Engine` (in `self.engine`), which remembers the prefixes of earlier
    calls until a weight changes. `page_size` (16 unless given) and `num_pages` are the engine's. On CUDA the kernels of
    `kernels/` attend to its pages.

    `use_speculative_decoding`: the engine drafts with `speculative_model`, which is a `Drafter`, a smaller model of the
    same vocabulary, or None for the model's own first layers. `rule` judges the drafts; None leaves the choice to the
    engine. (With `coupled`, a seed gives the same text with speculation and without.)

    `use_mla`: attention keeps one latent of width `mla_latent_dim` (d_c; four heads by default) and one rotated key of
    half a head's width, as DeepSeek-V2 does. A pretrained grouped-query model is converted; see `from_pretrained`.

    What was made from the weights, the engine's prefixes and a packed copy (`linear.py`), is dropped when a weight
    changes, in whatever way. To notice this, every `generate` that would use it reads all weights, which takes as long
    as a few more tokens. One change is not noticed: `p.data.copy_` and the like on a pretrained weight that is packed
    (float32 and bfloat16 on a CPU). Call `forget` after such a change. Call it after training a drafter, too: the
    engine keeps the drafter as it was when the engine was made.

    A copy (`copy.deepcopy`, pickle, `torch.save`) has the weights and switches, but no engine.
    ValueError for impossible sizes, sizes that do not fit in memory, and options that would have no effect.
    """

    def __init__(
        self,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        use_radix_attention: bool = False,
        use_mla: bool = False,
        use_speculative_decoding: bool = False,
        mla_latent_dim: int | None = None,
        speculative_model: Any = None,
        *,
        vocab_size: int = 32_000,
        kv_heads: int | None = None,
        ffn_dim: int | None = None,
        max_context: int = 2048,
        page_size: int | None = None,
        num_pages: int | None = None,
        rule: Rule | None = None,
        seed: int = 0,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        dim = integer("dim", dim, 1)
        depth = integer("depth", depth, 1)
        heads = integer("heads", heads, 1)
        seed = integer("seed", seed, 0)
        use_radix_attention = switch("use_radix_attention", use_radix_attention)
        use_mla = switch("use_mla", use_mla)
        use_speculative_decoding = switch("use_speculative_decoding", use_speculative_decoding)
        page_size = None if page_size is None else integer("page_size", page_size, 1)
        num_pages = None if num_pages is None else integer("num_pages", num_pages, 1)
        if rule is not None and rule not in CHAIN_RULES:
            known = ", ".join(each.__name__ for each in CHAIN_RULES)
            raise ValueError(f"rule must be one of {known}, got {shown(rule)}")
        if rule is not None and not use_speculative_decoding:
            raise ValueError("rule has no effect: the switch it belongs to, use_speculative_decoding, is off")
        paged = use_radix_attention or use_speculative_decoding
        for name, given, on in (
            ("mla_latent_dim", mla_latent_dim, use_mla),
            ("speculative_model", speculative_model, use_speculative_decoding),
            ("page_size", page_size, paged),
            ("num_pages", num_pages, paged),
        ):
            if given is not None and not on:
                raise ValueError(f"{name} has no effect: the switch it belongs to is off")
        self.drafter = _drafter(speculative_model) if use_speculative_decoding else None
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads})")
        latent = _latent_shape(dim // heads, mla_latent_dim) if use_mla else None
        config = ModelConfig(
            vocab_size=vocab_size,
            dim=dim,
            depth=depth,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim if latent else dim // heads,
            latent=latent,
            ffn_dim=-(-8 * dim // 3 // 64) * 64 if ffn_dim is None else ffn_dim,
            max_context=max_context,
        )
        where = parse_device(device)
        kind = parse_dtype(dtype)
        check_fits(config, kind, where)
        self.model = Transformer(config).init_weights(seed).to(device=where, dtype=kind)
        self.tokenizer: Tokenizer | None = None
        self.use_radix_attention = use_radix_attention
        self.num_pages = num_pages
        self.page_size = 16 if page_size is None else page_size
        self.rule = rule
        self.forget()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, dtype: torch.dtype | str = torch.float32, device: str = "cpu", **switches: Any
    ) -> "TransformerWithOptimizations":
        """The same switches on real weights, from a `source` as in `load_model`.

        With `use_mla`, "smollm2-135m" takes the packaged, healed factors (rank 96 + 32). At another `mla_latent_dim`,
        and for any other model, the layers are factorised anew on the built-in prompts, and not healed. ValueError for
        an `mla_latent_dim` if the model has latent attention already, and for sizes, which the source determines.

        The weights are frozen and packed for inference. To train them, call `requires_grad_()` before you make an
        optimiser.
        """
        if sizes := sorted(SIZES & switches.keys()):
            raise ValueError(f"{', '.join(sizes)} cannot be chosen: {source} has sizes and weights of its own")
        self = cls(dim=4, depth=1, heads=1, vocab_size=1, **switches)  # checks the switches; its tiny model is replaced
        self.model, self.tokenizer = load_model(source, dtype=dtype, device=device)
        given = switches.get("mla_latent_dim")
        latent = self.model.config.latent
        if latent is not None and given is not None:
            own = f"it has latent attention of rank {latent.kv_lora_rank} already"
            raise ValueError(f"{source} cannot be converted to mla_latent_dim = {given}: {own}; leave the rank out")
        if switches.get("use_mla") and latent is None:
            rank = {} if given is None else {"rank": given}
            self.model = latent_model(self.model, needed(self.tokenizer), source, **rank)
        return self

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits after every token, without a cache, for training and for measuring perplexity."""
        batch, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device).repeat(batch)
        return self.model(input_ids.flatten(), positions, NoCache([length] * batch)).unflatten(0, (batch, length))

    def generate(
        self, input_ids: Int[Tensor, "batch length"], max_length: int | None = None, n: int = 1, **sampling: Any
    ) -> Tensor:
        """Continue every row: [batch · n, ≤ max_length].

        Give either `max_length`, which counts the prompt, or `max_new_tokens`, which does not.
        `n`: samples for each row, those of the first row before those of the second, each with a seed of its own
        (`SamplingParams.split`). `sampling`: fields of `SamplingParams`; decoding is greedy by default.
        A row that ends early is filled with the end-of-sequence token that ended it. After a stop string it is filled
        with the model's first end-of-sequence token or, if the model has none, with the row's last token. ValueError
        for rows that the model cannot continue, or whose logits are broken, and for a `max_length` that leaves no place
        for a new token.
        """
        if not isinstance(input_ids, Tensor):
            hint = "torch.tensor([[…], […]]); for text, take an Engine"
            raise ValueError(f"input_ids must be a [batch, length] tensor of integers, got {shown(input_ids)}: {hint}")
        if input_ids.ndim != 2 or input_ids.dtype not in INTEGERS:
            got = f"{input_ids.dtype} {tuple(input_ids.shape)}"
            raise ValueError(f"input_ids must be a [batch, length] tensor of integers, got {got}")
        last = self.model.config.vocab_size - 1
        if torch.iinfo(input_ids.dtype).max < last:
            raise ValueError(f"input_ids are {input_ids.dtype}, which cannot hold token {last}: take torch.int64")
        length = input_ids.shape[1]
        if (max_length is None) == (not {"max_new_tokens", "max_tokens"} & sampling.keys()):
            raise ValueError("expected max_length, which counts the prompt, or max_new_tokens, which does not")
        if max_length is not None and integer("max_length", max_length) <= length:
            raise ValueError(f"max_length ({max_length}) must exceed the prompt's {length} tokens")
        new: dict[str, Any] = {} if max_length is None else {"max_new_tokens": max_length - length}
        params = SamplingParams(**new, **sampling)
        if params.logprobs:
            raise ValueError("logprobs has no effect here: tokens are returned. The requests of an Engine have them")
        if params.gamma is not None and self.drafter is None:
            raise ValueError("gamma has no effect: the switch it belongs to, use_speculative_decoding, is off")
        prompts = input_ids.tolist()
        model = self._prepared()
        if self.engine is not None:
            with warnings.catch_warnings(action="ignore"):  # of what is an error here
                completions = self.engine.generate(prompts, params, n)
            for i, completion in enumerate(completions):
                if completion.error:
                    raise ValueError(f"row {i} could not be continued: {completion.error}")
            texts = [completion.tokens for completion in completions]
        else:
            texts = static.generate(model, prompts, params, self.tokenizer, n)
        prompts = [prompt for prompt in prompts for _ in range(n)]
        longest = max(map(len, texts))
        ends = self.model.config.eos_token_ids
        fill = [text[-1] if text[-1] in ends or not ends else ends[0] for text in texts]
        rows = [prompt + text + [end] * (longest - len(text)) for prompt, text, end in zip(prompts, texts, fill)]
        return torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)

    @property
    def stats(self) -> Stats | None:
        """Of the engine that `generate` made; None before, and where the switches need no engine."""
        return self.engine.stats if self.engine else None

    def forget(self) -> None:
        """Forget what was made from the weights so far: the engine, its prefixes, and the packed copy."""
        self.engine: Engine | None = None  # made by `generate`
        # A snapshot of the weights, and the packed model to decode with. (In a tuple it is no submodule of this one.)
        self._snapshot: tuple[Weights, Transformer] | None = None

    def requires_grad_(self, requires_grad: bool = True) -> "TransformerWithOptimizations":
        """As any module's. Weights that get gradients are unpacked, so call it before making an optimiser."""
        self.model.requires_grad_(requires_grad)
        return self

    def _prepared(self) -> Transformer:
        """The model to decode with. Makes the engine if the switches need one, and again if a weight has changed."""
        on_engine = self.use_radix_attention or self.drafter is not None
        if self._snapshot and self._snapshot[1] is self.model and not on_engine:
            return self.model  # nothing was made from the weights
        weights = Weights(self.model)
        if self._snapshot is None or not weights.same(self._snapshot[0]):
            self.forget()
            self._snapshot = weights, self.model.packed()
        model = self._snapshot[1]
        if self.engine is None and on_engine:
            self.engine = Engine(
                model,
                tokenizer=self.tokenizer,
                radix=self.use_radix_attention,
                drafter=self.drafter,
                page_size=self.page_size,
                num_pages=self.num_pages,
                rule=self.rule,
            )
        return model

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"engine": None, "_snapshot": None}


class Weights:
    """A snapshot of a model's weights that is just enough to notice a change.

    Some writes to a weight (through `p.data` or numpy) do not change its `_version`. So the snapshot holds the sums of
    its bits, as integers modulo 2⁶⁴, along every row and every column. The bits of packed weights cannot be read: of
    these it holds version and address.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = list(model.parameters())
        address = torch.ops.mkldnn.data_ptr if any(p.is_mkldnn for p in weights) else None
        self.known = [
            (id(p), p._version, p.dtype, p.device, address(p) if address and p.is_mkldnn else None) for p in weights
        ]
        self.sums = torch.cat([each for p in weights if not p.is_mkldnn for each in _sums(p.detach())])

    def same(self, other: "Weights") -> bool:
        """Whether the two snapshots are of the same weights."""
        return self.known == other.known and torch.equal(self.sums, other.sums)


def _sums(weight: Tensor) -> tuple[Int[Tensor, "columns"], Int[Tensor, "rows"]]:
    """Sums of a weight's bits along columns and rows: eight bytes at a time if rows are multiples of eight bytes."""
    rows = weight.contiguous().view(-1, weight.shape[-1])
    whole = (rows.shape[1] * weight.itemsize % 8, rows.storage_offset() * weight.itemsize % 8) == (0, 0)
    bits = rows.view(torch.int64 if whole else {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])
    return bits.sum(0), bits.sum(1)


def _latent_shape(head_dim: int, latent_dim: int | None) -> LatentShape:
    """The latent in DeepSeek-V2's proportions: d_c = 4 d_h, d_R = d_h / 2 (an even number)."""
    rank = 4 * head_dim if latent_dim is None else latent_dim
    return LatentShape(rank, max(2, head_dim // 4 * 2), qk_nope_head_dim=head_dim, v_head_dim=head_dim)


def _drafter(given: Any) -> Drafter:
    if given is None:
        return FirstLayers()
    if isinstance(given, TransformerWithOptimizations):
        given = given.model
    if isinstance(given, Transformer):
        return SmallerModel(given)
    if isinstance(given, Drafter):
        return given
    raise ValueError(f"speculative_model must be a model, a Drafter, or None, got {shown(given)}")
