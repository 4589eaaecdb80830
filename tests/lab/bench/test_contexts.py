"""Decoding from long contexts: the batch that fits, and contexts that are prefilled once."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.engine.engine import Engine
from inference_opt.lab.bench.contexts import RESERVE, decode_from, most_requests
from inference_opt.lab.bench.shapes import SHAPES, random_model
from inference_opt.model.transformer import count_weights
from tests.lab.bench.test_together import LATENT


@given(
    st.sampled_from(list(SHAPES)), st.sampled_from([128, 8_192, 32_768]), st.sampled_from([2, 4]), st.integers(0, 200)
)
def test_one_request_more_would_not_fit(shape, context, itemsize, gigabytes):
    config, memory = SHAPES[shape], gigabytes * 10**9

    def needed(batch):
        return RESERVE + itemsize * (count_weights(config) + batch * context * config.kv_elements_per_token)

    most = most_requests(config, context, itemsize, memory)
    assert needed(most + 1) > memory
    assert most == 0 or needed(most) <= memory


def test_contexts_are_prefilled_once_and_all_begin_together(monkeypatch):
    fed, engines, step = [], [], Engine.step

    def watched(engine):
        outputs = step(engine)
        engines.append(engine)
        fed.append([output.fed for output in outputs])
        return outputs

    monkeypatch.setattr(Engine, "step", watched)
    model = random_model(replace(LATENT, max_context=512), torch.float32, torch.device("cpu"))
    figures = decode_from(model, 3, 200, 9, 4, 2)
    assert len({id(engine) for engine in engines}) == 1
    stats = engines[0].stats
    assert sum(fed[0]) == 3 * 200
    runs = [i for i, counts in enumerate(fed) if max(counts) > 1]
    assert runs == [0, 9, 18]
    assert [fed[i] for i in runs[1:]] == [[200 % 64] * 3] * 2
    assert stats.evicted_pages == stats.preemptions == 0
    assert figures["bytes_per_token"] == 4 * 2 * 20
    assert figures["decode"] > 0
