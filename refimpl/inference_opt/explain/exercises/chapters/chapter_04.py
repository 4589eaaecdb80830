"""Chapter 04."""

from typing import Any

EXERCISES: tuple[Any, ...] = ()
