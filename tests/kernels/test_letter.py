"""A letter puts the same numbers into the same places as a copy to each buffer would, and touches nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_opt.kernels.letter import PROGRAMS, Letter, deliver
from inference_opt.kernels.transfer import read_back, sent

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = {torch.int32: np.int32, torch.int64: np.int64, torch.float32: np.float32}


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.sampled_from([*KINDS]), st.integers(1, 3), st.integers(0, 40), st.integers(0, 5)),
        min_size=1, max_size=4,
    ),
    st.sampled_from([4, 64]), st.integers(0, 99),
)  # fmt: skip
def test_the_numbers_of_all_parts_arrive(parts, block, seed):
    rng, buffers, letter = np.random.default_rng(seed), [], Letter(DEVICE)
    for dtype, rows, count, before in parts:
        buffer = torch.full((rows, before + count + 3), 7, dtype=dtype, device=DEVICE)
        right = buffer.cpu().clone()
        numbers = (rng.standard_normal((rows, count)) * 1e6).astype(KINDS[dtype])
        right[:, before : before + count] = torch.from_numpy(numbers)
        letter.put(buffer[:, before : before + count], numbers)
        buffers.append((buffer, right))
    if letter.parts:
        words, count = letter.packed()
        deliver[(count, PROGRAMS)](words.to(DEVICE), block)
    for buffer, right in buffers:
        assert torch.equal(buffer.cpu(), right)
    for buffer, _ in buffers:
        buffer.fill_(7)
    with letter:
        pass
    for buffer, right in buffers:
        assert torch.equal(buffer.cpu(), right)


def test_one_number_fills_a_buffer_and_an_error_sends_nothing():
    buffer = torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
    with Letter(DEVICE) as letter:
        letter.put(buffer, -1)
    assert (buffer == -1).all()
    letter = Letter(DEVICE)
    letter.put(buffer, 5)
    with pytest.raises(ValueError, match="shape"), letter:
        letter.put(buffer, [1, 2, 3])
    assert (buffer == -1).all()


def test_what_was_read_back_is_what_was_there_then():
    numbers = sent(torch.arange(12).view(3, 4), DEVICE)
    found = read_back([numbers[:, :2], numbers[1]])
    numbers.zero_()
    part, row = found()
    assert part.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert row.tolist() == [4, 5, 6, 7]
