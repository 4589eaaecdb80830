"""What the player asks in each scenario: a function of the scenario's name puts questions to its trace.

A number is read off the trace, and a choice is offered only where the trace shows that its answer is right. So both
stay true when a reader changes the scenario's parameters. Every wrong answer is one that readers give, with the reason
why it is wrong. Where the trace shows nothing to ask about, nothing is asked.
"""

from fractions import Fraction
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

from inference_opt.trace import Trace

JUDGED = ("speculation.accept", "speculation.reject")


def state(trace: Trace, at: int, kind: str) -> dict[str, Any]:
    """A snapshot of a step."""
    found: dict[str, Any] = trace.steps[at]["state"][kind]
    return found


def facts(trace: Trace, at: int) -> dict[str, Any]:
    """What a step tells."""
    found: dict[str, Any] = trace.steps[at]["facts"]
    return found


def first_from(trace: Trace, at: int, event: str) -> int:
    """The index of the first step of an event from `at` on."""
    return next(i for i in trace.where(event) if i >= at)


# Plain decoding


def naive_decoding(trace: Trace) -> None:
    """How much is computed again."""
    prompt = len(state(trace, 0, "decode")["read"])
    for at in trace.where("naive.token")[2:3]:
        trace.ask_number(
            at,
            f"The prompt has {prompt} tokens, and two new ones are known. How many tokens go through the model for the "
            "third?",
            state(trace, at, "decode")["new"],
            "All of them go through the model again: nothing is kept from the step before.",
            {
                1: "One would be enough if the keys and values of the others were kept. Nothing is kept here.",
                2: "The prompt goes through the model again, too: nothing of it is kept.",
                prompt: "The two new tokens belong to the text, too, and the whole text goes through the model.",
                prompt + 3: "The third new token is what comes out. It does not go in.",
            },
        )


def kv_cache(trace: Trace) -> None:
    """How much is computed with a cache."""
    for at in trace.where("cache.token")[1:2]:
        decode = state(trace, at, "decode")
        text = len(decode["read"])
        trace.ask_number(
            at,
            f"The {text - decode['new']} tokens of the prompt are in the cache, and one new token is known. How many "
            "tokens go through the model for the next one?",
            decode["new"],
            "Only the new token does: keys and values of all others are in the cache.",
            {
                0: "The new token was drawn, but it has no keys and values yet: it must go through the model once.",
                2: "The prompt's last token has its keys and values in the cache, too.",
                text: "That is what naive decoding does. Keys and values of the others are in the cache.",
            },
        )


# Pages


def page_pool(trace: Trace) -> None:
    """How many pages a prompt takes, and which page is taken next."""
    first = trace.where("pool.allocate")[0]
    tokens, size = facts(trace, trace.where("schedule.arrive")[0])["tokens"], state(trace, first, "pool")["page_size"]
    pages = facts(trace, first)["count"]
    trace.ask_number(
        first,
        f"The first request has {tokens} tokens, and a page holds {size}. How many pages does it take now?",
        pages,
        "It takes as many as its tokens fill, the last one perhaps in part.",
        {
            tokens // size: f"These would hold {tokens // size * size} tokens. The rest needs a page, too.",
            tokens: f"A page holds {size} tokens, not one.",
            pages + 1: "A page for tokens that are still to come is taken when they come.",
        },
    )
    for release in trace.where("pool.release")[:1]:
        given = facts(trace, release)["pages"]
        free = state(trace, release, "pool")["free"]
        for at in [i for i in trace.where("pool.allocate") if i > release][:1]:
            taken = facts(trace, at)["pages"]
            if len(given) > 1 and taken == given[-1:]:
                trace.ask_number(
                    at,
                    f"Pages {', '.join(map(str, given))} were given back, in this order. Now a request needs one page. "
                    "Which one does it get?",
                    taken[0],
                    "The free pages are a stack: the page that was put on it last is taken first.",
                    {
                        min(free): "The pool does not look for the lowest number: it takes the top of its stack.",
                        min({*free} - {*given}, default=taken[0]): "Pages that were never used lie deeper in the "
                        "stack than those that were given back.",
                        given[0]: "The free pages are a stack, not a queue: the first one put on it is taken last.",
                    },
                )


