"""What must hold of an engine between any two calls, and a model whose tokens tell whether its pages were right."""

from collections import Counter
from functools import lru_cache

import torch
from torch import nn

from inference_opt.engine.request import Pages
from inference_opt.model.config import ModelConfig
from inference_opt.model.transformer import Transformer
from inference_opt.radix.node import upwards
from inference_opt.sampling import StopCheck, sample
from inference_opt.speculative.head import DraftHead
from inference_opt.speculative.models import SmallerModel

PRIME, VOCAB = 65521, 6


def assert_sound_tree(tree):
    """Structure, counters and the eviction heap of a radix tree; returns the pages of the path to each node."""
    step = tree.page_bytes
    paths = {root: [] for root in tree.roots.values()}
    for root in paths:
        assert not root.edge
        assert not root.pages
        assert root.parent is None
    nodes = list(tree.nodes())
    for node in nodes:
        paths[node] = paths[node.parent] + node.pages
        assert node.edge, "empty edge"
        assert len(node.edge) == len(node.pages) * step, "an edge is whole pages"
    for node in paths:
        for key, child in node.children.items():
            assert child.parent is node
            assert key == child.edge[:step], "children are looked up by the first page of their edge"
        assert node.users >= 0
        assert node.locks == node.users + sum(child.locks for child in node.children.values()), "locks"
    pages = [page for node in nodes for page in node.pages]
    assert len(set(pages)) == len(pages), "a page is there once"
    assert set(pages) == tree._owned, "what the tree knows of its own pages"
    assert tree.evictable == sum(len(node.pages) for node in nodes if node.locks == 0), "evictable"
    assert len(tree) == tree.inserted - tree.evicted == len(pages)
    queued = Counter(node for key, _, node in tree.leaves.heap if key == node.queued)
    for node in nodes:
        if not node.children and not node.locks:
            assert queued[node] == 1, "a free leaf is queued once"
            assert node.queued <= tree.policy.key(node), "it would be evicted late"
    return paths


def content(tree):
    """{page: (namespace, the page before it, its tokens)}, read off the tree."""
    table = {}
    for namespace, root in tree.roots.items():
        stack = [(child, None) for child in root.children.values()]
        while stack:
            node, before = stack.pop()
            tokens = node.tokens
            for i, page in enumerate(node.pages):
                table[page] = (namespace, before, tuple(tokens[i * tree.page_size : (i + 1) * tree.page_size]))
                before = page
            stack.extend((child, before) for child in node.children.values())
    return table


def spelled(node):
    """The tokens of the path to a node."""
    return [token for above in list(upwards(node))[::-1] for token in above.tokens]


def assert_sound(engine):
    """Pages have one owner each, locks count the running requests, and no table names a page that is free."""
    pool, tree, scheduler = engine.pool, engine.tree, engine.scheduler
    paths = assert_sound_tree(tree)
    running, waiting = scheduler.running, list(scheduler.waiting.values())
    users = Counter(request.pages.node for request in running)
    assert all(node.users == users[node] for node in paths), "one use a running request"
    assert set(users) <= set(paths), "a running request holds a node of the tree"

    private = [page for request in running for page in request.table[request.pages.shared :]]
    owned = [page for path in {node: node.pages for node in paths}.values() for page in path]
    assert len(pool.free_pages) == len(set(pool.free_pages)) == sum(map(pool.is_free, range(pool.num_pages)))
    assert all(pool.is_free(page) for page in pool.free_pages)
    parts = sorted([*pool.free_pages, *owned, *private])
    assert parts == list(range(pool.num_pages)), "free, the tree's and private pages partition the pool"
    for request in running:
        assert not any(pool.is_free(page) for page in request.table), "a live table names a free page"
        assert request.table[: request.pages.shared] == paths[request.pages.node]
        known = request.tokens[: request.pages.shared * pool.page_size].tolist()
        assert spelled(request.pages.node) == known, "the pages hold another text"
        assert request.computed <= len(request.table) * pool.page_size
        assert request.computed < len(request.tokens) <= request.max_computed
        assert len(request.table) <= pool.pages_for(len(request.tokens)), "drafts that are gone keep their pages"
        assert not request.decoding or request.remaining == 1
    for request in waiting:
        assert (request.pages, request.computed) == (Pages(), 0)
        assert (request.decoding, request.drafter_state, request.finished) == (False, None, False)
    for queue in (running, waiting):
        arrivals = [request.arrival for request in queue]
        assert arrivals == sorted(set(arrivals)), "in the order of arrival"
    assert len(running) <= scheduler.max_running
    assert {request.id: request for request in (*running, *waiting)} == engine.requests
    for request in engine.requests.values():
        assert request.metrics.overtaken <= scheduler.patience, "overtaken too often"
        assert 0 <= request.metrics.accepted_tokens <= request.metrics.drafted_tokens
    stats = engine.stats
    assert (stats.pages_private, stats.pages_cached) == (len(private), len(owned))
    assert stats.pages_private + stats.pages_cached + pool.free == stats.pages
    assert 0 <= stats.accepted_tokens <= stats.drafted_tokens


