"""A scenario with controls: whatever is edited is run again, by the real code, and shown."""

import html
from typing import Any

import ipywidgets as widgets

from inference_opt.explain.player.widget import Player
from inference_opt.explain.scenarios import SCENARIOS, play
from inference_opt.explain.scenarios.speculation import RULES

CHOICES = {"rule": tuple(RULES)}  # parameters with a closed set of values
LEAST = {"gamma": 0, "evict": 0, "prefix": 0}  # of a number; of any other, 1; `play` knows what a seed may be
MOST = 512
WHOLE = {"description_width": "initial"}  # a label takes the room that it needs


def explore(name: str, **changes: Any) -> widgets.VBox:
    """A player of a scenario and a control for each of its parameters. ValueError as of `play`."""
    player = Player(play(name, **changes))
    said = widgets.HTML()
    parameters = SCENARIOS[name].parameters | changes
    controls = {parameter: control(parameter, value) for parameter, value in parameters.items()}

    def again(_: Any) -> None:
        try:
            values = {parameter: checked(parameter, each.value) for parameter, each in controls.items()}
            player.show(play(name, **values))
            said.value = ""
        except ValueError as error:  # the last picture stays
            said.value = f'<p role="alert" style="color: #b3373d; margin: 0">{html.escape(str(error))}</p>'

    for each in controls.values():
        each.observe(again, names="value")
    return Shown([widgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), said, player])


class Shown(widgets.VBox):
    """Controls, complaints, player; as text, where no widget can be shown, only what it is."""

    def __repr__(self) -> str:
        return f"{self.children[2]!r} and controls: run this cell to play it"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)}  # ipywidgets cuts it at 110 letters


def control(name: str, value: Any) -> Any:
    """The control that fits a value."""
    common = {"value": value, "description": name.replace("_", " "), "style": WHOLE}
    if name in CHOICES:
        return widgets.Dropdown(options=CHOICES[name], **common)
    if isinstance(value, str):
        made = widgets.Textarea if "\n" in value else widgets.Text
        layout = {"width": "26em"} | ({"height": "6em"} if "\n" in value else {})
        return made(continuous_update=False, layout=layout, **common)
    if isinstance(value, float):
        return widgets.FloatSlider(min=0, max=2, step=0.1, continuous_update=False, layout={"width": "26em"}, **common)
    return widgets.IntText(layout={"width": "13em"}, **common)


def checked(name: str, value: Any) -> Any:
    """A control's value. ValueError for a number out of range: a control with bounds would change it silently."""
    if type(value) is int and name != "seed" and not LEAST.get(name, 1) <= value <= MOST:
        words = name.replace("_", " ")
        raise ValueError(f"{words}: expected a whole number from {LEAST.get(name, 1)} to {MOST}, got {value}")
    return value
