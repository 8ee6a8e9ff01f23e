"""The viewer in a terminal: how soon it shows its first cell, and what frames take in time, CPU and bytes.

All of it runs under a pseudo-terminal whose other end is read at once, so encoding and writing are part of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kvscope.tui.palette import RAMP
from kvscope.units import bytes_text
from tests.benchmarks.frames import WARM_UP
from tests.benchmarks.harness import Goal, Result, Row, take_turns
from tests.benchmarks.traces import Shape, write_trace
from tests.benchmarks.workload import SEED

_CELLS = tuple(glyph.encode() for glyph in RAMP[:-1])
"""What the first cell of the map may be; `█` is in bars as well."""
_KEPT = 2000
_GIVE_UP_S = 60.0
_ENVIRONMENT = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
_OF_TEXTUAL = ("NO_COLOR", "SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT", "TEXTUAL", "LC_ALL", "LC_CTYPE")
_OF_PYTHON = ("PYTHONDONTWRITEBYTECODE",)
"""With it our modules are compiled anew at each start, and those that pip installed, Textual and torch, are not."""
_OVERVIEW, _WHOLE = (40, 34), (256, 64)
"""Columns and lines: room for 32 × 16 cells of two columns, and for 128 × 256 half blocks."""


class Terminal:
    """A process whose terminal is ours; a thread reads what it draws."""

    def __init__(self, command: list[str], size: tuple[int, int], *, awaited: tuple[bytes, ...] = ()) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_TEXTUAL + _OF_PYTHON)}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.drawn_bytes = 0
        self.seen = threading.Event()
        """One of the texts awaited was drawn."""
        self._awaited = awaited
        self._ours, self._last = ours, b""
        self._process = subprocess.Popen(command, **streams, env=kept | _ENVIRONMENT, start_new_session=True)
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Until it has ended by itself."""
        code = self._process.wait()
        self._reader.join()
        os.close(self._ours)
        if code:
            raise RuntimeError(f"the child ended with {code}: {self._last.decode(errors='replace')}")

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def answered_s(self, key: str, *, give_up_s: float = 2.0) -> float:
        """Seconds until something is drawn after a key; the screen is quiet before and after."""
        before, begin = self.drawn_bytes, time.perf_counter()
        self.press(key)
        while self.drawn_bytes == before and time.perf_counter() - begin < give_up_s:
            time.sleep(0.0005)
        answered = time.perf_counter() - begin
        time.sleep(0.04)
        return answered

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                return
            self.drawn_bytes += len(data)
            if self._awaited and not self.seen.is_set() and any(text in self._last + data for text in self._awaited):
                self.seen.set()
            self._last = data[-_KEPT:]


_LARGE = Shape(layers=40, heads=24, scales=49, maps="float32")
"""2.5 GB, most of it maps."""


@dataclass(frozen=True, slots=True)
class Painted:
    """What one run of frames took."""

    per_second: float
    cpu_share: float
    """Of one core, while it ran."""
    cpu_s: float
    """A frame."""
    frame_bytes: float


def run(*, quick: bool = False, frames: int | None = None, shape: Shape | None = None) -> Result:
    """Rows for the start beside imports, and for frames: rate, CPU beside a style a cell, bytes."""
    repeats, rounds = (2, 1) if quick else (9, 3)
    frames = frames or (40 if quick else 150)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "run.h5"
        write_trace(trace, shape or Shape.of_model("infinity-2b"))
        rows = [*_start_rows(trace, repeats), *_frame_rows(trace, frames, rounds)]
        large = Path(folder) / "large.h5"
        write_trace(large, _LARGE if shape is None and not quick else Shape(3, 3, 5, "float32"))
        rows += _latency_rows(large, presses=20 if quick else 120)
    return Result("the viewer in a terminal", "as named", repeats, SEED, tuple(rows))


def start_until_first_cell(trace: Path) -> None:
    """Start the viewer on the map of a trace, and return when a cell of it has reached the terminal."""
    command = [sys.executable, "-m", "kvscope", "open", str(trace), "--screen", "map"]
    terminal = Terminal(command, (120, 40), awaited=_CELLS)
    seen = terminal.seen.wait(_GIVE_UP_S)
    terminal.kill()
    if not seen:
        raise RuntimeError(f"no cell after {_GIVE_UP_S:.0f} s")


