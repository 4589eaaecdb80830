"""Recorded steps: what the code that really runs did, to be stepped through forward and back."""

from inference_opt.steps.record import record, recording, step, unrecorded
from inference_opt.steps.trace import Trace

__all__ = ["Trace", "record", "recording", "step", "unrecorded"]
