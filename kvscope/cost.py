"""RecordingCost: what recording took since it was last told, as rows of `cost`."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from kvscope.format import TABLES

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RecordingCost:
    """What recording took since the last row; the run's thread and the writer's both add to it."""

    def __init__(self) -> None:
        self.scales_done = 0
        self._lock = threading.Lock()
        self._spent = dict.fromkeys(("run_ns", "preview_ns", "writer_ns"), 0)
        self._dropped = 0

    def add(self, *, run_ns: int = 0, preview_ns: int = 0, writer_ns: int = 0) -> None:
        with self._lock:
            self._spent["run_ns"] += run_ns
            self._spent["preview_ns"] += preview_ns
            self._spent["writer_ns"] += writer_ns

    @property
    def untold_ns(self) -> int:
        """What the writer worked since the last row."""
        with self._lock:
            return self._spent["writer_ns"]

    def row(self, file_bytes: int, dropped: int) -> NDArray[np.void]:
        """One row of `cost`, and start over. `dropped`: samples lost since the run began."""
        row = np.zeros(1, TABLES["cost"].row_dtype)
        row["t_ns"], row["scales_done"], row["file_bytes"] = time.monotonic_ns(), self.scales_done, file_bytes
        row["dropped_rows"], self._dropped = dropped - self._dropped, dropped
        with self._lock:
            for name, spent_ns in self._spent.items():
                row[name] = spent_ns
                self._spent[name] = 0
        return row
