"""The player as a widget of JupyterLab: the same module as everywhere, over a trace that may be replaced."""

from typing import Any

import anywidget
import traitlets

from inference_opt.explain.player.page import module
from inference_opt.trace.trace import Trace


class Player(anywidget.AnyWidget):
    """Shows a trace. `show` puts another in its place."""

    _esm = module()
    trace = traitlets.Dict().tag(sync=True)

    def __init__(self, trace: Trace, **more: Any) -> None:
        super().__init__(trace=trace.as_json(), **more)

    def show(self, trace: Trace) -> None:
        """Another trace, at the step nearest to the one that is shown: the same occurrence of the same event."""
        self.trace = trace.as_json()

    def __repr__(self) -> str:
        return f"Player({self.trace['title']!r}, {len(self.trace['steps'])} steps)"
