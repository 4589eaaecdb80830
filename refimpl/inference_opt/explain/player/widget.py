"""The player as a widget of JupyterLab: the same module as everywhere, over a trace that may be replaced."""

from typing import Any

import anywidget
import traitlets

from inference_opt.explain.player.page import checked, module
from inference_opt.trace.trace import Trace


class Player(anywidget.AnyWidget):
    """Shows a trace, first the step of index `at`. `show` puts another in its place. ValueError outside the trace."""

    _esm = module()
    trace = traitlets.Dict().tag(sync=True)
    at = traitlets.Int().tag(sync=True)

    def __init__(self, trace: Trace, at: int = 0, **more: Any) -> None:
        super().__init__(trace=trace.as_json(), at=checked(trace, at), **more)

    def show(self, trace: Trace) -> None:
        """Another trace, at the step nearest to the one that is shown: the same occurrence of the same event."""
        self.trace = trace.as_json()

    def __repr__(self) -> str:
        return f"Player({self.trace['title']!r}, {len(self.trace['steps'])} steps)"