def paged_attention(trace: Trace) -> None:
    """How many pages a new token attends over."""
    for at in trace.where("paged.attend")[1:]:
        seen = state(trace, at, "attention")
        end, size, pages = seen["end"], seen["page_size"], len(seen["table"])
        if seen["new"] == 1 and end % size == 1:  # it begins a page
            return trace.ask_number(
                at,
                f"The first {end - 1} tokens of a text fill whole pages of {size}. The next token comes. How many "
                "pages hold keys that it attends to?",
                pages,
                "It attends to itself, too: its own key is the first in a new page.",
                {
                    pages - 1: "The new token attends to itself, too, and its key does not fit into these pages.",
                    1: "It attends to all tokens before it, wherever their pages are.",
                    end: f"That is the number of keys. A page holds {size} of them.",
                },
            )
    return None


# The radix tree


class Lookup(NamedTuple):
    """A lookup that splits an edge."""

    at: int  # the step of the split
    text: str  # what is looked up
    shared: int  # tokens that it shares with an earlier text
    found: int  # tokens of it that are found
    above: int  # tokens before the edge that is split
    end: int  # tokens up to the end of this edge


def lookups(trace: Trace) -> list[Lookup]:
    """All lookups that split an edge, in order."""
    found = []
    for at in trace.where("radix.split"):
        if at and trace.steps[at + 1]["event"] == "radix.match":
            match, split = facts(trace, at + 1), facts(trace, at)
            earlier = [facts(trace, i)["tokens"] for i in trace.where("radix.insert") if i < at]
            alike = [takewhile(lambda pair: pair[0] == pair[1], zip(each, match["tokens"])) for each in earlier]
            shared = max(sum(1 for _ in pairs) for pairs in alike)
            text, length = trace.steps[at + 1]["text"].partition(" is looked up")[0], len(match["found"])
            above, end = length - len(split["head"]), length + len(split["rest"])
            found.append(Lookup(at, text, shared, length, above, end))
    return found


def diverging_insert(trace: Trace) -> None:
    """How much of a text is found, and what goes first."""
    splits = lookups(trace)
    for at, text, shared, found, above, end in [each for each in splits if each.shared > each.found][:1] or splits[:1]:
        size = state(trace, at, "tree")["page_size"]
        trace.ask_number(
            at,
            f"{text} is looked up. Its first {shared} letters are those of an earlier text, and a page holds {size}. "
            "How many letters are found?",
            found,
            "Whole pages are found: the edge is split after the last page that both texts share.",
            {
                end: "Only the beginning of the edge is equal. The rest of it is not found.",
                above: "The edge below begins with the same letters, too. It is split, and its beginning is found.",
                shared: "A page is found whole or not at all, and in the last one of these another letter follows.",
            },
        )
    for at in trace.where("radix.evict")[:1]:
        nodes = state(trace, at, "tree")["nodes"]
        inner = {node["parent"] for node in nodes}
        leaves = [node for i, node in enumerate(nodes) if i not in inner]
        if facts(trace, at)["kept"] and len(leaves) > 1 and any(node["locks"] for node in nodes):
            trace.ask(
                at,
                "Pages are needed. Which ones are evicted first?",
                (
                    "the end of the leaf used longest ago",
                    "It is the least likely to be used again, and its beginning can still be found.",
                ),
                (
                    "the whole of the leaf used longest ago",
                    "No more is removed than is needed: the beginning of that leaf stays, and can still be found.",
                ),
                (
                    "the beginning of all texts: it is oldest",
                    "All texts below it need it, and a lock counts up to the root. Only leaves are evicted.",
                ),
                ("the end of the leaf written last", "It was used last, so it is the most likely to be used again."),
            )


def sglang_tree(trace: Trace) -> None:
    """How much two chats share."""
    for at, text, _, found, above, end in lookups(trace)[:1]:
        trace.ask_number(
            at,
            f"{text} is looked up. How many of its words are found?",
            found,
            "All words are found up to where the two texts part, whatever they mean.",
            {
                found - 1: "One more is equal. The tree knows tokens, not where a system prompt ends.",
                end: "Only the beginning of the edge is equal. The rest of it is not found.",
                above: "An edge need not be found whole: it is split where the texts part.",
            },
        )


