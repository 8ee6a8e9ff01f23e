"""The messages between a run and its viewers: one frozen dataclass each, one JSON object a line. Knows no socket.

Every message that arrives is checked here: what is no message, or has fields of other types, raises ProtocolError.
"""

from __future__ import annotations

import json
import math
import os
import types
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Literal, NoReturn, Self, Union, get_args, get_origin, get_type_hints

from kvscope.errors import ControlError

VERSION = 1
"""Of the protocol; both sides must speak the same."""

MOST_LINE_BYTES = 64 * 1024
"""A longer line is refused: a job is a few KiB."""

State = Literal["loading", "running", "paused", "stopping", "idle", "ended"]
STATES: tuple[State, ...] = get_args(State)
"""`stopping`: it ends after this scale. `idle`: it waits for a job. `ended`: it is over."""

_MOST_WHOLE = 1 << 53

Record = dict[str, Any]  # Any: a JSON object


class ProtocolError(ControlError):
    """A line that is no message."""


@dataclass(frozen=True, slots=True)
class Message:
    """What all messages share."""

    kind: ClassVar[str] = ""

    def to_json(self) -> Record:
        """A JSON object; `from_json` of its class takes it back."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, record: Record) -> Self:
        """The message that a JSON object holds; keys of later versions are ignored. Raises ProtocolError."""
        values = {}
        for name, (kind, needed) in _shape(cls).items():
            if name in record:
                value = record[name]
                if not _is_a(value, kind):
                    raise ProtocolError(f"{cls.kind}: {name} is {value!r:.50}; expected {_kind_text(kind)}")
                values[name] = tuple(value) if isinstance(value, list) else value
            elif needed:
                raise ProtocolError(f"{cls.kind}: {name} is missing; expected {_kind_text(kind)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first line of a viewer."""

    kind = "hello"
    version: int
    client: str = ""
    """Who speaks, such as `kvscope 0.1.0`."""


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """Hold the run after the current scale."""

    kind = "pause"


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """Let a held run go on, or take back a pause that has not begun."""

    kind = "resume"


@dataclass(frozen=True, slots=True)
class Step(Message):
    """Hold the run after the next scale; a held run computes one."""

    kind = "step"


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """End the run after the current scale, without a picture; end a process that is idle."""

    kind = "stop"


@dataclass(frozen=True, slots=True)
class Submit(Message):
    """Run another job in a process that stays."""

    kind = "submit"
    job: Record
    """As in a trace's header."""
    trace: str
    """Where its trace goes: an absolute path."""
    overwrite: bool = False
    image: str | None = None
    """Where its picture goes, as PNG; an absolute path."""
    trace_filter: str = "gzip"

    def __post_init__(self) -> None:
        for path in (self.trace, *([] if self.image is None else [self.image])):
            if not os.path.isabs(path):  # noqa: PTH117 - a Path would drop a last slash
                raise ProtocolError(f"submit: {path!r:.80} is no absolute path; the run may be in another folder")
        for text in _texts([self.job, self.trace, self.image, self.trace_filter]):
            if "\0" in text or not _is_writable(text):
                raise ProtocolError(f"submit: {text!r:.50} holds characters that no path or prompt can")


@dataclass(frozen=True, slots=True)
class Revise(Message):
    """Go on with another schedule, from the next scale on."""

    kind = "revise"
    schedule: str
    """Its file, as `kvscope plan` writes it; an absolute path."""
    sha256: str
    """Content hash of what was reviewed: a file that holds something else by now is refused."""

    def __post_init__(self) -> None:
        is_whole = os.path.isabs(self.schedule)  # noqa: PTH117 - as in Submit
        if not is_whole or "\0" in self.schedule or not _is_writable(self.schedule):
            raise ProtocolError(f"revise: {self.schedule!r:.80} is no absolute path; the run may be in another folder")


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The answer to a hello."""

    kind = "welcome"
    version: int
    program: str
    pid: int
    state: str
    trace: str
    run_id: str
    """Of the trace that is being recorded; empty: there is none yet."""
    commands: tuple[str, ...]
    """The kinds of request that the run understands."""


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """How the run stands; told after every change, and once after the welcome."""

    kind = "progress"
    state: str
    trace: str = ""
    run_id: str = ""
    query_scale: int | None = None
    """The scale that is computed, or comes next; absent before the first and after the last."""
    layer: int | None = None
    """The last layer that is done of it."""
    scales_done: int = 0
    num_scales: int = 0
    message: str = ""
    waiting: int = 0
    """Jobs that wait for this one's end."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ProtocolError(f"progress: state is {self.state!r:.50}; expected one of {', '.join(STATES)}")


