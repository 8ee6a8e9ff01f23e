"""Canvas: the one widget that draws a painter's lines, and the few functions that painters build lines with."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from kvscope import units
from kvscope.tui.cursor import Cursor
from kvscope.tui.palette import ASCII, Ink
from kvscope.tui.view import View as View

Part = tuple[str, Style]
_NAME = 9


Painter = Callable[[View, int, int], list[Strip]]
"""(view, width, height) → at most height lines of at most that width; what is missing stays blank."""

Height = Callable[[View, int], int]
"""(view, width) → the lines that a painter would like to have."""

Width = Callable[[View, int, int], int]
"""(view, width, height) → the columns that a painter makes use of, of those it may have."""

Target = Cursor | int
"""A cell, or the index of a line of a list."""

Hit = Callable[[View, int, int, int, int], Target | None]
"""(view, width, height, x, y) → what is drawn there."""


class Canvas(Widget):
    """Draws what its painter returns; repaints only the lines that changed."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "Canvas { width: 1fr; height: 1fr; }"

    class Picked(Message):
        """Something was clicked; twice, if `twice`."""

        def __init__(self, target: Target, *, twice: bool) -> None:
            self.target, self.twice = target, twice
            super().__init__()

    class Hovered(Message):
        """The mouse is over another cell, or over none."""

        def __init__(self, cursor: Cursor | None) -> None:
            self.cursor = cursor
            super().__init__()

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Canvas.Hovered)

    class Dragged(Message):
        """The mouse was drawn from one cell to another with its button down."""

        def __init__(self, begin: Cursor, end: Cursor) -> None:
            self.begin, self.end = begin, end
            super().__init__()

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Canvas.Dragged)

    class Rolled(Message):
        """The wheel was turned, with shift or without."""

        def __init__(self, by: int, *, shifted: bool) -> None:
            self.by, self.shifted = by, shifted
            super().__init__()

    def __init__(
        self,
        paint: Painter,
        *,
        id: str | None = None,  # noqa: A002 - Textual's name for it
        height: Height | None = None,
        width: Width | None = None,
        hit: Hit | None = None,
        about: str = "",
    ) -> None:
        super().__init__(id=id)
        self._paint, self._height, self._width, self._hit = paint, height, width, hit
        self.about = about
        """What this part shows and how to read it, for its help; the tab key stops at parts that have this."""
        self.can_focus = bool(about)
        self._view: View | None = None
        self._lines: list[Strip] = []
        self._ground = Style.null()
        self._drawn_size = Size()
        """What the lines were drawn for."""
        self._pressed: Cursor | None = None
        self._hovered: Target | None = None

    def show(self, view: View) -> None:
        """Draw this view."""
        before, self._view = self._view, view
        grown = before is None or before.snapshot is not view.snapshot or before.metric != view.metric
        if (self._width and grown) or (self._height and self._wishes(before) != self._wishes(view)):
            self.refresh(layout=True)
        self._repaint()

    def on_resize(self) -> None:
        self._repaint()

    def on_focus(self) -> None:
        self._repaint()

    def on_blur(self) -> None:
        self._repaint()

    def on_click(self, event: events.Click) -> None:
        target = self._at(event)
        if target is not None:
            self.post_message(self.Picked(target, twice=event.chain == 2))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        target = self._at(event)
        self._pressed = target if isinstance(target, Cursor) else None

    def on_mouse_up(self) -> None:
        self._pressed = None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        target = self._at(event)
        if target == self._hovered:
            return
        self._hovered = target
        if event.button and self._pressed is not None and isinstance(target, Cursor):
            self.post_message(self.Dragged(self._pressed, target))
        else:
            self.post_message(self.Hovered(target if isinstance(target, Cursor) else None))

    def on_leave(self) -> None:
        if self._hovered is not None:
            self._hovered = None
            self.post_message(self.Hovered(None))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Rolled(1, shifted=event.shift or event.ctrl))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Rolled(-1, shifted=event.shift or event.ctrl))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual's
        if self._height is None or self._view is None:
            return 1
        return self._height(self._view, width)

    def get_content_width(self, container: Size, viewport: Size) -> int:  # noqa: ARG002 - Textual's
        if self._width is None or self._view is None:
            return container.width
        return self._width(self._view, container.width, container.height)

    def render_lines(self, crop: Region) -> list[Strip]:
        self._ground = self.rich_style  # once a frame: it is put together from all that the canvas lies in
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        if self._drawn_size != self.size:  # the first frame of a size comes before its Resize
            self._lines, self._drawn_size = self._painted(), self.size
        # Strips of the Line API bring their own background; painters leave it to the stylesheet.
        ground = self._ground
        return self._lines[y].apply_style(ground) if y < len(self._lines) else Strip.blank(self.size.width, ground)

    def _at(self, event: events.MouseEvent) -> Target | None:
        if self._hit is None or self._view is None:
            return None
        return self._hit(self._view, self.size.width, self.size.height, event.x, event.y)

    def _wishes(self, view: View | None) -> int | None:
        """The height that its painter would like for a view."""
        return None if view is None or self._height is None else self._height(view, self.size.width)

    def _repaint(self) -> None:
        width, height = self.size
        if self._view is None or not width or not height:
            return
        before, self._lines, self._drawn_size = self._lines, self._painted(), self.size
        if len(before) != len(self._lines):
            self.refresh()
            return
        pairs = enumerate(zip(before, self._lines, strict=True))
        changed = [Region(0, y, width, 1) for y, (old, new) in pairs if old != new]
        if changed:
            self.refresh(*changed)

    def _painted(self) -> list[Strip]:
        """The lines of the view at the present size."""
        width, height = self.size
        if self._view is None:
            return []
        lines = [strip.adjust_cell_length(width) for strip in self._paint(self._view, width, height)[:height]]
        if self.has_focus and lines:
            lines[0] = _marked(lines[0], self._view.ink)
        if self._view.ink.plain:
            lines = [_in_ascii(strip) for strip in lines]
        return lines


