"""What an engine says of itself: a step's outputs, and totals."""

from dataclasses import asdict, dataclass, field

from inference_opt.engine.request import Request
from inference_opt.values import brief


@dataclass(frozen=True, repr=False)
class Output:
    """What a step did for one request: fed `count` tokens from `start` on and `drafted` behind them, emitted `tokens`.

    Without a draft that is one token, or none while there is prompt left.
    """

    request: Request
    start: int
    count: int
    tokens: list[int]
    drafted: list[int]

    def __repr__(self) -> str:
        drafted = f" and {len(self.drafted)} drafts" * bool(self.drafted)
        return f"<Output {brief(self.request.id)}: fed {self.count} tokens{drafted}, emitted {brief(self.tokens)}>"

    @property
    def fed(self) -> int:
        """Tokens that went through the model, drafts included."""
        return self.count + len(self.drafted)


@dataclass(repr=False)
class Stats:
    """Totals since the engine was made, and rates that follow from them."""

    steps: int = 0
    prefill_tokens: int = 0
    new_tokens: int = 0  # emitted
    decode_tokens: int = 0  # of these, by requests in decode
    steps_by_drafts: dict[int, int] = field(default_factory=dict)  # of all texts in decode, if there is a drafter
    why: str = ""  # the engine's last choice of a draft length, in words
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    run_seconds: float = 0.0  # the model, sampling and acceptance
    draft_seconds: float = 0.0
    schedule_seconds: float = 0.0  # the rest of a step: scheduler, tree, pool, commit
    preemptions: int = 0
    evicted_pages: int = 0  # that left the tree: evicted, dropped after a failed step, or by `Engine.forget`
    pages: int = 0  # in the pool
    pages_cached: int = 0  # of these, the tree's
    pages_private: int = 0  # and those that belong to one running request

    @property
    def hit_rate(self) -> float:
        """Share of the known tokens of admitted requests that were found and not computed."""
        asked = self.cached_tokens + self.prefill_tokens
        return self.cached_tokens / asked if asked else 0.0

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were kept."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.run_seconds + self.draft_seconds + self.schedule_seconds

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second of all steps, those of prefill included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        parts = [f"{self.new_tokens} new tokens in {self.steps} steps", f"{self.tokens_per_second:,.1f} tokens/s"]
        parts += [f"{self.hit_rate:.0%} of {self.cached_tokens + self.prefill_tokens} known tokens found in the cache"]
        if self.drafted_tokens:
            parts.append(f"{self.acceptance:.0%} of {self.drafted_tokens} drafts accepted")
        parts += [self.why] * bool(self.why)
        return f"<Stats {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        """A table, for a notebook: every field, and the rates that follow from them."""
        rates = {name: getattr(self, name) for name in ("seconds", "tokens_per_second", "hit_rate", "acceptance")}
        fields = (asdict(self) | rates).items()
        shown = {float: "{:,.3f}", int: "{:,}"}
        rows = [(name, shown.get(type(value), "{}").format(value)) for name, value in fields]
        cells = "".join(f"<tr><td>{name.replace('_', ' ')}</td><td>{value}</td></tr>" for name, value in rows)
        return f"<table>{cells}</table>"