def paint(kind: str, size: tuple[int, int], frames: int, per_second: float, trace: Path | None = None) -> Painted:
    """Paint frames of one kind in a terminal of this size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "tests.benchmarks.frames", kind, str(frames), str(per_second), str(out)]
        terminal = Terminal([*command, *([str(trace)] if trace else [])], size)
        terminal.wait()
        found = json.loads(out.read_text(encoding="utf-8"))
    return Painted(**found, frame_bytes=terminal.drawn_bytes / (frames + WARM_UP))


def _start_rows(trace: Path, repeats: int) -> list[Row]:
    textual, torch = ([sys.executable, "-c", code] for code in ("from textual.app import App", "import torch"))
    times = take_turns(
        {
            "viewer": lambda: start_until_first_cell(trace),
            "textual": lambda: subprocess.run(textual, check=True),
            "torch": lambda: subprocess.run(torch, check=True),
        },
        repeats=repeats,
    )
    to_textual, to_torch = Goal("at most", 1.5), Goal("at most", 0.25)
    return [
        times.row("start to the first cell, beside importing textual's App", "viewer", "textual", goal=to_textual),
        times.row("start to the first cell, beside importing torch", "viewer", "torch", goal=to_torch),
    ]


def _frame_rows(trace: Path, frames: int, rounds: int) -> list[Row]:
    def painted(
        kind: str, size: tuple[int, int], per_second: float = 60, of: Path | None = None, *, count: int = frames
    ) -> list[Painted]:
        return [paint(kind, size, count, per_second, of) for _ in range(rounds)]

    calm = painted("overview", _OVERVIEW, 30, trace)
    overview = painted("overview", _OVERVIEW, 60, trace)
    smooth, random = painted("smooth", _WHOLE), painted("random", _WHOLE)
    few = -(-frames // 6)  # they take long, and all the same
    naive = painted("smooth by cells", _WHOLE, count=few), painted("random by cells", _WHOLE, count=few)
    map_name, grid = "map of 32 × 16", "128 × 256 half blocks"
    return [
        _rate_row(f"{map_name}: frames a second", overview, 30),
        Row(f"{map_name}: share of a core at 30 a second", _median(calm, "cpu_share"), "", goal=_at_most(0.2)),
        Row(f"{map_name}: bytes a frame", _median(overview, "frame_bytes"), "bytes", goal=_at_most(40e3)),
        _rate_row(f"{grid}, smooth: frames a second", smooth, 30),
        Row(f"{grid}, smooth: bytes a frame", _median(smooth, "frame_bytes"), "bytes"),
        _rate_row(f"{grid}, random: frames a second", random, 15),
        Row(f"{grid}, random: bytes a frame", _median(random, "frame_bytes"), "bytes"),
        _cpu_row(f"{grid}, smooth: CPU of a frame, beside a style a cell", smooth, naive[0]),
        _cpu_row(f"{grid}, random: CPU of a frame, beside a style a cell", random, naive[1]),
        _panorama_row(painted("panorama", (240, 24), 60, trace)),
    ]


def _latency_rows(trace: Path, *, presses: int) -> list[Row]:
    """From a key that makes the viewer read another map of a large trace to the answer on the terminal; and the end."""
    terminal = Terminal([sys.executable, "-m", "kvscope", "open", str(trace), "--screen", "mass"], (120, 40))
    time.sleep(3 if presses > 20 else 1.5)  # it is drawn, and its first map is read
    waits = sorted(terminal.answered_s("jlkh"[press % 4]) for press in range(presses))
    begin = time.perf_counter()
    terminal.press("q")
    terminal.wait()
    quit_s = time.perf_counter() - begin
    size = bytes_text(trace.stat().st_size)
    note = f"median {waits[len(waits) // 2] * 1e3:.1f} ms of {presses}"
    p95 = waits[int(0.95 * (presses - 1))]
    return [
        Row(f"key to answer, maps of {size} read, p95", p95, "s", goal=Goal("at most", 0.1, of_value=True), note=note),
        Row("quit, until the process has ended", quit_s, "s", goal=Goal("at most", 1.0, of_value=True)),
    ]


def _rate_row(name: str, painted: list[Painted], least: float) -> Row:
    note = f"{_median(painted, 'cpu_s') * 1e3:.1f} ms of CPU a frame"
    return Row(name, _median(painted, "per_second"), "", goal=Goal("at least", least, of_value=True), note=note)


def _cpu_row(name: str, painted: list[Painted], naive: list[Painted]) -> Row:
    ratios = [one.cpu_s / other.cpu_s for one, other in zip(painted, naive, strict=True)]
    value, other = _median(painted, "cpu_s"), _median(naive, "cpu_s")
    return Row(name, value, "s", other, statistics.median(ratios), (min(ratios), max(ratios)), Goal("at most", 0.25))


def _panorama_row(painted: list[Painted]) -> Row:
    note = f"{_median(painted, 'frame_bytes') / 1e3:.0f} kB a frame"
    return Row("all source scales of infinity-2b at 1M: CPU of a frame", _median(painted, "cpu_s"), "s", note=note)


def _median(painted: list[Painted], name: str) -> float:
    return statistics.median(getattr(one, name) for one in painted)


def _at_most(number: float) -> Goal:
    return Goal("at most", number, of_value=True)
