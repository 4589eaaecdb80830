"""A scenario with controls: whatever is edited is run again, by the real code, and shown."""

from typing import Any

import ipywidgets as widgets

from inference_opt.explain.player.widget import Player
from inference_opt.explain.scenarios import SCENARIOS, play

LEAST = {"seed": 0, "gamma": 0, "evict": 0, "stem": 0}  # of a number; of any other, 1


def explore(name: str, **changes: Any) -> widgets.VBox:
    """A player of a scenario and a control for each of its parameters. ValueError as of `play`."""
    player = Player(play(name, **changes))
    said = widgets.HTML()
    parameters = SCENARIOS[name].parameters | changes
    controls = {parameter: control(parameter, value) for parameter, value in parameters.items()}

    def again(_: Any) -> None:
        try:
            player.show(play(name, **{parameter: each.value for parameter, each in controls.items()}))
            said.value = ""
        except ValueError as error:
            text = str(error).replace("&", "&amp;").replace("<", "&lt;")
            said.value = f'<p role="alert" style="color: #b3373d; margin: 0">{text}</p>'  # the last picture stays

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
    words = name.replace("_", " ")
    if isinstance(value, str):
        made = widgets.Textarea if "\n" in value else widgets.Text
        layout = {"width": "26em"} | ({"height": "6em"} if "\n" in value else {})
        return made(value=value, description=words, continuous_update=False, layout=layout)
    if isinstance(value, float):
        return widgets.FloatSlider(value=value, min=0, max=2, step=0.1, description=words, continuous_update=False)
    return widgets.BoundedIntText(
        value=value, min=LEAST.get(name, 1), max=512, description=words, layout={"width": "13em"}
    )
