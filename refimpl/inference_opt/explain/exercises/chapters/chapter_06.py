"""Chapter 06: speculative decoding."""

from typing import Any

from hypothesis import strategies as st

EXERCISES: tuple[Any, ...] = ()
