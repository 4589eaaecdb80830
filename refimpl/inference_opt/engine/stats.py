"""What an engine says of itself: a step's outputs, and totals."""

from dataclasses import dataclass

from inference_opt.engine.request import Request


@dataclass(frozen=True)
class Output:
    """What a step did for one request: fed `count` tokens from `start` on and `drafted` behind them, emitted `tokens`.

    Without a draft that is one token, or none while there is prompt left.
    """

    request: Request
    start: int
    count: int
    tokens: list[int]
    drafted: list[int]

    @property
    def fed(self) -> int:
        """Tokens that went through the model, drafts included."""
        return self.count + len(self.drafted)


@dataclass
class Stats:
    """Totals since the engine was made; a rate is of what was asked for."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0  # emitted by requests in decode
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    run_seconds: float = 0.0  # the model, sampling and acceptance
    draft_seconds: float = 0.0
    schedule_seconds: float = 0.0  # everything else of a step: scheduler, tree, pool, commit
    preemptions: int = 0
    evicted_pages: int = 0
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
