"""What the tests rely on: a call that breaks its signature fails, whether there are shapes in it or not."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.signatures import checked


@checked
def half(n: int) -> int:
    return n / 2 if n % 2 else n // 2


@checked
def stacked(rows: list[Float[Tensor, "n d"]], last: Float[Tensor, " d"]) -> Float[Tensor, "m d"]:
    return torch.cat((*rows, last[None]))


Row = Float[Tensor, " d"]


@checked
def each(rows: list[Row]) -> Iterator[Row]:
    yield from rows


@checked
def doubled(row: Row) -> Row:
    return 2 * row


@checked
@dataclass
class Point:
    x: int


def test_types_and_shapes_are_checked():
    assert half(4) == 2
    assert stacked([torch.ones(2, 3)], torch.ones(3)).shape == (3, 3)
    for argument in ("4", 3):  # the second returns 1.5
        with pytest.raises(TypeCheckError):
            half(argument)
    for rows in ([torch.ones(2, 4)], [torch.ones(4)]):
        with pytest.raises(TypeCheckError):
            stacked(rows, torch.ones(3))
    with pytest.raises(TypeCheckError):
        Point("x")


def test_a_generator_leaves_the_check_of_others_alone():
    assert len(list(each([torch.ones(3)]))) == 1
    with pytest.raises(TypeCheckError):
        doubled(torch.ones(2, 3))


def test_nothing_is_checked_where_that_is_turned_off(untyped):
    assert half(3) == 1.5
    assert Point("x").x == "x"
