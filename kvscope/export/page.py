"""The frame of an HTML page, dark or light as the reader's system is, and the small pieces of markup in it.

Foreign text becomes markup in `safe`, and nowhere else.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kvscope.png import png_bytes
from kvscope.units import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SMALL = 256
"""Pictures up to this wide are enlarged with their pixels sharp."""

# Nothing may be fetched or run, whatever the page holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #20262c; --muted: #5d646b; --ground: #f8f7f3; --panel: #efeee9;
  --line: #d5d2c8; --accent: #0f6d85; --budget: #8f5f00; --bad: #b3332e; --good: #2f7a3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #d3dae1; --muted: #8b949d; --ground: #0f1317;
  --panel: #1c232b; --line: #323b45; --accent: #6cc4d9; --budget: #e2b55a; --bad: #ea7f79; --good: #8cc28a; } }
@media print { details:not([open]) > *:not(summary) { display: block; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 64rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.4rem 0 .6rem; font-size: 1.1rem; }
p { margin: .4rem 0; }
.note, figcaption, .key { color: var(--muted); font-size: .875rem; }
.prompt { overflow-wrap: anywhere; }
.status.failed strong, .status.crashed strong { color: var(--bad); }
.status.done strong, .status.live strong { color: var(--good); }
.status.cancelled strong { color: var(--budget); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.1rem .25rem 0; text-align: left; vertical-align: baseline; font-weight: normal; }
thead th { color: var(--muted); font-size: .875rem; }
tbody tr { border-top: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
.shares { display: block; overflow-x: auto; font-size: .8125rem; }
.shares th, .shares td { padding: .2rem .4rem; text-align: right; white-space: nowrap; }
.shares td { background: color-mix(in srgb, var(--accent) calc(var(--share, 0) * 45%), transparent); }
.tag { color: var(--muted); }
.tag.measured { color: var(--accent); }
.tag.forced { color: var(--budget); }
.pictures, .maps { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
.pictures img { display: block; height: 7rem; max-width: 100%; border-radius: 3px; }
.pictures .final img { height: 17rem; }
img.small { image-rendering: pixelated; }
svg { display: block; }
.chart { width: 100%; height: auto; }
.cells { width: 11rem; height: auto; padding: 4px; background: var(--panel); border-radius: 3px; }
.maps figcaption { width: 11rem; }
.bar rect, .bar { display: inline-block; }
.time, .memory { fill: var(--accent); }
.memory { opacity: .6; }
.axis { fill: var(--muted); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); fill: none; }
.ground { fill: none; }
.ground.odd { fill: var(--panel); }
.kept { fill: var(--accent); }
.dropped { fill: var(--muted); }
path.stored, path.accounted, path.budget, path.full { fill: none; stroke-width: 2; }
path.stored { stroke: var(--muted); }
path.accounted { stroke: var(--accent); }
path.budget { stroke: var(--budget); stroke-dasharray: 7 4; }
path.full { stroke: var(--bad); stroke-dasharray: 2 4; }
.key span { margin-right: 1.4rem; white-space: nowrap; }
.key span::before { content: ""; display: inline-block; width: 1.6rem; margin-right: .4rem; vertical-align: middle;
  border-top: 2px solid; }
.key .stored::before { border-color: var(--muted); }
.key .accounted::before { border-color: var(--accent); }
.key .budget::before { border-color: var(--budget); border-top-style: dashed; }
.key .full::before { border-color: var(--bad); border-top-style: dotted; }
details { margin-top: 2rem; }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media (max-width: 40rem) { table { display: block; overflow-x: auto; } }
"""


def document(title: str, body: str) -> str:
    """The whole page. Title and body are markup already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table of cells that are markup already; the first of each row names it."""
    yield "<table><thead><tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr></thead><tbody>"
    for name, *values in rows:
        yield f"<tr><th>{name}</th>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>"
    yield "</tbody></table>"


def note(markup: str) -> str:
    """A paragraph that explains."""
    return f'<p class="note">{markup}</p>'


def picture(caption: str, rgb: NDArray[np.uint8], *, style: str = "") -> str:
    """A picture, uint8 [height, width, 3], that is part of the page."""
    encoded = base64.b64encode(png_bytes(rgb)).decode("ascii")
    small = ' class="small"' if rgb.shape[1] <= _SMALL else ""
    shown = f'<img{small} src="data:image/png;base64,{encoded}" alt="{caption}">'
    return f'<figure class="{style}">{shown}<figcaption>{caption}</figcaption></figure>'


def safe(value: object) -> str:
    """A foreign text, or whatever stands in its place, as markup that shows it, and nothing else."""
    return html.escape(printable(str(value)))
