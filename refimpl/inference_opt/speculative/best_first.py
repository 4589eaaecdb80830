"""Trees of drafts from a model: the continuations that it holds most probable (EAGLE-2, Li et al. 2406.16858).

    P(node) = the product of the drafter's probabilities from the root to the node
    tree    = the γ nodes of largest P, without those below `least`: a parent's P is not below its child's, so they
              are a tree

Only a node that was read has children. Each round reads the best nodes that are unread, of all texts together, until no
unread node could have a child in the tree, or until those that could are not worth a round. A round reads those whose P
is at least SHARE of the best one's: fewer would take more rounds, more would read nodes that drop out again. At most γ
nodes are read: the text has pages for these.

With the rules `tree` and `multi_draft` the tree follows from the text: nothing is drawn. So a draft's distribution is a
point mass, for which they are exact. (Leaving out a child that was *drawn*, because it is improbable, would bias the
output.)

Where the target's own draws decide (`coupled_tree.py`), the drafter knows their noise. At temperature T the target
takes the token with the largest z + T · G: z are its logits, G is Gumbel noise (`sampling/noise.py`). The drafter's own
logits are a guess of z. So its probability that the target takes a token is softmax(z + T · G); at T = 0 it is
softmax(z), as for greedy text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, inf, log
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inference_opt.kernels.tree import TreeRows, tree_rows
from inference_opt.sampling.distribution import weights
from inference_opt.speculative.drafter import Draft, DraftRequest

SHARE = 0.25
# In rows of the target. A round of the drafter costs two or three, and about half of the P of its nodes passes to their
# children.
ROUND = 4.0


@dataclass
class Growth:
    """One text's tree while it grows. Nodes are numbered as they were found, each after its parent; −1 is the text."""

    request: DraftRequest
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)  # log P
    depths: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)  # the nodes that the drafter has read, in the order of its slots
    noises: dict[int, Tensor] = field(default_factory=dict)  # T · G of the scored tokens, by depth

    def add(self, parent: int, tokens: Sequence[int], logs: Sequence[float]) -> None:
        """Children of a node, or of the text, with their log-probabilities."""
        above, depth = (0.0, 0) if parent < 0 else (self.logs[parent], self.depths[parent])
        for token, each in zip(tokens, logs):
            self.tokens.append(token)
            self.parents.append(parent)
            self.logs.append(above + min(each, 0.0))
            self.depths.append(depth + 1)

    def raced(self, logits: Float[Tensor, "scored"], parent: int, drafter: "TreeDrafter") -> Float[Tensor, "scored"]:
        """The drafter's logits behind a node, with the noise of the target's draw there."""
        params, noise = self.request.text.params, self.request.noise
        if noise is None or params.temperature == 0:
            return logits
        depth = 0 if parent < 0 else self.depths[parent]
        if depth not in self.noises:
            tokens = drafter.scored(torch.arange(len(logits), device=logits.device)[None])[0]
            gumbel = noise.gumbel(depth, tokens.numpy(force=True))
            self.noises[depth] = (params.temperature * torch.from_numpy(gumbel)).to(logits)
        return torch.where(weights(logits, params) > 0, logits + self.noises[depth], -inf)

    @property
    def best(self) -> list[int]:
        """The γ nodes of largest P, from the largest on. A node never comes before its parent."""
        least = log(self.request.least) if self.request.least else -inf
        able = [node for node, each in enumerate(self.logs) if each >= least]
        return sorted(able, key=lambda node: (-self.logs[node], node))[: self.request.gamma]

    def unread(self) -> list[int]:
        """The nodes to read next: none if they are too improbable to be worth a round.

        The last of a full tree is not read: its children would not be among the γ best.
        """
        request = self.request
        assert request.depth is not None
        best = self.best[: request.gamma - 1]
        able = [node for node in best if node not in self.read and self.depths[node] < request.depth]
        bound = self.logs[able[0]] + log(SHARE) if able else 0.0
        nodes = [node for node in able if self.logs[node] >= bound][: request.gamma - len(self.read)]
        return nodes if sum(exp(self.logs[node]) for node in nodes) >= ROUND * request.least else []

    def rows(self, position: int, nodes: int) -> TreeRows:
        """Of the last `nodes` nodes that were read. `position`: that of the text's children."""
        places = {node: row for row, node in enumerate(self.read)}
        parents = [places.get(self.parents[node], -1) for node in self.read]
        return tree_rows(parents, position).after(len(self.read) - nodes)

    def draft(self) -> Draft:
        """The tree, the most probable drafts first: a smaller tree would have been the first of them."""
        chosen = self.best
        places = {node: i for i, node in enumerate(chosen)}
        parents = [places.get(self.parents[node], -1) for node in chosen]
        return Draft([self.tokens[node] for node in chosen], parents=parents)


@dataclass(frozen=True)
class Branch:
    """Nodes of one text's tree to be read: the last `count` of those that `growth.read` lists."""

    growth: Growth
    count: int

    @property
    def tokens(self) -> list[int]:
        """Those of the nodes."""
        return [self.growth.tokens[node] for node in self.growth.read[-self.count :]]

    @property
    def before(self) -> int:
        """How many nodes were read earlier: they lie in the slots before."""
        return len(self.growth.read) - self.count


@runtime_checkable
class TreeDrafter(Protocol):
    """What a drafter must be able to do."""

    def first(self, requests: Sequence[DraftRequest]) -> Float[Tensor, "requests dim"]:
        """The state behind each text's last token."""
        ...

    def branch(self, branches: Sequence[Branch], states: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes dim"]:
        """Read the nodes of each branch; return the states behind them. `states`: those behind their parents."""
        ...

    def logits(self, states: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes scored"]:
        """Scores of the next token, for each token that the drafter scores."""
        ...

    def scored(self, indices: Int[Tensor, "nodes best"]) -> Int[Tensor, "nodes best"]:
        """The tokens behind columns of the scores."""
        ...


def best_first(drafter: TreeDrafter, requests: Sequence[DraftRequest]) -> list[Draft]:
    """A tree for each text, of at most `gamma` drafts and `depth` levels."""
    if not requests:
        return []
    growths = [Growth(request) for request in requests]
    parents = [(growth, -1) for growth in growths]  # of each row of states
    states = drafter.first(requests)
    known: dict[tuple[int, int], Tensor] = {}  # the state behind each node that was read
    while True:
        logits = drafter.logits(states).float()
        sound = logits.amax(dim=-1).isfinite().tolist()
        for row, (growth, node) in enumerate(parents):
            if sound[row]:
                logits[row] = growth.raced(logits[row], node, drafter)
        scores = logits.log_softmax(dim=-1)
        logs, columns = scores.topk(min(max(r.gamma for r in requests), scores.shape[-1]), dim=-1)
        found = zip(parents, drafter.scored(columns).tolist(), logs.tolist(), sound, states)
        for (growth, node), tokens, probable, whole, state in found:
            known[id(growth), node] = state
            if whole:
                growth.add(node, tokens, probable)
        parents, branches = [], []
        for growth in growths:
            if nodes := growth.unread():
                growth.read += nodes
                branches.append(Branch(growth, len(nodes)))
                parents += [(growth, node) for node in nodes]
        if not branches:
            return [growth.draft() for growth in growths]
        above = torch.stack([known[id(growth), growth.parents[node]] for growth, node in parents])
        states = drafter.branch(branches, above)
