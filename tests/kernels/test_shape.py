"""Shapes of drafts: trees whose first drafts are smaller trees, and the passes that a drafter makes for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_opt.kernels.shape import PARENTS, Shape
from inference_opt.kernels.tree import WINDOW

SHAPES = st.builds(Shape, st.integers(0, 80), st.booleans())


def ancestors(parents, node):
    """Of a node, from itself up; −1 is the text."""
    return [node, *ancestors(parents, parents[node])] if node >= 0 else []


@given(SHAPES)
def test_a_smaller_tree_is_the_first_drafts_of_a_larger_one(shape):
    parents = shape.parents
    assert len(parents) == shape.gamma
    assert all(-1 <= parent < i for i, parent in enumerate(parents))
    assert shape.depths == [0, *(len(ancestors(parents, i)) for i in range(shape.gamma))]
    chain = list(range(-1, shape.gamma - 1))
    if not shape.branches or shape.gamma >= WINDOW:
        assert parents == chain
    elif shape.gamma:
        assert Shape(shape.gamma - 1, True).parents == parents[:-1]
        assert tuple(parents[: len(PARENTS)]) == PARENTS[: shape.gamma]


@given(SHAPES)
def test_a_row_sees_its_ancestors_and_the_text(shape):
    seen = shape.seen or [-1] * (shape.gamma + 1)
    for row, bits in enumerate(seen):
        right = {0, *(node + 1 for node in ancestors(shape.parents, row - 1))}
        if row < WINDOW:
            assert {row - back for back in range(row + 1) if bits >> back & 1} == right
            assert all(bits >> back & 1 for back in range(row + 1, WINDOW)), "the text in front"


@given(SHAPES.filter(lambda shape: shape.gamma > 0))
def test_the_passes_give_every_draft_once_and_read_each_behind_its_parent(shape):
    parents, given_, order = shape.parents, [], []
    for depth, each in enumerate(shape.passes):
        before = shape.passes[depth - 1].read if depth else [-1]
        assert each.before == len(order)
        order += [node for node in each.read if node >= 0]
        for node, above, bits, children in zip(each.read, each.above, each.seen, each.children):
            given_ += children
            assert children == [i for i, parent in enumerate(parents) if parent == node] != []
            if depth:
                assert before[above] == parents[node]
                assert shape.depths[node + 1] == depth
                slot = order.index(node)
                right = {order.index(i) for i in ancestors(parents, node)}
                if slot < WINDOW:
                    assert {slot - back for back in range(slot + 1) if bits >> back & 1} == right
    assert sorted(given_) == list(range(shape.gamma))
    assert len(shape.passes) == shape.depth


@pytest.mark.parametrize("gamma", [1, 4, 12])
def test_a_chain_needs_no_mask(gamma):
    assert Shape(gamma).seen is None
    assert not any(each.branches for each in Shape(gamma).passes)
    assert Shape(12, branches=True).seen is not None
