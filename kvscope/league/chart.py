"""One measure of the league as curves over true bytes, as SVG that stands alone: a line, colour and mark each policy.

The bars are 95 % intervals over prompts. Knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from kvscope.league.reference import CAVEATS, LABEL, reference_bytes
from kvscope.league.settings import FULL
from kvscope.league.table import MEASURES
from kvscope.units import bytes_text, fraction_text, printable

if TYPE_CHECKING:
    from kvscope.league.settings import Settings
    from kvscope.league.standings import Mean, Standing

_LEFT, _TOP, _WIDTH, _HEIGHT, _KEY = 78, 40, 620, 470, 260
_FOOT = 118
_TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'
_SMALL = 'font-family="sans-serif" font-size="10.5" fill="#555"'
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a07800", "#444444")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_MARKS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "m-4 -4h8v8h-8z",
    "m0 -5l5 9h-10z",
    "m0 5l5 -9h-10z",
    "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "m-2 -5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "m0 -5l4.8 3.5l-1.8 5.6h-6l-1.8 -5.6z",
    "m-6 -2.5h12v5h-12z",
)
"""One more than colours, so that no two of the first 56 policies share both."""
_ASIDE = 1.6
"""Pixels between the bars of two policies that stand at one target."""
_LOGARITHMIC = ("kl",)
_PERFECT_BY_DEFINITION = ("psnr", "ssim", "agreement_free", "agreement_forced", "kl", "lpips")
"""Where full is compared with itself: it is not drawn."""

Place = Callable[[float], float]
"""From a value to a coordinate."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy: (true bytes, mean) at each target it reaches, fewest bytes first."""

    policy: str
    points: tuple[tuple[int, Mean], ...]


def curves(settings: Settings, table: Sequence[Standing], measure: str) -> list[Curve]:
    """Of every policy with a budget, in the order of the settings, so that each looks the same in every chart."""
    points: dict[str, list[tuple[int, Mean]]] = {}
    for one in sorted(table, key=lambda one: one.entrant.peak_bytes):
        if measure in one.means and one.entrant.policy != FULL:
            points.setdefault(one.entrant.policy, []).append((one.entrant.peak_bytes, one.means[measure]))
    return [Curve(policy, tuple(points.get(policy, ()))) for policy in settings.policies if policy != FULL]


def curves_svg(settings: Settings, table: Sequence[Standing], measure: str) -> str:
    """The chart; words where there is nothing to draw."""
    drawn, column = curves(settings, table, measure), MEASURES[measure]
    width, height = _LEFT + _WIDTH + _KEY, _TOP + _HEIGHT + _FOOT
    title = f"{column.title}: {column.words}; {'more' if column.better > 0 else 'less'} is better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" class="chart">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="{_TOP - 16}" {_TEXT}>{escape(title)}</text>',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>',
        *(
            _plot(settings, table, drawn, measure)
            if any(curve.points for curve in drawn)
            else [_words("nothing measured under a budget yet")]
        ),
        *(
            f'<text x="{_LEFT}" y="{_TOP + _HEIGHT + 58 + 15 * line}" {_SMALL}>{escape(text)}</text>'
            for line, text in enumerate(_wrapped(CAVEATS))
        ),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _plot(settings: Settings, table: Sequence[Standing], drawn: list[Curve], measure: str) -> Iterator[str]:
    full = next((one.means[measure] for one in table if one.entrant.policy == FULL and measure in one.means), None)
    if measure in _PERFECT_BY_DEFINITION:
        full = None
    reference = reference_bytes(settings)
    places = [peak for curve in drawn for peak, _ in curve.points]
    x = _log_place([*places, reference, settings.history_bytes], _LEFT, _LEFT + _WIDTH)
    means = [mean for curve in drawn for _, mean in curve.points]
    bottom, top = _TOP + _HEIGHT, _TOP
    if measure in _LOGARITHMIC and any(mean.value > 0 for mean in means):
        values = [value for mean in means for value in _ends(mean) if value > 0]
        y, ticks = _log_place(values, bottom, top), _log_ticks(min(values), max(values))
    else:
        values = [value for mean in [*means, *([full] if full else [])] for value in _ends(mean)]
        y, ticks = _linear_place(values, bottom, top), _ticks(min(values), max(values))
    yield from (_y_tick(value, y(value)) for value in ticks)
    yield from _x_ticks(settings, table, x)
    yield from _reference_line(x(reference))
    for index, curve in enumerate(drawn):
        yield from _curve(curve, index, len(drawn), x, y, logarithmic=measure in _LOGARITHMIC)
    yield from _key(drawn, bottom)
    if full is not None:
        yield f'<path d="M{_LEFT} {y(full.value):.1f}h{_WIDTH}" stroke="#222" stroke-dasharray="1 3" fill="none"/>'
        yield f'<text x="{_LEFT + _WIDTH + 6}" y="{y(full.value) + 4:.1f}" {_SMALL}>full</text>'


