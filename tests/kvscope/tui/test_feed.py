from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from textual.message import Message

from kvscope.errors import TraceFormatError
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.feed import Feed
from kvscope.tui.messages import AttentionTaken, RunSaid, SnapshotTaken, TraceLost, TraceRefused


class Inbox:
    """Collects what a feed posts."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = threading.Condition()

    def post(self, message: Message) -> None:
        with self._news:
            self.messages.append(message)
            self._news.notify_all()

    def wait(self, kind: type[Message], count: int = 1, *, seconds: float = 120.0) -> list[Message]:
        """The messages of a kind, once there are `count`."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.of(kind)) >= count, seconds), "waited too long"
        return self.of(kind)

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
        with self._news:
            assert self._news.wait_for(condition, seconds), "waited too long"

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.messages if isinstance(message, kind)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kvscope-feed"]


def test_a_finished_trace_is_read_once_and_let_go(tiny_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(tiny_trace, inbox.post)

    feed.start()
    taken = inbox.wait(SnapshotTaken)[0]
    feed.stop()

    assert taken.snapshot.status == "done"  # type: ignore[attr-defined]
    assert taken.snapshot.scales_done == 5  # type: ignore[attr-defined]
    assert not threads()


def test_each_new_scale_of_a_live_run_gives_a_snapshot_with_all_before(tmp_path: Path, fake_run: ModuleType) -> None:
    inbox = Inbox()
    recorder = Recorder(tmp_path / "grow.h5", fake_run.fake_job())
    feeds: list[Feed] = []

    def after(scale: int) -> None:
        if not feeds:
            feeds.append(Feed(recorder.path, inbox.post))
            feeds[0].start()
        inbox.wait(SnapshotTaken)
        fake_run.wait_for(lambda: inbox.of(SnapshotTaken)[-1].snapshot.scales_done == scale + 1)

    with recorder:
        fake_run.run(recorder, after=after)
    fake_run.wait_for(lambda: inbox.of(SnapshotTaken)[-1].snapshot.status == "done")
    feeds[0].stop()

    last = inbox.of(SnapshotTaken)[-1].snapshot  # type: ignore[attr-defined]
    assert last.kept_tokens.shape[0] == last.attention_mass.shape[0] == 5
    assert len(last.previews) == 5


def test_the_first_snapshot_comes_without_the_ledger_and_the_next_has_it(tiny_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(tiny_trace, inbox.post)

    feed.start()
    first, second = inbox.wait(SnapshotTaken, 2)
    feed.stop()

    assert first.snapshot.ledger is None  # type: ignore[attr-defined]
    assert second.snapshot.ledger is not None  # type: ignore[attr-defined]
    assert second.snapshot.kept_tokens is first.snapshot.kept_tokens  # type: ignore[attr-defined]


def test_the_first_snapshot_can_be_waited_for(tiny_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(tiny_trace, inbox.post)

    feed.start()
    first = feed.first(120.0)
    feed.shown()
    feed.stop()

    assert first is not None
    assert inbox.of(SnapshotTaken)[0].snapshot is first  # type: ignore[attr-defined]


def test_who_waits_for_the_snapshot_of_what_is_no_trace_is_let_go(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "missing.h5", Inbox().post)

    feed.start()
    begin = time.monotonic()
    first = feed.first(120.0)
    feed.stop()

    assert first is None
    assert time.monotonic() - begin < 60.0


def test_arrays_of_a_snapshot_cannot_be_written(tiny_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(tiny_trace, inbox.post)
    feed.start()
    snapshot = inbox.wait(SnapshotTaken)[0].snapshot  # type: ignore[attr-defined]
    feed.stop()

    for array in (snapshot.steps, snapshot.kept_tokens, snapshot.read_tokens, snapshot.attention_mass, snapshot.log):
        assert not array.flags.writeable


def test_what_is_not_a_trace_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "not.h5"
    path.write_text("hello")
    inbox = Inbox()
    feed = Feed(path, inbox.post)

    feed.start()
    (refused,) = inbox.wait(TraceRefused)
    feed.stop()

    assert isinstance(refused.error, TraceFormatError)  # type: ignore[attr-defined]
    assert str(path) in str(refused.error)  # type: ignore[attr-defined]


def test_a_file_that_vanishes_is_told_once_and_told_again_when_it_is_back(live_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(live_trace, inbox.post)
    feed.start()
    inbox.wait(SnapshotTaken)
    aside = live_trace.with_suffix(".aside")

    live_trace.rename(aside)
    gone = inbox.wait(TraceLost, 1)[0]
    aside.rename(live_trace)
    back = inbox.wait(TraceLost, 2)[1]
    feed.stop()

    assert "live.h5 is gone" in gone.reason  # type: ignore[attr-defined]
    assert back.reason is None  # type: ignore[attr-defined]


def test_stopping_does_not_wait_for_the_run_and_leaves_no_thread(live_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(live_trace, inbox.post)
    feed.start()
    inbox.wait(SnapshotTaken)

    begin = time.monotonic()
    feed.stop()

    assert time.monotonic() - begin < 20
    assert not threads()


class Loading:
    """A run that says two lines before it has a trace, or ends without one."""

    def __init__(self, *, code: int | None = None) -> None:
        self.code = code
        self.lines = ("loading weights",)

    pid = 1 << 22  # no process has it

    def said(self) -> tuple[str, ...]:
        return self.lines

    def poll(self) -> int | None:
        return self.code


def test_a_run_that_is_loading_is_heard_until_its_trace_is_there(tmp_path: Path, tiny_trace: Path) -> None:
    inbox, run, path = Inbox(), Loading(), tmp_path / "to-come.h5"
    feed = Feed(path, inbox.post, launched=run)

    feed.start()
    inbox.wait(RunSaid)
    run.lines = ("loading weights", "ready")
    inbox.wait_until(lambda: inbox.of(RunSaid)[-1].lines[-1] == "ready")  # type: ignore[attr-defined]
    path.write_bytes(tiny_trace.read_bytes())
    taken = inbox.wait(SnapshotTaken)[0]
    feed.stop()

    said = [message.lines[-1] for message in inbox.of(RunSaid)]  # type: ignore[attr-defined]
    assert list(dict.fromkeys(said)) == ["loading weights", "ready"]
    assert taken.snapshot.status == "done"  # type: ignore[attr-defined]


def test_a_run_that_ends_without_a_trace_is_refused_with_its_last_line(tmp_path: Path) -> None:
    inbox = Inbox()
    feed = Feed(tmp_path / "never.h5", inbox.post, launched=Loading(code=4))

    feed.start()
    (refused,) = inbox.wait(TraceRefused)
    feed.stop()

    assert str(refused.error) == "loading weights"  # type: ignore[attr-defined]


def test_maps_of_a_trace_that_has_none_are_told_to_be_none(tiny_trace: Path) -> None:
    inbox = Inbox()
    feed = Feed(tiny_trace, inbox.post)
    feed.start()
    inbox.wait(SnapshotTaken)

    feed.want((1, 0, 1))
    (taken,) = inbox.wait(AttentionTaken)
    feed.stop()

    assert taken.attention.place == (1, 0, 1)  # type: ignore[attr-defined]
    assert taken.attention.maps is None  # type: ignore[attr-defined]


def test_maps_are_read_as_they_are_wanted_long_after_the_run(tmp_path: Path, fake_run: ModuleType) -> None:
    job = replace(fake_run.fake_job(), attention_map="float32")
    recorder = Recorder(tmp_path / "maps.h5", job)
    with recorder:
        fake_run.run(recorder)
    inbox = Inbox()
    feed = Feed(recorder.path, inbox.post)
    feed.start()
    inbox.wait(SnapshotTaken)

    feed.want((3, 1, 1))
    (taken,) = inbox.wait(AttentionTaken)
    feed.stop()

    with Trace.open(recorder.path) as trace:
        np.testing.assert_array_equal(taken.attention.maps, trace.attention_map(3, 1, 1))  # type: ignore[attr-defined]


def test_a_newer_message_of_the_same_feed_replaces_the_one_that_waits(tiny_trace: Path) -> None:
    one, other = Feed(tiny_trace, print), Feed(tiny_trace, print)
    message = TraceLost(one, None)

    assert message.can_replace(TraceLost(one, "gone"))
    assert not message.can_replace(TraceLost(other, "gone"))
    assert not message.can_replace(RunSaid(one, ()))
    assert not message.can_replace(Message())


def test_a_finished_trace_that_vanishes_is_told_too(tmp_path: Path, tiny_trace: Path) -> None:
    path = tmp_path / "done.h5"
    path.write_bytes(tiny_trace.read_bytes())
    inbox = Inbox()
    feed = Feed(path, inbox.post)
    feed.start()
    inbox.wait(SnapshotTaken, 2)

    path.unlink()
    (lost,) = inbox.wait(TraceLost)
    feed.stop()

    assert lost.reason == "done.h5 is gone; what was read is shown"  # type: ignore[attr-defined]