# The engine


def continuous_batching(trace: Trace) -> None:
    """How much of a prompt fits into a step."""
    planned: dict[str, int] = {}
    last = 0
    for at, step in enumerate(trace.steps):
        if step["event"] == "engine.step":
            planned = {}
        if step["event"] not in ("schedule.prefill", "schedule.decode"):
            continue
        name, count = step["facts"]["id"], step["facts"]["count"]
        schedule = state(trace, at, "schedule")
        prompt = next(each["prompt"] for each in schedule["running"] if each["id"] == name)
        rest, budget, used = prompt - step["facts"]["start"], schedule["token_budget"], sum(planned.values())
        if planned and count < rest and count == budget - used:
            admitted = [i for i in trace.where("schedule.admit") if last < i < at]
            return trace.ask_number(
                (*admitted, at)[0],
                f"This step has a budget of {budget} tokens, and the order is {', '.join([*planned, name])}. {name} "
                f"has {rest} tokens of its prompt to compute. How many of them fit in?",
                count,
                "The prompt is cut to what is left of the budget. The rest of it follows in later steps.",
                {
                    0: "A prompt need not fit in whole: it is cut to what is left of the budget.",
                    budget: "The budget is for the whole batch, not for each request.",
                    rest: f"All of them would pass the budget: {used} of {budget} tokens are given out already.",
                },
            )
        planned[name], last = count, at
    return None


def equal_prompts(trace: Trace) -> None:
    """How much is found of what is not computed yet."""
    matches, commit = trace.where("radix.match"), trace.where("engine.commit")[0]
    texts = [facts(trace, i)["tokens"] for i in matches if i < commit]
    if len(texts) < 2 or texts[0] != texts[1]:
        return
    admitted = facts(trace, first_from(trace, matches[1], "schedule.admit"))
    tokens = next(
        facts(trace, i)["tokens"] for i in trace.where("schedule.arrive") if facts(trace, i)["id"] == admitted["id"]
    )
    if admitted["saved"]:
        trace.ask_number(
            matches[1],
            f"{admitted['id']} has the same prompt of {tokens} tokens. A page holds "
            f"{state(trace, commit, 'pool')['page_size']} tokens, and nothing has been computed yet. How many of its "
            "tokens are found?",
            admitted["saved"],
            "All whole pages are found but the one with the last token, which has to go through the model.",
            {
                tokens - 1: "A page is found whole or not at all.",
                tokens: "The last token has to go through the model: the next token is drawn from what comes out.",
                0: "The tree has the pages as soon as they are planned: a layer writes all keys before it reads any.",
            },
        )


def preemption(trace: Trace) -> None:
    """Who gives up its pages."""
    for at in trace.where("schedule.preempt")[:1]:
        victim, before = facts(trace, at)["id"], at - (trace.steps[at - 1]["event"] == "pool.release")
        running = state(trace, before - 1, "schedule")["running"]
        longest = max(running, key=lambda each: each["tokens"])["id"]
        smallest = min(running, key=lambda each: len(each["table"]))["id"]
        asks = facts(trace, first_from(trace, at, "schedule.decode"))["id"]
        if victim == running[-1]["id"] and victim not in (longest, smallest, asks):
            trace.ask(
                before,
                "No page is free, and a request needs one for its next token. Which request gives up its pages?",
                (
                    "the request that arrived last",
                    f"An earlier request goes on, so that every request is done at some time. {victim} waits again.",
                ),
                (
                    "the request with the most tokens",
                    f"That is {longest}. The order of arrival decides, not the length.",
                ),
                (
                    "the request with the fewest pages",
                    f"That is {smallest}. The order of arrival decides, not the number of pages.",
                ),
                ("the request that needs the page", f"That is {asks}. It arrived before {victim}, so it goes on."),
            )


# Latent attention