def row(parts: Iterable[Part], width: int | None = None) -> Strip:
    """One line; neighbours of one style become one segment. Cut to width, if given.

    Every text of a screen comes through here, so nothing that steers a terminal gets past; painters make foreign text
    printable before that, where they count its columns.
    """
    runs: list[tuple[list[str], Style]] = []
    for text, style in parts:
        if runs and runs[-1][1] is style:
            runs[-1][0].append(text)
        elif text:
            runs.append(([text], style))
    strip = Strip([Segment(units.printable("".join(texts)), style) for texts, style in runs])
    return strip if width is None or strip.cell_length <= width else strip.crop(0, width)


def spread(left: list[Part], right: list[Part], width: int, *, fill: Part) -> Strip:
    """One line with a left and a right end and `fill` between; where both do not fit, the left is cut."""
    right_width = parts_width(right)
    room = max(0, width - right_width)
    left = fit(left, room, fill[1])
    gap = room - parts_width(left)
    return row([*left, (fill[0] * gap, fill[1]), *right], width)


def field(name: str, value: Part, more: str, width: int, ink: Ink, *, name_width: int = _NAME) -> Strip:
    """A name, its value, and what more there is to say if there is room for all of it."""
    parts: list[Part] = [(f" {name:<{name_width}}", ink.muted), value]
    tail: list[Part] = [(f"  {more}", ink.muted)] if more else []
    return row(fit(parts if parts_width([*parts, *tail]) > width else [*parts, *tail], width, ink.muted))


def fit(parts: list[Part], width: int, style: Style) -> list[Part]:
    """The parts, cut to width with a `…` in this style where they are longer."""
    if parts_width(parts) <= width:
        return parts
    kept: list[Part] = []
    room = width - 1
    for text, part_style in parts:
        if cell_len(text) >= room:
            kept.append((set_cell_size(text, max(0, room)), part_style))
            break
        kept.append((text, part_style))
        room -= cell_len(text)
    return [*kept, ("…", style)] if width > 0 else []


def rule(title: str, width: int, ink: Ink, *, tag: str = "", tag_style: Style | None = None) -> Strip:
    """The thin line that begins a part of a screen: its title, and how its numbers came about."""
    left = [("─ ", ink.faint), (title, ink.muted), (" ", ink.faint)] if title else []
    right = [(f" {tag} ", tag_style or ink.muted), ("─", ink.faint)] if tag else []
    return spread(left, right, width, fill=("─", ink.faint))


def bar(value: float, top: float, width: int, style: Style, ink: Ink) -> list[Part]:
    """A thin bar of value on a track that stands for top."""
    halves = round(2 * width * min(1.0, value / top)) if top else 0
    full, half = divmod(halves, 2)
    return [("━" * full + "╸" * half, style), ("─" * (width - full - half), ink.faint)]


def paragraph(text: str, style: Style, width: int, *, indent: int = 1) -> list[Strip]:
    """The text in as many lines as it needs."""
    lines = textwrap.wrap(units.printable(text), max(1, width - 2 * indent)) or [""]
    return [row([(" " * indent + line, style)]) for line in lines]


def centred(lines: list[list[Part]], width: int, height: int) -> list[Strip]:
    """The lines in the middle of the room."""
    top = max(0, (height - len(lines)) // 2)
    strips = [row([(" " * max(0, (width - parts_width(line)) // 2), line[0][1]), *line], width) for line in lines]
    return [Strip([])] * top + strips


def parts_width(parts: Iterable[Part]) -> int:
    return sum(cell_len(text) for text, _ in parts)


def _marked(strip: Strip, ink: Ink) -> Strip:
    """A part's first line with the sign of focus at its left end."""
    width = strip.cell_length
    return Strip([Segment("▸", ink.accent), *strip.crop(1, width)], width)


def _in_ascii(strip: Strip) -> Strip:
    return Strip([Segment(_ascii_text(segment.text), segment.style) for segment in strip], strip.cell_length)


def _ascii_text(text: str) -> str:
    """The text in as many columns; what ASCII has no sign for, as a prompt may, becomes `?`."""
    text = text.translate(ASCII)
    return text if text.isascii() else "".join(one if one.isascii() else "?" * cell_len(one) for one in text)
