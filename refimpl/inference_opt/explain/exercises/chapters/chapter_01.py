"""Chapter 01."""

from typing import Any

EXERCISES: tuple[Any, ...] = ()