def latent_attention(trace: Trace) -> None:
    """Which form a single token takes."""
    for at in trace.where("mla.absorb")[:1]:
        counters, mla = trace.steps[at]["counters"], state(trace, at, "mla")
        mine, other = (counters[f"multiplications in {which}"] for which in ("this form", "the other"))
        if at and mine < other and mla["queries"] == 1:
            trace.ask(
                at,
                f"A token is decoded over {mla['keys']} latents. What is computed before the scores?",
                (
                    "the query in the width of the latents",
                    f"This form takes {mine:,} multiplications; with keys and values made it would take {other:,}.",
                ),
                (
                    "the keys and values of all the latents",
                    f"That is right for long prompts. For one query it takes {other:,} multiplications, not {mine:,}.",
                ),
                (
                    "the keys and values of the new latent",
                    "The older tokens have none that these could be added to: only their latents are kept.",
                ),
            )


# Speculative decoding


def fates(trace: Trace, at: int) -> tuple[int, int]:
    """How many drafts are kept, of how many."""
    drafts = state(trace, at, "speculation")["fates"]
    return drafts.count("kept"), len(drafts)


def given_back(trace: Trace) -> None:
    """How many pages a step gives back, where drafts reached over the end of a page."""
    for at in trace.where("pool.release")[:1]:
        (request,) = state(trace, at - 1, "schedule")["running"]
        name, tokens, pages = request["id"], request["tokens"], len(request["table"])
        if trace.steps[at - 1]["event"] == "engine.commit" and not request["finish_reason"]:
            rejected = len(facts(trace, at - 1)["output"]["drafted"]) + 1 - len(facts(trace, at - 1)["tokens"])
            size = state(trace, at, "pool")["page_size"]
            trace.ask_number(
                at,
                f"{name} has {pages} pages of {size}, and after this step {tokens} known tokens. How many pages are "
                "given back?",
                len(facts(trace, at)["pages"]),
                "All pages without a known token. What rejected drafts left in the others will be written over.",
                {
                    0: "A page that held only rejected drafts has no known token. Other requests may need it.",
                    rejected: "So many drafts were rejected. A page is given back only if it has no known token.",
                },
            )


def speculative_step(trace: Trace) -> None:
    """How many tokens a step gives, and how many pages it gives back."""
    given_back(trace)
    replaced = [i for i in trace.where("speculation.replace") if trace.steps[i + 1]["event"] == "engine.commit"]
    for at in ([i for i in replaced if fates(trace, i)[0]] or replaced)[:1]:
        kept, drafts = fates(trace, at)
        trace.ask_number(
            at,
            "All verdicts on this draft are known. How many tokens does this run of the target give?",
            len(facts(trace, at + 1)["tokens"]),
            "Those that are kept, and one that is drawn in place of the first that is not.",
            {
                1: "The drafts that are kept are tokens of the text, too.",
                drafts: "Drafts after a rejected one are lost: they continue another text.",
                drafts + 1: "So many positions were read. What follows the first rejection is lost.",
                kept: "One token is drawn in place of the rejected draft, by the same run.",
            },
        )


def full_acceptance(trace: Trace) -> None:
    """How many tokens a draft gives at most."""
    for at in trace.where("speculation.bonus"):
        kept, drafts = fates(trace, at)
        if at and kept == drafts:
            trace.ask_number(
                at,
                "Every draft is kept. How many tokens does this one run of the target give?",
                kept + 1,
                "The target has read the last draft, too, so it knows what follows, and one token more is drawn.",
                {
                    1: "The drafts that are kept are tokens of the text, too.",
                    kept: "The target has read the last draft, too, so it knows what may follow.",
                },
            )


def rejection(trace: Trace) -> None:
    """What a replacement is drawn from."""
    for at in trace.where("speculation.replace"):
        if at:
            trace.ask(
                at,
                "A token is drawn in place of the rejected draft. From which distribution, so that the text follows p?",
                (
                    "from (p − q)⁺, made to sum to one",
                    "Kept drafts come with min(p, q). What is missing from p is (p − q)⁺.",
                ),
                (
                    "from p, as it would be without a draft",
                    "Kept drafts come with min(p, q) already. With p on top, tokens that q prefers come too often.",
                ),
                (
                    "from p, without the token that was rejected",
                    "Other tokens may come often enough as kept drafts. Only those that q has too rarely are missing.",
                ),
            )


