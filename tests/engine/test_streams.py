"""A stream yields every token of its own prompts, whoever made the step that brought it."""

import pytest

from inference_opt.engine.completion import Delta
from inference_opt.engine.engine import Engine
from inference_opt.engine.streams import Stream
from inference_opt.radix.eviction import LRU
from inference_opt.sampling import SamplingParams
from inference_opt.speculative.models import SmallerModel
from tests.engine.invariants import Echo, assert_sound, dump, expected
from tests.engine.test_completion import byte_level
from tests.engine.test_failures import Lines, interrupt_at
from tests.toys import tokens_of, toy

LONG = SamplingParams(max_new_tokens=6, ignore_eos=True)
PROMPTS = {"a": [1, 2, 3], "b": [4, 4]}
RIGHT = {name: expected(prompt, LONG, 64) for name, prompt in PROMPTS.items()}


def made(drafter=None):
    return Engine(Echo(64), drafter=drafter, page_size=2, num_pages=60)


def tokens(stream):
    return [token for new in stream for token in new.tokens]


@pytest.mark.parametrize("drafter", [None, lambda: SmallerModel(Echo(64))])
def test_two_streams_in_turn_each_have_all_their_tokens(drafter):
    engine = made(drafter and drafter())
    streams = {name: engine.stream([prompt], LONG) for name, prompt in PROMPTS.items()}
    got = {name: [] for name in streams}
    for _ in range(9):
        for name, stream in streams.items():
            got[name] += new.tokens if (new := next(stream, None)) else []
    assert got == RIGHT
    assert engine.requests == {}


@pytest.mark.parametrize("drafter", [None, lambda: SmallerModel(Echo(64))])
def test_a_stream_misses_nothing_that_other_calls_bring(drafter):
    engine = made(drafter and drafter())
    others = {
        1: lambda: engine.generate([PROMPTS["b"]], LONG),
        2: lambda: [engine.step() for _ in range(2)],
        3: lambda: next(engine.stream([[5]], LONG)),
    }
    got = []
    for i, new in enumerate(engine.stream([PROMPTS["a"]], LONG)):
        got += new.tokens
        others.get(i, lambda: None)()
    assert got == RIGHT["a"]
    assert_sound(engine)


def test_generate_has_whole_texts_though_others_step_meanwhile():
    engine = made()
    stream = engine.stream([PROMPTS["a"]], LONG)
    first = next(stream).tokens
    assert tokens_of(engine.generate([PROMPTS["b"], PROMPTS["a"]], LONG)) == [RIGHT["b"], RIGHT["a"]]
    assert first + tokens(stream) == RIGHT["a"]


def test_a_request_that_another_aborts_ends_its_part_of_the_stream():
    engine = made()
    stream = engine.stream([PROMPTS["a"], PROMPTS["b"]], LONG)
    got = {0: [], 1: []}
    for i, new in enumerate(stream):
        got[new.index] += new.tokens
        if i == 3:
            engine.abort(next(id for id, r in engine.requests.items() if r.prompt == PROMPTS["a"]))
    assert got == {0: RIGHT["a"][:2], 1: RIGHT["b"]}
    stream = engine.stream([PROMPTS["a"]], LONG)
    next(stream)
    for id in list(engine.requests):
        engine.abort(id)
    assert list(stream) == [Delta(0, [], "", "abort")]


def test_a_step_that_fails_in_one_stream_costs_the_other_nothing():
    engine = made()
    streams = {name: engine.stream([prompt], LONG) for name, prompt in PROMPTS.items()}
    got = {name: next(stream).tokens + next(stream).tokens for name, stream in streams.items()}
    engine.model.fault = "between"
    with pytest.raises(RuntimeError, match="broken"):
        tokens(streams["a"])
    assert got["b"] + tokens(streams["b"]) == RIGHT["b"]
    assert engine.requests == {}  # what failed was aborted
    assert_sound(engine)


BAD = {
    "can never fit": ([[1], [2]], [LONG, SamplingParams(max_new_tokens=1000)]),
    "outside the vocabulary": ([[1], [6]], LONG),
    "got 2 for 1": ([[1]], [LONG, LONG]),
    "params must be": ([[1]], {"temperature": 1.0}),
}