def _curve(curve: Curve, index: int, count: int, x: Place, y: Place, *, logarithmic: bool) -> Iterator[str]:
    colour, aside = _COLOURS[index % len(_COLOURS)], (index - (count - 1) / 2) * _ASIDE
    points = [(x(peak) + aside, mean) for peak, mean in curve.points if mean.value > 0 or not logarithmic]
    if not points:
        return
    line = "L".join(f"{at:.1f} {y(mean.value):.1f}" for at, mean in points)
    yield f'<path d="M{line}" stroke="{colour}" stroke-dasharray="{_dash(index)}" fill="none" stroke-opacity="0.8"/>'
    for at, mean in points:
        low, high = _ends(mean)
        low = low if low > 0 or not logarithmic else mean.value
        bar = f"M{at:.1f} {y(low):.1f}V{y(high):.1f}m-2.5 0h5M{at - 2.5:.1f} {y(low):.1f}h5"
        yield f'<path d="{bar}" stroke="{colour}"/>'
        words = f"{printable(curve.policy)}: {mean.value:.4g} ± {mean.half:.2g}, {mean.prompts} prompts"
        yield _mark(at, y(mean.value), index, words)


def _mark(x: float, y: float, index: int, words: str = "") -> str:
    """A shape, filled for the first round of shapes and open for the second."""
    colour = _COLOURS[index % len(_COLOURS)]
    fill = colour if index // len(_MARKS) % 2 == 0 else "white"
    told = f"<title>{escape(words)}</title>" if words else ""
    outline = _MARKS[index % len(_MARKS)]
    return f'<path d="M{x:.1f} {y:.1f}{outline}" fill="{fill}" stroke="{colour}" stroke-width="1.3">{told}</path>'


def _key(drawn: list[Curve], bottom: float) -> Iterator[str]:
    """Names beside their marks."""
    x, step = _LEFT + _WIDTH + 42, min(20.0, (_HEIGHT - 20) / max(len(drawn), 1))
    for index, curve in enumerate(drawn):
        y = _TOP + 12 + index * step
        colour = _COLOURS[index % len(_COLOURS)]
        yield f'<path d="M{x - 14} {y:.1f}h28" stroke="{colour}" stroke-dasharray="{_dash(index)}"/>'
        yield _mark(x, y, index)
        yield f'<text x="{x + 20}" y="{y + 4:.1f}" {_TEXT}>{escape(_short(printable(curve.policy)))}</text>'
    yield f'<text x="{x - 14}" y="{bottom - 4}" {_SMALL}>bars: 95 % interval over prompts</text>'


def _reference_line(x: float) -> Iterator[str]:
    yield f'<path d="M{x:.1f} {_TOP}v{_HEIGHT}" stroke="#777" stroke-dasharray="4 4"/>'
    middle = _TOP + _HEIGHT / 2
    turned = f'transform="rotate(-90 {x - 5:.1f} {middle})" text-anchor="middle"'
    yield f'<text x="{x - 5:.1f}" y="{middle}" {turned} {_SMALL}>{escape(LABEL)}</text>'


def _x_ticks(settings: Settings, table: Sequence[Standing], x: Place) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    for target in sorted({one.entrant.target_bytes or settings.history_bytes for one in table}):
        at = x(target)
        yield f'<path d="M{at:.1f} {_TOP}v{_HEIGHT}" stroke="#eee"/>'
        share = fraction_text(target / settings.history_bytes)
        for line, text in enumerate((bytes_text(target), share)):
            yield f'<text x="{at:.1f}" y="{bottom + 15 + 13 * line}" text-anchor="middle" {_SMALL}>{text}</text>'
    words = "true peak bytes of keys and values (accounted after every step); share of the bfloat16 history"
    yield f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 42}" text-anchor="middle" {_TEXT}>{words}</text>'


def _y_tick(value: float, at: float) -> str:
    return (
        f'<path d="M{_LEFT} {at:.1f}h{_WIDTH}" stroke="#eee"/>'
        f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" {_SMALL}>{value:g}</text>'
    )


def _log_place(values: Sequence[float], begin: float, end: float) -> Place:
    inner = _linear_place([math.log10(value) for value in values], begin, end)
    return lambda value: inner(math.log10(value))


def _linear_place(values: Sequence[float], begin: float, end: float) -> Place:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 0.5
    low, high = low - pad, high + pad
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within, about five."""
    rough = max(high - low, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * index, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [10.0**power * one for power in powers for one in (1, 2, 5) if low <= 10.0**power * one <= high]


def _ends(mean: Mean) -> tuple[float, float]:
    half = 0.0 if math.isnan(mean.half) else mean.half
    return mean.value - half, mean.value + half


def _dash(index: int) -> str:
    return _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _short(policy: str) -> str:
    return policy if len(policy) <= 28 else f"{policy[:27]}…"


def _words(text: str) -> str:
    return f'<text x="{_LEFT + 20}" y="{_TOP + 30}" {_TEXT}>{text}</text>'


def _wrapped(texts: Sequence[str]) -> Iterator[str]:
    """Lines short enough for the chart's foot."""
    for text in texts:
        line = ""
        for word in text.split():
            if len(line) + len(word) > 150:
                yield line
                line = ""
            line = f"{line} {word}".strip()
        yield line
