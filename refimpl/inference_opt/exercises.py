"""The exercises' face: `from inference_opt.exercises import check, hint, start`. They stand in `explain/exercises/`."""

from inference_opt.explain.exercises import EXERCISES, Verdict, check, hint, solution, start

__all__ = ["EXERCISES", "Verdict", "check", "hint", "solution", "start"]