@pytest.mark.parametrize("message", BAD)
def test_a_stream_is_checked_when_it_is_asked_for(message, untyped):
    engine = Engine(Echo(2000), page_size=2, num_pages=30)
    engine.add([1, 2], LONG)
    before = dump(engine)
    with pytest.raises(ValueError, match=message):
        engine.stream(*BAD[message])
    with pytest.raises(ValueError, match=message):
        engine.generate(*BAD[message])
    engine.stream([[1]], LONG)  # never asked for a token
    assert dump(engine) == before


def test_what_changes_after_the_call_is_not_read():
    engine, prompt = made(), list(PROMPTS["a"])
    stream = engine.stream([prompt], LONG)
    prompt[:] = [0]
    assert tokens(stream) == RIGHT["a"]


def meddled(calls):
    """An engine in whose next use of the tree the calls are made, once."""

    class Meddles(LRU):
        def touch(self, *use):
            while calls:
                calls.pop()()

    return Engine(Echo(64), page_size=2, num_pages=60, policy=Meddles())


def test_a_stream_dropped_in_the_middle_of_a_step_leaves_nobody_behind():
    calls = []
    engine = meddled(calls)
    left = [engine.stream([[1, 2, 3], [4, 4]], LONG)]
    next(left[0])
    other = engine.add([1, 1], LONG)
    calls.append(left.clear)
    while engine.requests:
        engine.step()
    assert not left
    assert other.output == expected([1, 1], LONG, 64)
    assert engine.stats.decode_tokens < 3 * LONG.max_new_tokens - 3, "those that nobody waits for went on"
    assert_sound(engine)


def test_a_refused_call_does_not_end_a_stream():
    streams = []

    def refused():
        with pytest.raises(RuntimeError, match="under way"):
            next(streams[0])

    engine = meddled([refused])
    streams.append(engine.stream([[1, 2, 3]], LONG))
    engine.add([4, 4], LONG)
    engine.step()
    assert tokens(streams[0]) == expected([1, 2, 3], LONG, 64)


def test_streams_cost_the_same_for_each_of_many_prompts(monkeypatch):
    looks = 0
    whole = Stream._take

    def counted(self, i):
        nonlocal looks
        looks += 1
        return whole(self, i)

    monkeypatch.setattr(Stream, "_take", counted)
    costs = []
    for n in (50, 200):
        looks = 0
        engine = Engine(Echo(64), page_size=4, num_pages=400, max_running=4)
        asked = [[1 + i % 5, 2] for i in range(n)], SamplingParams(3, ignore_eos=True)
        assert tokens(engine.stream(*asked))
        costs.append(looks / n)
    assert costs[1] < 1.2 * costs[0]


def test_a_stream_interrupted_at_any_line_yields_everything_once():
    model, tokenizer = toy(3, vocab_size=256), byte_level()
    params = [SamplingParams(n, ignore_eos=True, stop="\n\n\n") for n in (2, 1)]

    def read(during):
        """All that a stream yields of each text; whoever is interrupted asks again."""
        stream = Engine(model, tokenizer=tokenizer, page_size=2, num_pages=60).stream([[65, 66], [67]], params)
        tokens, texts, ends = [[], []], ["", ""], []
        while True:
            try:
                new = during(lambda: next(stream, None))
            except KeyboardInterrupt:
                continue
            if new is None:
                return tokens, texts, sorted(ends)
            tokens[new.index] += new.tokens
            texts[new.index] += new.text
            ends += [(new.index, new.finish_reason)] * bool(new.finish_reason)

    places = []
    whole = read(Lines(lambda *place: places.append(place)).during)
    assert whole[2] == [(0, "length"), (1, "length")]
    own = [n for n, file, _ in places if file.endswith(("streams.py", "completion.py"))]  # others: test_failures.py
    assert len(own) > 50
    for at in own:
        assert read(interrupt_at(at).during) == whole


@pytest.mark.parametrize("at", range(5, 400, 29))
def test_an_interrupted_generate_leaves_nobody_behind(at):
    engine = Engine(Echo(64), page_size=2, num_pages=60)
    with pytest.raises(KeyboardInterrupt):
        interrupt_at(at).during(lambda: engine.generate([[1, 2, 3], [4, 4]], LONG))
    engine.step()
    assert not engine.requests
    assert_sound(engine)