def block_verification(trace: Trace) -> None:
    """What becomes of a draft whose beginning fails."""
    weighed = trace.where("speculation.weigh")
    for before, at in pairwise(weighed):
        if state(trace, before, "speculation")["kept"] is False:
            return trace.ask(
                at,
                "This beginning does not pass. What becomes of the draft?",
                (
                    "the longest beginning that passes is kept",
                    "The draft is judged as a whole: a longer beginning may pass, with this one in it.",
                ),
                (
                    "the draft is cut off before this token",
                    "That is the token-wise rule. Here a longer beginning may pass.",
                ),
                (
                    "this token alone is drawn once more",
                    "The drafts after it continue a text with this token in it: they cannot stay without it.",
                ),
            )
    return None


def several_candidates(trace: Trace) -> None:
    """What the second candidate was drawn from, and how many tokens come out."""
    events = trace.events()
    if events[0] == "speculation.reject" and events[1] in JUDGED:
        second = state(trace, 1, "speculation")
        if second["q"][second["vocab"].index(second["drafts"][0])] == 0:
            trace.ask(
                1,
                "The first candidate is rejected. From which distribution was the second one drawn?",
                (
                    "the draft's, without the first candidate",
                    "Candidates are drawn without replacement, all of them before the first is judged.",
                ),
                (
                    "the draft's own, just as the first candidate",
                    "Then the same token could come twice. The others share what the first candidate had.",
                ),
                (
                    "what is left of p after the rejection",
                    "It is judged against that. It was drawn by the drafter, before anything was rejected.",
                ),
            )
    for at in trace.where("speculation.bonus"):
        kept, candidates = fates(trace, at)
        if at > 1 and kept == 1:
            trace.ask_number(
                at,
                f"One of {candidates} candidates is kept. How many tokens does this run of the target give?",
                kept + 1,
                "The target has read what follows each candidate, too: one token more is drawn after the one kept.",
                {
                    candidates: "The candidates are for one position: only one of them can be kept.",
                    candidates + 1: "The candidates are for one position: only one of them can be kept.",
                    kept: "The target has read what follows each candidate, too.",
                },
            )


def draft_tree(trace: Trace) -> None:
    """What candidates are judged by after one that is kept, and how many tokens come out."""
    events = trace.events()
    for at in [i + 1 for i in trace.where("speculation.accept") if events[i + 1] in JUDGED][:1]:
        trace.ask(
            at,
            "A candidate is kept. Against which distribution are the candidates after it judged?",
            (
                "the target's, after that candidate",
                "The target has read all nodes of the tree at once, so it is known.",
            ),
            (
                "what is left of p after the rejections",
                "That was for its siblings. After one that is kept, the target's counts as a whole.",
            ),
            ("the draft's, after that candidate", "They were drawn from it. They are judged against the target's."),
        )
    for at in trace.where("speculation.bonus"):
        kept, nodes = fates(trace, at)
        if at and kept:
            trace.ask_number(
                at,
                "The walk has come to a leaf. How many tokens does this run of the target give?",
                kept + 1,
                "The drafts on the path that was kept, and one token more, drawn after the last of them.",
                {
                    nodes: "All nodes were read, but only one path through the tree becomes text.",
                    nodes + 1: "All nodes were read, but only one path through the tree becomes text.",
                    1: "The drafts that are kept are tokens of the text, too.",
                    kept: "The target has read the last draft, too, so it knows what may follow.",
                },
            )


def tree_step(trace: Trace) -> None:
    """How many tokens a tree gives, and how many pages it gives back."""
    given_back(trace)
    for at in trace.where("speculation.bonus"):
        kept, nodes = fates(trace, at)
        if kept > 1:
            return trace.ask_number(
                at,
                f"The target has read {nodes} nodes in one run. How many tokens does the run give?",
                kept + 1,
                "The drafts on the path that is kept, and one token more, drawn after the last of them.",
                {
                    1: "The drafts that are kept are tokens of the text, too.",
                    kept: "The target has read the last draft, too, so it knows what may follow.",
                    nodes: "All nodes were read, but only one path through the tree becomes text.",
                    nodes + 1: "All nodes were read, but only one path through the tree becomes text.",
                },
            )
    return None


