"""Deals prompts out to worker processes and hands back their rows. Only the caller, one process, writes the file."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvscope.errors import KVScopeError
from kvscope.league.table import Row
from kvscope.league.worker import PROTOCOL

if TYPE_CHECKING:
    from kvscope.league.table import League

_ENDED = "ended"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""What keeps packages of trained judges from fetching anything."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is missing of one prompt and seed."""

    prompt: int
    seed: int
    entrants: tuple[int, ...]


class WorkerError(KVScopeError):
    """A worker refused, as this process would have; it brings that error's words and exit code."""


def tasks_of(missing: Sequence[tuple[int, int, int]]) -> list[Task]:
    """(entrant, prompt, seed) of every run, gathered by prompt and seed, in their order."""
    gathered: dict[tuple[int, int], list[int]] = {}
    for entrant, prompt, seed in missing:
        gathered.setdefault((prompt, seed), []).append(entrant)
    return [Task(*place, tuple(entrants)) for place, entrants in gathered.items()]


def dealt(league: League, tasks: Sequence[Task], *, jobs: int, threads: int = 1) -> Generator[Row]:
    """Every row of these tasks, as workers finish them; close the iterator to end the workers.

    Raises WorkerError for what a worker refused, KVScopeError if one ended without a word.
    """
    waiting = deque(tasks)
    heard: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()  # Any: JSON objects
    workers = [_Worker(league, threads, heard) for _ in range(min(jobs, len(tasks)))]
    try:
        busy = len(workers)
        while busy:
            worker, message = heard.get()
            if "row" in message:
                yield Row.from_json(message["row"])
            elif "error" in message:
                raise _error(message)
            elif _ENDED in message:
                if not worker.dismissed:
                    raise KVScopeError(f"a worker ended with exit code {worker.exit_code()}; its words are above")
                busy -= 1
            elif waiting:
                worker.give(waiting.popleft())
            else:
                worker.dismiss()
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process, and the thread that hears it."""

    def __init__(self, league: League, threads: int, heard: queue.Queue[tuple[_Worker, dict[str, Any]]]) -> None:
        self.dismissed = False
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | _OFFLINE
        # A session of its own: Ctrl-C is for the parent, which ends the workers when it has saved.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvscope.league.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._heard = heard
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()
        entrants = [asdict(one) for one in league.entrants]
        settings = league.settings.to_json()
        self._send({"protocol": PROTOCOL, "settings": settings, "entrants": entrants, "threads": threads})

    def give(self, task: Task) -> None:
        self._send(asdict(task))

    def dismiss(self) -> None:
        """There is nothing more to do: it ends."""
        self.dismissed = True
        assert self._process.stdin is not None  # it is a pipe
        self._process.stdin.close()

    def exit_code(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """End it now, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close(pipe)

    def _send(self, message: dict[str, Any]) -> None:  # Any: a JSON object
        assert self._process.stdin is not None  # it is a pipe
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the thread that hears it says so
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None  # it is a pipe
        for line in self._process.stdout:
            self._heard.put((self, json.loads(line)))
        self._heard.put((self, {_ENDED: True}))


def _close(pipe: Any) -> None:  # Any: one of Popen's text streams
    with contextlib.suppress(BrokenPipeError):  # what was not sent is lost with the process
        pipe.close()


def _error(message: dict[str, Any]) -> WorkerError:  # Any: a JSON object
    error = WorkerError(message["error"])
    error.exit_code = message["exit_code"]
    return error
