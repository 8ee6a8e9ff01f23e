"""Place: where a line like `map q7 l12 h3 s5 mass` leads; typed after the `:` key, or given as `--goto`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvscope.errors import UsageError
from kvscope.tui.cursor import Axis, Cursor, Shape
from kvscope.tui.metrics import METRICS
from kvscope.tui.screens import SCREENS

_AXES: dict[str, Axis] = {"q": "query_scale", "l": "layer", "h": "head", "s": "source_scale"}
_WORD = re.compile(r"([qlhs])(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Place:
    """A screen, a metric and some axes of the cursor; None, or absent: as they are."""

    screen: str | None = None
    metric: str | None = None
    axes: tuple[tuple[Axis, int], ...] = ()

    def of(self, cursor: Cursor, shape: Shape) -> Cursor:
        """The cursor with these axes set, as far as the shape goes."""
        for axis, index in self.axes:
            cursor = cursor.at(axis, index, shape=shape)
        return cursor

    def problem(self, shape: Shape) -> str | None:
        """Why there is no such cell; None: there is one. Query scales are those that are done."""
        for axis, index in self.axes:
            if index >= getattr(shape, axis):
                far = " so far" if axis == "query_scale" and shape.query_scale < shape.source_scale else ""
                return f"{axis.replace('_', ' ')} {index}: they go from 0 to {getattr(shape, axis) - 1}{far}"
        return None


NOWHERE = Place()


def parse(line: str) -> Place:
    """The place that a line describes. A first word that names a screen means the screen: `mass` is a metric too.

    Raises UsageError for a word that means nothing.
    """
    place = NOWHERE
    for index, word in enumerate(line.lower().split()):
        axis = _WORD.fullmatch(word)
        if axis is not None:
            place = Place(place.screen, place.metric, (*place.axes, (_AXES[axis[1]], int(axis[2]))))
        elif word in METRICS and not (index == 0 and word in SCREENS):
            place = Place(place.screen, word, place.axes)
        elif word in SCREENS:
            place = Place(word, place.metric, place.axes)
        else:
            raise UsageError(f"{word!r} leads nowhere; give words like q7 l12 h3 s5, a metric or a screen")
    return place