# Exactness


def path(trace: Trace, at: int) -> dict[str, Any]:
    """The path that a step takes."""
    taken: dict[str, Any] = state(trace, at, "law")["path"]
    return taken


def last_of_first_step(trace: Trace) -> int:
    """The last path of the first speculative step: all of them have been seen."""
    return next(i for i in trace.where("law.path") if Fraction(state(trace, i, "law")["total"]) == 1)


def exact_law(trace: Trace) -> None:
    """What is left for the last path."""
    at = last_of_first_step(trace)
    chance = Fraction(path(trace, at)["probability"])
    if at and chance.numerator == 1:
        seen, before = state(trace, at - 1, "law")["total"], Fraction(path(trace, at - 1)["probability"])
        trace.ask_number(
            at,
            f"All paths but one have been seen. Together they have the probability {seen}. The last path has a "
            "chance of one in how many?",
            chance.denominator,
            "Exactly one path is taken every time, so the probabilities of all paths sum to 1.",
            {
                before.denominator: "That is the chance of the path before. The last one has what is left of 1.",
                at + 1: "Paths are not equally likely: each has the product of the chances of its outcomes.",
            },
        )


def biased_rule(trace: Trace) -> None:
    """Which way the bias goes."""
    last = last_of_first_step(trace)
    law = state(trace, last, "law")
    came, p = ([Fraction(each) for each in law[name]] for name in ("first", "truth"))
    firsts = [path(trace, i)["turns"][0] for i in range(last + 1)]  # of each path: the first draft, and its chance
    q = {draft: Fraction(chance) for draft, chance in firsts}
    often, rarely = ([x for x in range(len(p)) if sign * came[x] > sign * p[x]] for sign in (1, -1))
    most_probable = p.index(max(p))
    rejects = [i for i in range(1, last + 1) if any(turn is False for turn, _ in path(trace, i)["turns"])]
    if not rejects or most_probable in often or often != [x for x in range(len(p)) if q.get(x, 0) > p[x]]:
        return

    def comes(x: int) -> str:
        return f"{trace.labels[str(x)]} comes with {came[x]} instead of {p[x]}."

    trace.ask(
        rejects[0],
        "This rule draws the replacement from p itself. Which tokens will come too often, all paths together?",
        (
            "those that the draft has too often",
            f"As kept drafts they already have all of p, and drawing from p adds to it: {comes(often[0])}",
        ),
        (
            "those that the draft has too rarely",
            f"Everything rejected is owed to them, and they get a part of it: {comes(rarely[0])}",
        ),
        ("those that the target has most often", f"They are owed more than they get: {comes(most_probable)}"),
    )


# Kernels


def pieces_of_attention(trace: Trace) -> None:
    """How many states are joined, and how much each counts."""
    merges = trace.where("kernel.merge")
    for at in merges:
        seen = state(trace, at, "pieces")
        states = {each[0] for each in seen["joined"]}
        pieces = [p for p in seen["pieces"] if states & set(range(p["state"], p["state"] + p["queries"]))]
        shared = sum(p["queries"] > 1 for p in pieces)
        own = len(pieces) - shared
        if shared:
            trace.ask_number(
                at,
                f"How many states are joined for query {seen['token']}?",
                len(states),
                f"One of each piece that has keys of this query: {shared} of the shared prefix, {own} of its own.",
                {
                    own + 1: f"The prefix is cut into {shared} pieces, and each of them leaves a state.",
                    own: "The keys of the prefix are this query's, too: each piece of it leaves a state.",
                    len(seen["pieces"]): "The other pieces have keys of other queries only.",
                },
            )
            break
    for at in [i for i in merges if "question" not in trace.steps[i]][:1]:
        trace.ask(
            at,
            "Two states over different keys become one. How much does each of them count?",
            (
                "by its share of the sum of exponentials",
                "Attention divides by the sum over all keys: each state has a part of that sum.",
            ),
            (
                "by its share of the keys that it read",
                "A few keys with large scores may outweigh many keys with small ones.",
            ),
            (
                "by its share of the largest scores",
                "The largest score only keeps the exponentials in range. The sum of all of them counts.",
            ),
        )
