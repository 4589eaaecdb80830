"""What happened, as data: `emit` tells it, a `Trace` keeps it. Sentences and pictures are made in `explain/`."""

from inference_opt.trace.emit import Listener, emit, emit_at, listening, recording, unrecorded, watched
from inference_opt.trace.trace import Trace

__all__ = ["Listener", "Trace", "emit", "emit_at", "listening", "recording", "unrecorded", "watched"]
