"""A picture of what a fidelity was learnt from: every trial, the line and its band, as SVG. Knows no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from kvscope.fidelity import MEASURES

if TYPE_CHECKING:
    from kvscope.fidelity import Fidelity, Trial

_SIDE, _LEFT, _TOP, _GAP = 330, 70, 50, 90
_TITLES = {"kl": "forced KL, nats per bit", "flips": "bits that flip, share"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'

Place = Callable[[float], float]
"""From a value to a coordinate."""


def scatter_svg(found: Fidelity) -> str:
    """One panel a measure: estimated loss to the right, measured error upwards, both logarithmic."""
    kinds = sorted({trial.schedule for trial in found.trials})
    width, height = _LEFT + len(MEASURES) * (_SIDE + _GAP), _TOP + _SIDE + 70
    panels = [_panel(found, measure, kinds, _LEFT + index * (_SIDE + _GAP)) for index, measure in enumerate(MEASURES)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *panels,
            *_legend(kinds, height - 14),
            "</svg>\n",
        ]
    )


def _panel(found: Fidelity, measure: str, kinds: Sequence[str], left: float) -> str:
    trials = [trial for trial in found.trials if trial.lost > 0 and getattr(trial, measure) > 0]
    x = _place([trial.lost for trial in trials], left, left + _SIDE)
    y = _place([getattr(trial, measure) for trial in trials], _TOP + _SIDE, _TOP)
    line = found.lines[measure]
    count = sum(trial.lost >= found.least for trial in trials)
    title = f"{_TITLES[measure]}: rank correlation {line.rank_correlation:.3f}, {count} trials"
    return "\n".join(
        [
            f'<clipPath id="{measure}"><rect x="{left}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/></clipPath>',
            f'<text x="{left}" y="{_TOP - 18}" {_TEXT}>{title}</text>',
            f'<rect x="{left}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#999"/>',
            *_ticks([trial.lost for trial in trials], x, left, sideways=True),
            *_ticks([getattr(trial, measure) for trial in trials], y, left, sideways=False),
            *(_dot(trial, measure, kinds, x, y) for trial in trials),
            *(_stroke(found, measure, x, y, side) for side in (-1, 0, 1)),
            f'<text x="{left}" y="{_TOP + _SIDE + 34}" {_TEXT}>attention lost, share (estimated)</text>',
        ]
    )


def _place(values: Sequence[float], begin: float, end: float) -> Place:
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = 0.04 * max(high - low, 1e-9)
    low, high = low - pad, high + pad
    return lambda value: begin + (math.log10(value) - low) / (high - low) * (end - begin)


def _ticks(values: Sequence[float], place: Place, left: float, *, sideways: bool) -> list[str]:
    lines = []
    for power in range(math.ceil(math.log10(min(values))), math.floor(math.log10(max(values))) + 1):
        at = place(10.0**power)
        label = f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}"
        if sideways:
            lines.append(f'<path d="M{at:.1f} {_TOP}V{_TOP + _SIDE}" stroke="#eee"/>')
            lines.append(f'<text x="{at:.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle" {_TEXT}>{label}</text>')
        else:
            lines.append(f'<path d="M{left} {at:.1f}H{left + _SIDE}" stroke="#eee"/>')
            lines.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end" {_TEXT}>{label}</text>')
    return lines


def _dot(trial: Trial, measure: str, kinds: Sequence[str], x: Place, y: Place) -> str:
    """Each kind has a colour and a shape of its own."""
    index = kinds.index(trial.schedule)
    colour = _COLOURS[index % len(_COLOURS)]
    return _mark(x(trial.lost), y(getattr(trial, measure)), index, colour)


def _mark(x: float, y: float, shape: int, colour: str) -> str:
    outlines = ("m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0", "m-3 -3h6v6h-6z", "m0 -4l4 7h-8z")
    return f'<path d="M{x:.1f} {y:.1f}{outlines[shape % 3]}" fill="none" stroke="{colour}" stroke-opacity="0.7"/>'


def _stroke(found: Fidelity, measure: str, x: Place, y: Place, side: int) -> str:
    """The line itself, or an edge of its band, dashed."""
    line = found.lines[measure]
    ends = []
    for lost in (found.least, *(10.0**place for place, _, _ in line.knots[1:-1]), found.most):
        band = line.band(lost)
        value = {-1: band.low, 0: band.middle, 1: band.high}[side]
        ends.append(f"{x(lost):.1f} {y(value):.1f}")
    dashes = ' stroke-dasharray="5 4"' if side else ""
    return f'<path d="M{"L".join(ends)}" stroke="#222" fill="none" clip-path="url(#{measure})"{dashes}/>'


def _legend(kinds: Sequence[str], y: float) -> list[str]:
    lines = []
    for index, kind in enumerate(kinds):
        x = _LEFT + index * 120.0
        lines.append(_mark(x, y - 4, index, _COLOURS[index % len(_COLOURS)]))
        lines.append(f'<text x="{x + 10}" y="{y}" {_TEXT}>{escape(kind)}</text>')
    x = _LEFT + len(kinds) * 120.0
    lines.append(f'<path d="M{x} {y - 4}h20" stroke="#222" stroke-dasharray="5 4"/>')
    lines.append(f'<text x="{x + 26}" y="{y}" {_TEXT}>band that is meant to hold eight of ten</text>')
    return lines
