"""Browse: a tree of folders and traces, to list another folder on Runs or to open a trace from it."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import DirectoryTree

from kvscope import units
from kvscope.tui.widgets.canvas import Canvas, Part, View, row, rule

if TYPE_CHECKING:
    from rich.style import Style
    from textual.widgets._directory_tree import DirEntry
    from textual.widgets.tree import TreeNode

    from kvscope.tui.app import KVScopeApp
    from kvscope.tui.palette import Ink

_SUFFIX = ".h5"
_KEYS = (("enter", "list folder, open trace"), ("space", "unfold"), ("u", "up"), ("H", "home"), ("esc", "back"))


class TraceTree(DirectoryTree):
    """Folders, and files that are named like traces; folders are read in a thread, one at a time as they unfold."""

    BINDINGS: ClassVar = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
        Binding("g,home", "scroll_home", show=False),
        Binding("G,end", "scroll_end", show=False),
        Binding("right,l", "unfold", show=False),
        Binding("left,h", "fold", show=False),
    ]

    def __init__(self, folder: Path, ink: Ink, *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(folder, id=id)
        self._ink = ink
        self.show_guides = False
        self.guide_depth = 2
        self.auto_expand = False

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """What may hold traces, or be one."""
        shown = (path for path in paths if not path.name.startswith("."))
        return [path for path in shown if path.suffix == _SUFFIX or self._safe_is_dir(path)]

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:  # noqa: ARG002
        """`+` a folder, `-` an unfolded one, and its traces; `▸` is where the cursor is."""
        ink, path = self._ink, cast("DirEntry", node.data).path
        is_here = node is self.cursor_node
        name = units.printable(str(path) if node is self.root else path.name)
        mark = ">" if ink.plain else "▸"
        if ink.plain and not name.isascii():
            name = name.encode("ascii", "replace").decode()
        label = Text(f"{mark if is_here else ' '} ", style=ink.accent)
        if node.allow_expand:
            label.append("- " if node.is_expanded else "+ ", style=ink.accent)
            return label.append(name.rstrip("/") + "/", style=ink.strong if is_here else ink.text)
        return label.append(f"  {name}", style=ink.strong if is_here else ink.muted)

    def action_unfold(self) -> None:
        """Show what the folder holds."""
        if self.cursor_node is not None and self.cursor_node.allow_expand:
            self.cursor_node.expand()

    def action_fold(self) -> None:
        """Hide it again; from within, go to the folder."""
        node = self.cursor_node
        if node is None:
            return
        if node.allow_expand and node.is_expanded:
            node.collapse()
        elif node.parent is not None:
            self.move_cursor(node.parent)


class BrowseScreen(ModalScreen[None]):
    """Choose a folder or a trace; escape leaves all as it was."""

    BINDINGS: ClassVar = [
        Binding("escape,q,b", "dismiss", "back", show=False),
        Binding("u,backspace", "up", "the folder above", show=False),
        Binding("H,tilde", "home", "your home", show=False),
    ]

    DEFAULT_CSS = """
    BrowseScreen {
        align: center middle;
        #browse { width: 90%; max-width: 100; height: 80%; background: $panel; }
        #browse-title, #browse-keys { height: 1; }
        #tree { height: 1fr; background: $panel; padding: 0 1; scrollbar-size-vertical: 1; }
        #tree > .tree--cursor, #tree > .tree--highlight, #tree > .tree--highlight-line { background: $panel; }
        #tree > .tree--cursor { text-style: none; }
        &.-plain #tree { scrollbar-size-vertical: 0; }
    }
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self.set_class(view.ink.plain, "-plain")

    def compose(self) -> ComposeResult:
        with Vertical(id="browse"):
            yield Canvas(_title, id="browse-title")
            yield TraceTree(Path(os.path.abspath(self._view.folder)), self._view.ink, id="tree")  # noqa: PTH100
            yield Canvas(_key_line, id="browse-keys")

    def on_mount(self) -> None:
        for canvas in self.query(Canvas):
            canvas.show(self._view)
        self.query_one(TraceTree).focus()

    def on_directory_tree_directory_selected(self, message: DirectoryTree.DirectorySelected) -> None:
        """List the folder on Runs."""
        message.stop()
        self.dismiss()
        self._viewer.look_in(message.path)

    def on_directory_tree_file_selected(self, message: DirectoryTree.FileSelected) -> None:
        """Open the trace."""
        message.stop()
        self.dismiss()
        self._viewer.open(message.path)
        self._viewer.action_show("live")

    def action_up(self) -> None:
        """Begin one folder higher."""
        tree = self.query_one(TraceTree)
        tree.path = Path(tree.path).parent

    def action_home(self) -> None:
        """Begin at the user's home, if there is one."""
        home = os.path.expanduser("~")  # noqa: PTH111 - unlike Path.home it never raises
        if os.path.isabs(home):  # noqa: PTH117
            self.query_one(TraceTree).path = Path(home)

    @property
    def _viewer(self) -> KVScopeApp:
        return cast("KVScopeApp", self.app)


def _title(view: View, width: int, _height: int) -> list[Strip]:
    return [rule("look in another folder", width, view.ink)]


def _key_line(view: View, width: int, _height: int) -> list[Strip]:
    parts: list[Part] = []
    for key, words in _KEYS:
        parts += [(f" {key}", view.ink.accent), (f" {words} ", view.ink.muted)]
    return [row(parts, width)]
