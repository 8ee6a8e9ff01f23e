"""Messages: what is one comes through unchanged, and whatever is none is refused with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.control.protocol import (
    ANSWERS,
    KINDS,
    MOST_LINE_BYTES,
    REQUESTS,
    Accepted,
    Bye,
    Hello,
    Lines,
    Message,
    Pause,
    Progress,
    ProtocolError,
    Refused,
    Resume,
    Revise,
    Step,
    Stop,
    Submit,
    Welcome,
    decode,
    encode,
    message_table,
)

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "control.md"

EXAMPLES: tuple[Message, ...] = (
    Hello(1, "kvscope 0.1.0"),
    Pause(),
    Resume(),
    Step(),
    Stop(),
    Submit({"prompt": "ünï \n code"}, "/a/b.h5", overwrite=True, image="/a/b.png"),
    Revise("/nowhere/plan.json", "ab"),
    Welcome(1, "kvscope 0.1.0", 7, "running", "/a/b.h5", "ab", ("pause", "stop")),
    Progress("paused", "/a/b.h5", "ab", 3, None, 3, 7, "after scale 2"),
    Accepted("pause", "it pauses"),
    Refused("", "a line that is no JSON"),
    Bye("done"),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.kind)
def test_a_message_comes_through_its_line_unchanged(message: Message) -> None:
    line = encode(message)

    assert line.count(b"\n") == 1
    assert decode(line) == message


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(message) for message in EXAMPLES} == set(KINDS.values()) == {*REQUESTS, *ANSWERS}


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused_and_raise_nothing_else(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


# Nested values are slow to make on a busy machine; that says nothing of what is tested.
@given(
    st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(["version", "job", "trace", "state"]), json_values)
)
def test_fields_of_any_type_make_a_valid_message_or_are_refused(kind: str, fields: dict[str, object]) -> None:
    try:
        message = decode(json.dumps(fields | {"kind": kind}).encode())
    except ProtocolError:
        return

    assert isinstance(message, KINDS[kind])
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"7",
        b'{"kind": 7}',
        b'{"kind": "hello"}',
        b'{"kind": "hello", "version": "1"}',
        b'{"kind": "hello", "version": true}',
        b'{"kind": "hello", "version": 1.0}',
        b'{"kind": "hello", "version": 99999999999999999999}',
        b'{"kind": "hello", "version": ' + b"9" * 5000 + b"}",
        b'{"kind": "hello", "version": NaN}',
        b'{"kind": "submit", "job": {"cfg": 1e999}, "trace": "/a.h5"}',
        b'{"kind": "submit", "job": [], "trace": "/a.h5"}',
        b'{"kind": "submit", "job": {}, "trace": "a.h5"}',
        b'{"kind": "submit", "job": {}, "trace": "/a\\u0000.h5"}',
        b'{"kind": "submit", "job": {"orders": ["\\ud800"]}, "trace": "/a.h5"}',
        b'{"kind": "submit", "job": {}, "trace": "/a.h5", "image": "b.png"}',
        b'{"kind": "progress", "state": "dancing"}',
        b"\xff\xfe",
        b'{"kind": "hello", "client": "\xff"}',
        b"[" * 60_000,
        b'{"kind":' * 8_000,
    ],
    ids=range(22),
)
def test_hostile_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


def test_kinds_and_keys_of_later_versions_are_ignored() -> None:
    assert decode(b'{"kind": "dance", "steps": 3}') is None
    assert decode(b'{"kind": "pause", "gently": true}') == Pause()


def test_a_message_that_no_reader_would_take_is_not_made() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        encode(Refused("", "x" * MOST_LINE_BYTES))


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.integers(1, 9))
def test_lines_come_out_whole_however_the_stream_is_cut(wanted: list[bytes], size: int) -> None:
    stream, lines = b"".join(line + b"\n" for line in wanted) + b"half", Lines()

    found = [line for at in range(0, len(stream), size) for line in lines.feed(stream[at : at + size])]

    assert found == wanted


def test_a_line_that_never_ends_is_refused_before_it_fills_memory() -> None:
    lines = Lines()

    for _ in range(63):
        assert list(lines.feed(b"x" * 1024)) == []
    with pytest.raises(ProtocolError, match="shorter"):
        list(lines.feed(b"x" * 1024))


def test_the_page_shows_the_table_that_the_code_makes() -> None:
    assert message_table() in DOCUMENT.read_text(encoding="utf-8")
