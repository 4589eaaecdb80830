"""How long a draft should be: what its text's earlier drafts came to decides, and nothing that is being drawn.

A step of γ drafts costs 1 + γ c steps of the target and gives (1 − α^(γ+1)) / (1 − α) tokens if each draft is accepted
with probability α (2211.17192, Theorem 3.8; `cost.py`). α is estimated from the text's own past, recent drafts counting
more; where the best γ is 0, speculation is off, and tried again with a single draft after a while.

This does not bias the law: γ is fixed before the step's draft is drawn, from tokens that are settled.
"""

from dataclasses import dataclass

from inference_opt.speculative.cost import best_gamma

MEMORY = 0.9  # what a draft's outcome counts after the next
ROW_COST = 0.05  # what one more row costs the target, in steps (.04 to .06 on a CPU: `bench speculative`)
PATIENCE = 32  # steps until a text that went without drafts tries one


# [adaptive]
@dataclass
class Adaptive:
    """The length of one text's drafts: 0 to `most`. `cost` of a drafted token, in steps of the target."""

    cost: float
    most: int
    accepted: float = 2.0  # of the drafts judged so far, with a hopeful beginning
    rejected: float = 0.5
    idle: int = 0

    def gamma(self) -> int:
        """For the next step."""
        alpha = self.accepted / (self.accepted + self.rejected)
        best = best_gamma(alpha, self.cost + ROW_COST, self.most)
        return best or min(int(self.idle >= PATIENCE), self.most)

    def learn(self, drafted: int, accepted: int) -> None:
        """What became of a step's drafts: those behind the first rejection were not judged."""
        if drafted == 0:
            self.idle += 1
            return
        self.idle = 0
        self.accepted = MEMORY * self.accepted + accepted
        self.rejected = MEMORY * self.rejected + (accepted < drafted)


# [/adaptive]
