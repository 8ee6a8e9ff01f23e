"""View: everything that a painter may look at, frozen; the app makes a new one for every change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvscope.tui.cursor import Cursor
from kvscope.tui.palette import Ink

if TYPE_CHECKING:
    from kvscope.runs import Runs
    from kvscope.tui.applying import Applied, Review
    from kvscope.tui.editing import EditState
    from kvscope.tui.feed import AttentionRead, Snapshot
    from kvscope.tui.playback import Playback

CHOICES: dict[str, tuple[str, ...]] = {
    "heat": ("linear", "log"),
    "axis": ("steps", "time"),
    "side": ("difference", "a", "b"),
    "guidance": ("conditional", "unconditional"),
    "mode": ("free", "forced"),
}
"""What a user can choose among besides the metric: name → the values, the first is where it begins."""


@dataclass(frozen=True, slots=True)
class Link:
    """What the run's control socket said last."""

    connected: bool
    state: str
    """running, paused, stopping, loading, idle or ended."""
    words: str = ""
    """The last answer worth a line: a refusal, or why there is no connection."""


@dataclass(frozen=True, slots=True)
class View:
    """All that a painter may look at."""

    ink: Ink
    snapshot: Snapshot | None = None
    cursor: Cursor = Cursor()  # noqa: RUF009 - frozen
    metric: str = "kept"
    lost: str | None = None
    """Why the file can no longer be read; None: it can."""
    name: str = ""
    """What is being opened, before there is a snapshot."""
    screen: str = "live"
    other: Snapshot | None = None
    """The trace beside this one on Compare."""
    other_refused: str | None = None
    """Why the other trace cannot be shown; None: it can, or there is none."""
    span: Cursor | None = None
    """The other corner of the selected range; None: nothing is selected."""
    hover: Cursor | None = None
    """The cell under the mouse."""
    paused: bool = False
    """The view stands still while the run goes on."""
    behind: int = 0
    """Finished scales that a paused view does not show yet."""
    link: Link | None = None
    """The run's control socket; None: the trace names none, or the run is over."""
    attention: AttentionRead | None = None
    """The attention maps last read, perhaps of another cell than the cursor's."""
    window: tuple[int, int] | None = None
    """The steps [begin, end) that the timeline is zoomed to; None: all."""
    row: int = 0
    """The line that is chosen on a screen that is a list."""
    said: tuple[str, ...] = ()
    """What a run that has no trace yet has said so far."""
    folder: str = ""
    """Where Runs looks."""
    runs: Runs | None = None
    """What is there; None: not listed yet."""
    runs_refused: str | None = None
    """Why the folder cannot be listed; None: it can, or it is being listed."""
    recent: tuple[str, ...] = ()
    """Traces that were opened before, newest first."""
    edit: EditState | None = None
    """What was edited; None: the viewer only reads."""
    edit_refused: str | None = None
    """Why a trace that was opened for editing is only read; None: it is not, or nobody asked."""
    review: Review | None = None
    """The plan file that was written last."""
    applied: Applied | None = None
    """The plan that was run last."""
    applied_said: tuple[str, ...] = ()
    """What its run has said so far."""
    playback: Playback | None = None
    """The cursor moves along the steps by itself; None: it stands."""
    keymap: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The keys that a user's file gives to actions: id → keys, comma-separated."""
    choices: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({name: values[0] for name, values in CHOICES.items()})
    )
    """The value chosen of each of CHOICES."""

    def chosen(self, name: str, by: int) -> View:
        """This view with the next value of one of CHOICES, or one before."""
        values = CHOICES[name]
        value = values[(values.index(self.choices[name]) + by) % len(values)]
        return replace(self, choices=MappingProxyType({**self.choices, name: value}))
