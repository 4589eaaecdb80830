"""Recorded steps: what the code that really runs did, to be stepped through forward and back."""

from inference_opt.trace.record import record, recording, step, unrecorded
from inference_opt.trace.trace import Trace

__all__ = ["Trace", "record", "recording", "step", "unrecorded"]
