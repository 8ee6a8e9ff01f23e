"""stderr and stdout that can be lost: narration never ends a run, data that cannot be written is an error."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

from kvscope.errors import OutputError
from kvscope.units import printable


class Narration(io.TextIOBase):
    """A text stream that forwards to another as long as that one takes it, and then to nobody.

    Stands in for sys.stderr: a closed pipe, a full disk or a closed descriptor (where Python has None, and `print`
    would turn to stdout) must not stop what is being narrated.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("nothing to narrate to")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # TextIOBase has it as a plain attribute
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError):
            self._stream = None


def narrate(text: str) -> None:
    """One line to stderr."""
    sys.stderr.write(f"kvscope: {printable(text)}\n")
    sys.stderr.flush()


def print_data(text: str) -> None:
    """Write a line to stdout, now. Raises OutputError if it cannot be written, BrokenPipeError if nobody reads."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, AttributeError) as error:  # AttributeError: stdout is closed, and None
        drop_stdout()
        raise OutputError(f"stdout: cannot be written ({getattr(error, 'strerror', None) or 'closed'})") from None


def print_json(record: dict[str, Any]) -> None:  # Any: a JSON object
    """Write one JSON object to stdout, as print_data does."""
    print_data(json.dumps(record, indent=2, allow_nan=False))


def has_terminal() -> bool:
    """Whether the viewer can be seen and steered here."""
    # Textual reads keys from stdin and draws on stderr; with stdout away, numbers are what is wanted.
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()


def drop_stdout() -> None:
    """Forget what stdout still holds, so that the interpreter does not try it again on its way out."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