@dataclass(frozen=True, slots=True)
class Accepted(Message):
    """A request is taken, and takes effect between scales."""

    kind = "accepted"
    request: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A request is not taken. Without a request: a line that is none, and the connection is closed."""

    kind = "refused"
    request: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """The process ends; no more is told."""

    kind = "bye"
    status: str
    """done, failed or cancelled."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Disconnected(Message):
    """What a Client tells its own viewer when there is no connection; it never travels."""

    kind = "disconnected"
    reason: str


REQUESTS: tuple[type[Message], ...] = (Hello, Pause, Resume, Step, Stop, Submit, Revise)
"""Viewer to run."""
ANSWERS: tuple[type[Message], ...] = (Welcome, Progress, Accepted, Refused, Bye)
"""Run to viewer."""
KINDS: dict[str, type[Message]] = {one.kind: one for one in (*REQUESTS, *ANSWERS)}
"""Every message that travels, by name."""


def encode(message: Message) -> bytes:
    """The message's line. Raises ProtocolError if it is too long."""
    line = json.dumps(message.to_json(), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    if len(line) > MOST_LINE_BYTES:
        raise ProtocolError(f"{message.kind}: {len(line)} bytes; expected at most {MOST_LINE_BYTES}")
    return line


def decode(line: bytes) -> Message | None:
    """The message of a line; None: it is of a kind that this version does not know. Raises ProtocolError."""
    try:
        record = json.loads(line.decode("utf-8"), parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise ProtocolError("a line that is no JSON; expected one object a line, in UTF-8") from None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ProtocolError("a line that is no message; expected an object with kind, a text")
    one = KINDS.get(record["kind"])
    return None if one is None else one.from_json(record)


def program() -> str:
    """Who speaks here, as hello and welcome say it."""
    # Deferred: it takes 20 ms to import. Not by kvscope itself, which names what a viewer may not import.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"kvscope {version('kvscope')}"
    except PackageNotFoundError:
        return "kvscope, uninstalled"


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that these bytes end. Raises ProtocolError at one that is too long, ended or not."""
        self._rest += data
        *whole, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in (*whole, rest):
            if len(line) >= MOST_LINE_BYTES:
                raise ProtocolError(f"a line of more than {MOST_LINE_BYTES} bytes; expected a shorter one")
            if line is not rest:
                yield bytes(line)


def message_table() -> str:
    """Every kind, who says it, its fields and what it means: the table of docs/control.md."""
    rows = ["| kind | from | fields | meaning |", "| --- | --- | --- | --- |"]
    for one in KINDS.values():
        said_by = "viewer" if one in REQUESTS else "run"
        shape = _shape(one).items()
        named = ", ".join(f"`{name}` {_kind_text(kind)}{'' if needed else '?'}" for name, (kind, needed) in shape)
        rows.append(f"| `{one.kind}` | {said_by} | {named or '–'} | {one.__doc__} |")
    return "\n".join(rows) + "\n"


def _shape(one: type[Message]) -> dict[str, tuple[Any, bool]]:  # Any: a type as annotations give it
    """Field → its type, and whether it must be given."""
    hints = get_type_hints(one)
    return {field.name: (hints[field.name], field.default is MISSING) for field in fields(one)}


def _is_a(value: Any, kind: Any) -> bool:  # Any: JSON values, and types as annotations give them
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_is_a(one, str) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    return type(value) is kind and (kind is not int or abs(value) < _MOST_WHOLE)


def _kind_text(kind: Any) -> str:  # Any: a type as annotations give it
    names = {str: "text", int: "whole number", bool: "true or false"}
    if get_origin(kind) is tuple:
        return "list of texts"
    if get_origin(kind) is dict:
        return "object"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _kind_text(one) for one in get_args(kind))
    return names[kind]


def _texts(value: Any) -> Iterator[str]:  # Any: JSON values
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _is_writable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