def dump(engine):
    """All there is to compare before and after a call that must change nothing."""
    tree, scheduler = engine.tree, engine.scheduler
    nodes = [(id(n), n.edge, tuple(n.pages), id(n.parent), n.locks, n.users, n.used, n.hits) for n in tree.nodes()]
    requests = [
        (r.id, r.tokens.tolist(), r.computed, list(r.table), r.pages.shared, id(r.pages.node), r.finish_reason)
        for r in (*scheduler.running, *scheduler.waiting.values())
    ]
    counters = (tree.clock, tree.evictable, tree.inserted, tree.evicted, len(tree.leaves.heap), len(engine.requests))
    return sorted(nodes), requests, counters, engine.pool.free_pages, engine.stats


class Echo(Transformer):
    """Two layers whose every number is an integer that depends on the whole text before it, and on nothing else.

    Queries are zero, so attention is the mean over all keys in sight: times their number, the exact sum of the values.
    A key or value that is missing, stale, or another text's changes the next token. Keys are (token, position).
    """

    dtype, device, is_sharded = torch.float64, torch.device("cpu"), False

    def __init__(self, max_context=24, eos=(0,), slips=0):
        """`slips`: as a drafter it reads alike, but guesses wrong where its number is a multiple of this."""
        nn.Module.__init__(self)
        self.config = ModelConfig(VOCAB, 2, 2, 1, 1, 2, 2, max_context, eos_token_ids=eos)
        self.layers = nn.ModuleList(nn.Linear(1, 1, dtype=self.dtype) for _ in range(2))  # for their bytes alone
        numbers = torch.randn(VOCAB, 2, dtype=self.dtype, generator=torch.Generator().manual_seed(0))
        self.embed = nn.Embedding.from_pretrained(numbers, freeze=False)  # read by `Eagle` alone
        self.slips = slips
        self.fault = None  # "before", "between" or "nan": what goes wrong in the next forward

    def weight_bytes(self):
        return 64

    def hidden_states(self, tokens, positions, kv, depth=None, taps=()):
        fault, self.fault = self.fault, None
        if fault == "before":
            raise RuntimeError("broken model")
        if fault == "between" and depth == 1:
            self.fault = fault  # there is no second layer yet: the next to come
        key = torch.stack((tokens, positions), dim=1)[:, None].double()
        zero, seen = torch.zeros_like(key), (positions + 1)[:, None]
        sums = (tokens * 31 + positions * 17 + 7) ** 3 % PRIME
        tapped = []
        for layer in range(depth or 2):
            if layer == 1:
                if fault == "between":
                    raise RuntimeError("broken model")
                sums = (sums + 17 * positions) ** 2 % PRIME
            value = sums[:, None, None].double().expand(-1, 1, 2).contiguous()
            mean = kv.attend(layer, zero, key, value, 1.0)[:, 0]
            sums = (mean * seen).round().long()[:, 0] % PRIME
            tapped += [torch.stack((sums, tokens), dim=1).double()] if layer in taps else []
        h = sums[:, None].double()
        return h * torch.nan if fault == "nan" else h, tapped

    def logits(self, h):
        sums = h[:, 0].nan_to_num().long()
        return _logits(torch.where(sums % self.slips == 0, 7 * sums + 1, sums) if self.slips else sums) + 0 * h


