"""Pages over a trace: one HTML file that needs nothing else, and the frame that notebooks and the docs show.

The player's files (`*.js`, in the order of their names) are put end to end into one ES module, their style and
the trace into the page. The page's own policy forbids every request. What it tells stands in a plain table as well:
in print, and where scripts do not run.
"""

import html
import json
from functools import cache
from pathlib import Path

from inference_opt.trace.trace import Trace

PLAYER = Path(__file__).resolve().parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
body { margin: 0; background: #fff; font: 15px/1.5 system-ui, sans-serif; color: #1d2733; }
@media (prefers-color-scheme: dark) { body { background: #151a21; color: #e6eaf0; } }
main { max-width: 1500px; margin: 0 auto; padding: 1rem; }
@media (min-width: 1700px) { main { max-width: 2100px; } }
@media (max-width: 520px) { main { padding: 0; } }
table.told { border-collapse: collapse; font-size: 14px; }
table.told :is(td, th) { border: 1px solid #999; padding: .2em .5em; text-align: left; vertical-align: top; }
table.told td:nth-child(3) { overflow-wrap: anywhere; }
caption { text-align: left; font-weight: bold; padding: .5em 0; }
html.plays table.told { display: none; }
@media print { body { background: #fff; color: #000; } html.plays table.told { display: table; } }
"""


@cache
def module() -> str:
    """The player as one ES module."""
    css = json.dumps((PLAYER / "player.css").read_text(encoding="utf-8"))
    parts = [path.read_text(encoding="utf-8") for path in sorted(PLAYER.glob("*.js"))]
    return f"const CSS = {css};\n" + "\n".join(parts)


def classic() -> str:
    """The player as a plain script, which leaves `mount`: it can stand within a page, and beside one on a disk."""
    script = module().replace("export default", "const player =").replace("export function", "function")
    return script.replace("</", "<\\/")  # it would end the script's element, wherever it stands


def inline(trace: Trace) -> str:
    """A trace's JSON as it may stand in a script's element."""
    return json.dumps(trace.as_json(), ensure_ascii=False).replace("<", "\\u003c")


def checked(trace: Trace, at: int) -> int:
    """A step's index. ValueError outside the trace."""
    steps = max(1, len(trace))  # a page without steps says that there are none
    if not 0 <= at < steps:
        raise ValueError(f"at must be the index of a step, 0 to {steps - 1} in this trace, got {at}")
    return at


def page(trace: Trace, at: int = 0) -> str:
    """A whole HTML file that opens at the step of index `at`. ValueError outside the trace."""
    checked(trace, at)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(trace.title)} · inference-opt</title>
<style>{STYLE}</style>
<script>document.documentElement.className = "plays"; // before the table is laid out in vain</script>
</head>
<body>
<main>
<div id="player"></div>
{table(trace)}
</main>
<script type="application/json" id="trace">{inline(trace)}</script>
<script type="module">
{classic()}
mount(document.getElementById("player"), document.getElementById("trace").textContent, true, {at});
</script>
</body>
</html>
"""


def frame(trace: Trace, height: int = 760, at: int = 0) -> str:
    """The page within another: nothing of either reaches the other. ValueError as of `page`."""
    content = html.escape(page(trace, at), quote=True)
    title = html.escape(f"step through: {trace.title}", quote=True)
    style = f"width: 100%; height: {height}px; border: 0"
    return f'<iframe srcdoc="{content}" title="{title}" style="{style}" loading="lazy"></iframe>'


def table(trace: Trace) -> str:
    """What a trace tells, a row a step: for print, and where scripts do not run."""

    def row(number: int) -> str:
        step = trace.steps[number]
        source = trace.sources[step["source"]]
        broken = [name for name, held in step["invariants"].items() if not held]
        checked = f"broken: {', '.join(broken)}" if broken else f"{len(step['invariants'])} hold"
        cells = (step["event"], step["text"], f"{source['file']}:{source['line']}", checked)
        return f"<tr><th scope=row>{number + 1}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"

    head = "".join(f"<th scope=col>{name}</th>" for name in ("step", "event", "what happened", "source", "invariants"))
    about = html.escape(" ".join(filter(None, (trace.title + ".", trace.about, trace.cut))))
    rows = "\n".join(map(row, range(len(trace))))
    return f"<table class=told><caption>{about}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


Trace.html = frame  # what a notebook shows of a trace
