"""How long a draft should be: the fate of the text's earlier drafts decides, and nothing that is being drawn.

A step of γ drafts costs 1 + γ c steps of the target and gives (1 − α^(γ+1)) / (1 − α) tokens if each draft is accepted
with probability α (2211.17192, Theorem 3.8; `cost.py`). α is estimated from the text's own past, where recent drafts
count more. If the best γ is 0, speculation is off, and a single draft is tried again after a while.

This does not bias the output: γ is fixed before the step's draft is drawn, from tokens that are settled.
"""

from dataclasses import dataclass

from inference_opt.speculative.cost import best_gamma

DECAY = 0.9  # of the moving sums: a step's drafts count so much less after the next
ROW_COST = 0.05  # what one more row costs the target, in steps (.04 to .06 on a CPU: `bench speculative`)
PATIENCE = 32  # steps without drafts until a text tries one again


@dataclass
class Adaptive:
    """The length of one text's drafts: 0 to `max_gamma`. `cost` of a drafted token, in steps of the target."""

    cost: float
    max_gamma: int
    accepted: float = 2.0  # of the drafts judged so far; starts as if most had been accepted
    rejected: float = 0.5
    idle: int = 0

    @property
    def alpha(self) -> float:
        """The probability that a draft is accepted, as far as the past tells."""
        return self.accepted / (self.accepted + self.rejected)

    def gamma(self) -> int:
        """How many tokens to draft in the next step."""
        best = best_gamma(self.alpha, self.cost + ROW_COST, self.max_gamma)
        return best or min(int(self.idle >= PATIENCE), self.max_gamma)

    def learn(self, drafted: int, accepted: int) -> None:
        """Count a step's drafts. Those behind the first rejection were not judged, and do not count."""
        if drafted == 0:
            self.idle += 1
            return
        self.idle = 0
        self.accepted = DECAY * self.accepted + accepted
        self.rejected = DECAY * self.rejected + (accepted < drafted)