def random_head(model, taps=(0, 1), reduced=4, seed=0):
    """A drafter's network that was not trained, which scores `reduced` tokens, the last one first."""
    head = DraftHead(model.config, taps, reduced).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(0.0, 1.0, generator=generator)
    head.token_ids = model.config.vocab_size - 1 - torch.arange(reduced)
    return head


def _logits(sums):
    return ((sums[:, None] + 101 * torch.arange(VOCAB)) ** 2 % PRIME).double() / 10_000


@lru_cache(maxsize=100_000)
def _sums(text):
    """Both layers' sums behind a text, number by number."""
    if not text:
        return 0, 0
    first, second = _sums(text[:-1])
    position = len(text) - 1
    first = first + (text[-1] * 31 + position * 17 + 7) ** 3 % PRIME
    return first, second + (first % PRIME + 17 * position) ** 2 % PRIME


def expected(prompt, params, max_context=24, eos=(0,)):
    """The tokens that Echo gives, without Echo, caches or batches."""
    text, check, reason = list(prompt), StopCheck(params, eos, max_context - len(prompt) + 1), None
    while reason is None:
        logits = _logits(torch.tensor([_sums(tuple(text))[1] % PRIME]))[0]
        text.append(sample(logits, params, position=len(text)))
        reason = check.after(text[-1])
    return text[len(prompt) :]


def slots(text):
    """What Echo keeps of each token of a text: key, value of the first layer and of the second."""
    sums = [_sums(tuple(text[: i + 1]))[0] % PRIME for i in range(len(text))]
    first = [(t * 31 + i * 17 + 7) ** 3 % PRIME for i, t in enumerate(text)]
    return [((t, i), a, (b + 17 * i) ** 2 % PRIME) for i, (t, a, b) in enumerate(zip(text, first, sums))]


def held(cache):
    """{page: the same, read off the tensors}."""
    keys = [[tuple(key) for key in page] for page in cache.keys[0][:, :, 0].long().tolist()]
    values = [layer[:, :, 0, 0].long().tolist() for layer in cache.values]
    return [list(zip(*parts)) for parts in zip(keys, *values)]


def assert_pages_hold_their_texts(engine):
    """The tensors, too: each page that someone may read holds that text's keys and values, as if it were alone."""
    pages = held(engine.cache)
    assert_tree_holds(engine.tree, pages)
    for request in engine.scheduler.running:
        table = request.table[: engine.pool.pages_for(request.computed)]  # of the others no slot was written yet
        own = [slot for page in table for slot in pages[page]][: request.computed]
        assert own == slots(request.tokens[: request.computed].tolist()), "a private page differs"


def assert_tree_holds(tree, pages):
    for node in tree.nodes():
        known = spelled(node)
        inside = [slot for page in node.pages for slot in pages[page]]
        assert inside == slots(known)[-len(inside) :], "a cached page holds another text"


def watch_drafter(engine):
    """Whenever the drafter has observed a step, its own cache must be right wherever it will be read again."""
    drafter = engine.speculation.drafter
    if not isinstance(drafter, SmallerModel) or not isinstance(drafter.model, Echo):
        return

    def observe(spans, whole=drafter.observe):
        whole(spans)
        pages = held(drafter.cache)
        assert_tree_holds(engine.tree, pages)
        for request in engine.scheduler.running:
            read = min(request.drafter_state, request.computed)
            table = request.table[: engine.pool.pages_for(read)]
            own = [slot for page in table for slot in pages[page]][:read]
            assert own == slots(request.tokens[:read].tolist()), "the drafter remembers another text"

    drafter.observe = observe
