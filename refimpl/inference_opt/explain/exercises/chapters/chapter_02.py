"""Chapter 02."""

from typing import Any

EXERCISES: tuple[Any, ...] = ()
