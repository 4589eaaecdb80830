"""Speculation in the engine: drafts before the target runs, acceptance after it, and what the drafter learns of it.

    propose   drafts for the requests that have room for some (scheduler.py)
              … the target reads tokens and drafts at once: eager_runner.py …
    accept    the rule decides, request by request, what is emitted (where there is no draft, the runner draws a token)
    learn     the drafter reads what the target has kept, while every request still has its pages

Draft length, decision and noise are each request's own, so the other requests of a batch do not change its
distribution. (They may leave less room for drafts: with a rule other than `coupled`, a seed then gives another text of
the same distribution.)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from inference_opt.cache.paged import PagedCache
from inference_opt.engine.change import Change, Kind
from inference_opt.engine.request import Request
from inference_opt.engine.scheduler import Chunk
from inference_opt.kernels.tree import WINDOW
from inference_opt.model.transformer import Transformer
from inference_opt.sampling import CommonNoise, Noise, probabilities
from inference_opt.speculative import DRAFTERS, rules
from inference_opt.speculative.acceptance import Acceptance
from inference_opt.speculative.choice import Choice
from inference_opt.speculative.coupled_tree import coupled_tree
from inference_opt.speculative.drafter import Draft, Drafter, DraftRequest, Observation, check_draft
from inference_opt.speculative.tree import DraftTree
from inference_opt.trace import watched
from inference_opt.values import shown

Rule = Callable[[Any, Any, Any, Any], list[int]]
CHAIN_RULES = (rules.token_wise, rules.block, rules.coupled, rules.point_mass)
TREE_RULES = (rules.tree, rules.multi_draft)
MAX_GAMMA = 12  # drafts a step, if the engine decides
ROW_COST = 0.05  # steps that one more row is assumed to cost until it is measured
TRIED = 4  # drafts of a tree, at most, while nothing is known: smaller trees have width or depth, not both
LEAST = 0.08  # the probability of being kept that pays for a draft's row, in trees whose size the engine chooses


class Speculation:
    """A drafter and a rule at work for one engine; without a drafter, plain decoding.

    `gamma`: drafts a step for requests without a gamma of their own; None: as many as pay (`speculative/choice.py`).
    `rule`: None stands for `coupled`; drafts are then trees, if the engine decides how many there are and the drafter
    makes trees (but in eager steps on CUDA). With `rules.tree` the drafts of a step are a tree, with
    `rules.multi_draft` candidates for one position; a drafter of chains then gives trees of width one. ValueError for a
    gamma below 0, or of a tree above 63, an unknown rule, and a drafter that does not fit the model.
    """

    def __init__(
        self, drafter: Drafter | str | None, rule: Rule | None, gamma: int | None, model: Transformer, cache: PagedCache
    ) -> None:
        if gamma is not None and gamma < 0:
            raise ValueError(f"gamma must be at least 0 (0: no drafts), or None to adapt it, got {gamma}")
        if rule is not None and rule not in CHAIN_RULES + TREE_RULES:
            known = ", ".join(each.__name__ for each in CHAIN_RULES + TREE_RULES)
            raise ValueError(
                f"the engine drafts chains and trees: expected one of the rules {known}, got {shown(rule)}"
            )
        if rule in TREE_RULES and gamma is not None and gamma >= WINDOW:
            raise ValueError(f"a tree has at most {WINDOW - 1} drafts, got gamma = {gamma}")
        if isinstance(drafter, str):
            if drafter not in DRAFTERS:
                raise ValueError(f"there is no drafter {drafter!r}: expected a Drafter or one of {', '.join(DRAFTERS)}")
            drafter = DRAFTERS[drafter]()
        if drafter is not None and not isinstance(drafter, Drafter):
            hint = f"expected a Drafter (SmallerModel(model) drafts with a model) or one of {', '.join(DRAFTERS)}"
            raise ValueError(f"{hint}; got {shown(drafter)}")
        if rule is rules.point_mass and drafter is not None and not drafter.found:
            raise ValueError(f"point_mass is for drafts that are found, {type(drafter).__name__} draws its own")
        self.drafter = None if drafter is None else drafter.bind(model, cache)
        # A found draft x is accepted with probability p(x), by `point_mass` or by comparing it with the target's own
        # draw. The second emits what plain decoding emits with this seed.
        own = drafter is not None and drafter.found and rule is not rules.point_mass and rule not in TREE_RULES
        self.rule: Rule = rules.coupled if own or rule is None else rule
        self.fixed, self.vocab_size = gamma, model.config.vocab_size
        self.taps: Sequence[int] = self.drafter.taps if self.drafter else ()
        # Who decides how many drafts a batch has: in steps that the host runs, and in those that are replayed, if any.
        can = self.drafter is not None and self.drafter.trees
        self.branching = can and rule is None  # drafts may be trees without a rule of trees
        self.branches = self.branching and cache.device.type == "cpu"  # those of eager steps
        self.eager: Choice | None = None
        if self.branches or (can and self.trees):
            self.eager = Choice(False, ROW_COST, TRIED)  # a round of the drafter gives several drafts
        elif self.drafter is not None:
            self.eager = Choice(False, ROW_COST + self.drafter.cost)
        self.choice = self.eager
        self.steps: Counter[int] = Counter()  # of all texts in decode, by drafts

    def captured(self, request: Request) -> bool:
        """Whether a request's steps can be captured: without a drafter, or with one that drafts on the card.

        Captured steps judge by the target's own draw (`rules.coupled`). Greedily every rule of chains emits the same.
        """
        if self.drafter is None:
            return True
        if self.trees:
            return False
        return self.drafter.captured and (self.rule is rules.coupled or request.params.temperature == 0)

    @property
    def trees(self) -> bool:
        """Whether the rule judges trees."""
        return self.rule in TREE_RULES

    @property
    def max_gamma(self) -> int:
        """The most drafts of a captured step."""
        return max(MAX_GAMMA, self.fixed or 0)

    @property
    def why(self) -> str:
        """Why the last draft length was chosen; empty if the engine does not choose."""
        return "" if self.choice is None or self.fixed is not None else self.choice.why

    def gamma(self, request: Request) -> int:
        """How many drafts a request would have: its own wish, the engine's, or the most that the choice may give it."""
        if self.drafter is None:
            return 0
        fixed = self.fixed if request.params.gamma is None else request.params.gamma
        if fixed is not None:
            return min(fixed, WINDOW - 1) if self.trees else fixed
        request.acceptance = request.acceptance or Acceptance()
        return MAX_GAMMA

    def propose(self, chunks: Sequence[Chunk]) -> list[Draft]:
        """A draft for each chunk, empty where there is no room. ValueError for one that no rule can judge."""
        requests = [self._asking(c.request, c.drafts) for c in chunks if c.drafts]
        made = self.drafter.propose(requests) if self.drafter and requests else []
        if len(made) != len(requests):
            raise ValueError(f"the drafter returned {len(made)} drafts for {len(requests)} texts")
        for request, draft in zip(requests, made):
            check_draft(draft, request.gamma, self.vocab_size, request.depth)
            if self.rule is rules.point_mass and draft.probs is not None:
                raise ValueError("point_mass is for drafts that are found: this drafter returned distributions")
        each = iter(made)
        return [next(each) if chunk.drafts else Draft() for chunk in chunks]

    def _asking(self, request: Request, gamma: int) -> DraftRequest:
        """For a chain; or for a tree, whose depth the rule limits."""
        noise = self._noise(request, drafting=True)
        depth = 1 if self.rule is rules.multi_draft else gamma
        grows = self.branches and request.acceptance is not None  # the engine also decides how many drafts there are
        if self.drafter is not None and self.drafter.trees and (self.trees or grows):
            least, known = LEAST if request.acceptance else 0.0, noise if self.rule is rules.coupled else None
            return DraftRequest(request, gamma, noise, depth, least, known)
        return DraftRequest(request, min(gamma, depth), noise)

    def _noise(self, request: Request, drafting: bool) -> Noise:
        """A step's noise, from the seed and where the step begins. With `coupled`, drafter and target share it.

        The other rules need drafter and target to be independent, and each step to be independent of the last: `block`
        has looked at drafts that it rejected, so their noise may not decide the same positions again.
        """
        seed, start = request.params.seed, len(request.tokens)
        assert seed is not None  # drawn when the request arrived
        return CommonNoise(seed, start) if self.rule is rules.coupled else Noise(seed, start, lane=int(drafting))

    def accept(self, request: Request, logits: Float[Tensor, "rows vocab"], draft: Draft) -> list[int]:
        """What the step emits. `logits`: the target's rows after the last known token and after each draft.

        Rows may be missing at the end. Then fewer drafts are judged, and if all of these are accepted, the token that
        follows them means nothing: the caller drops it.
        """
        target = list(probabilities(logits, request.params).cpu().numpy())
        target += target[-1:] * (len(logits) <= len(draft.tokens))  # for missing rows; the caller drops its token
        found = draft.probs is None and self.rule is not rules.coupled
        rule: Rule = rules.point_mass if found else self.rule
        judged = len(target) - 1
        probs, drafted = (draft.probs or [])[:judged], draft.tokens[:judged]
        noise = self._noise(request, drafting=False)
        return watched(rule)(target, probs, drafted, noise)

    def accept_tree(
        self, request: Request, logits: Float[Tensor, "rows vocab"], sound: Sequence[int], draft: Draft
    ) -> tuple[list[int], list[int]]:
        """What the step emits of a tree, and the drafts that are accepted: each follows the one before it.

        The first row is sound. What follows a row that is not sound is not judged.
        """
        tree, noise = DraftTree.of(draft, sound), self._noise(request, drafting=False)
        target = tree.target(lambda row: probabilities(logits[row], request.params).cpu().numpy())
        if self.rule is rules.coupled:
            return tree.kept(watched(coupled_tree)(target, {}, tree.tokens, noise))
        drawn = tree.draft(logits.shape[-1])
        if self.rule is rules.tree:
            return tree.kept(watched(rules.tree)(target, drawn, tree.tokens, noise))
        tokens = tree.tokens[()]
        behind = [target[()], *(target[x,] for x in tokens)]
        return tree.kept(watched(rules.multi_draft)(behind, drawn[()], tokens, noise))

    def learn(self, changes: Sequence[Change]) -> None:
        """Tell the drafter what the target has read and kept, and learn how many drafts were accepted.

        Every request still has its pages.
        """
        if self.drafter is None:
            return
        told = []
        for change in changes:
            request = change.request
            if change.judged:
                self.steps.update(step.drafted for step in change.judged)
            elif request.decoding and change.tokens:
                self.steps[0] += len(change.tokens)
            # What follows the end of a text tells nothing.
            if change.lengths and change.finish_reason in (None, "length"):
                tokens, steps = change.lengths
                if self.choice is not None:
                    steps = self.choice.shown(steps, max((step.drafted for step in change.judged), default=0))
                told.append((tokens, steps))
                if request.acceptance is not None:
                    request.acceptance.learn(tokens, steps)
        if told:
            together = sum(tokens for tokens, _ in told), [sum(each) for each in zip(*(steps for _, steps in told))]
            for lately in {each.lately for each in (self.eager, self.choice) if each}:
                lately.learn(*together)
        # A drafter on the card has seen what captured steps have decoded.
        unseen = [each for each in changes if each.states or each.kind != "decode" or not self.drafter.captured]
        self.drafter.observe([_observation(each.request, each.chunk.start, each.states, each.kind) for each in unseen])
        for change in changes:
            if change.finish_reason is not None:
                change.request.drafter_state = None  # nobody needs it any more
                if change.request.acceptance is not None:
                    for choice in {each for each in (self.eager, self.choice) if each}:
                        choice.ended.append(change.request.acceptance)

    def end(self, request: Request) -> None:
        """The same for a request that is aborted, while it still has its pages."""
        if self.drafter is not None and request.table:
            self.drafter.observe([_observation(request, request.computed, [], "end")])
            request.drafter_state = None


def _observation(request: Request, start: int, states: Sequence[Tensor], kind: Kind) -> Observation:
    """The tokens from `start` on that are computed, and the one that follows them."""
    tokens = list(request.tokens[start : request.computed + 1])
    return Observation(request, request.table, start, tokens, [state[: len(tokens) - 1] for state in states], kind)
