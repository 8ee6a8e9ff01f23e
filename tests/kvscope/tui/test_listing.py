"""The thread that lists folders, and the demo run."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.message import Message

from kvscope.runs import Runs
from kvscope.trace import Trace
from kvscope.tui.listing import Listing, start_demo
from kvscope.tui.messages import RunsListed


class Inbox:
    """Collects what a listing posts."""

    def __init__(self) -> None:
        self.messages: list[RunsListed] = []
        self._news = threading.Condition()

    def post(self, message: Message) -> None:
        assert isinstance(message, RunsListed)
        with self._news:
            self.messages.append(message)
            self._news.notify_all()

    def wait(self, holds: Callable[[list[RunsListed]], bool], *, seconds: float = 120.0) -> RunsListed:
        """The last message, once the condition holds."""
        with self._news:
            assert self._news.wait_for(lambda: holds(self.messages), seconds), "waited too long"
        return self.messages[-1]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def listing(inbox: Inbox) -> Iterator[Listing]:
    before = threading.active_count()
    made = Listing(inbox.post, again_s=0.02)
    yield made
    made.stop()
    assert threading.active_count() <= before


def _files(message: RunsListed) -> list[str]:
    assert message.runs is not None
    return [run.file for run in message.runs.runs]


def test_a_folder_is_listed_with_those_below_it(
    tmp_path: Path, tiny_trace: Path, inbox: Inbox, listing: Listing
) -> None:
    (tmp_path / "sub").mkdir()
    shutil.copy(tiny_trace, tmp_path / "sub" / "a.h5")
    (tmp_path / "bad.h5").write_text("no trace")

    listing.start(tmp_path)
    listed = inbox.wait(lambda messages: bool(messages))

    assert _files(listed) == ["sub/a.h5"]
    assert listed.runs is not None
    assert [one.file for one in listed.runs.unreadable] == ["bad.h5"]
    assert listed.refused is None


def test_a_trace_that_comes_while_the_list_is_shown_is_listed(
    tmp_path: Path, tiny_trace: Path, inbox: Inbox, listing: Listing
) -> None:
    listing.start(tmp_path)
    inbox.wait(lambda messages: bool(messages))

    shutil.copy(tiny_trace, tmp_path / "new.h5")

    assert _files(inbox.wait(lambda messages: _files(messages[-1]) == ["new.h5"])) == ["new.h5"]


def test_a_folder_that_does_not_change_is_posted_once_and_its_traces_opened_once(
    tmp_path: Path, tiny_trace: Path, inbox: Inbox, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_trace, tmp_path / "a.h5")
    opened: list[Path] = []
    looks = threading.Semaphore(0)
    plain_open, plain_scandir = Trace.open, os.scandir
    monkeypatch.setattr(Trace, "open", lambda path: opened.append(path) or plain_open(path))

    def counted(path: Path) -> object:
        looks.release()
        return plain_scandir(path)

    monkeypatch.setattr(os, "scandir", counted)

    listing.start(tmp_path)
    for _ in range(5):
        assert looks.acquire(timeout=120)
    listing.stop()

    assert len(opened) == len(inbox.messages) == 1


def test_nothing_is_read_while_nobody_looks(tmp_path: Path, tiny_trace: Path, inbox: Inbox, listing: Listing) -> None:
    listing.start(tmp_path)
    inbox.wait(lambda messages: bool(messages))

    listing.rest()
    shutil.copy(tiny_trace, tmp_path / "new.h5")
    time.sleep(0.1)  # what must not happen has no end to wait for
    while_resting = len(inbox.messages)
    listing.start(tmp_path)

    assert while_resting == 1
    assert _files(inbox.wait(lambda messages: len(messages) > 1)) == ["new.h5"]


def test_the_last_folder_asked_for_wins(tmp_path: Path, inbox: Inbox, listing: Listing) -> None:
    folders = [tmp_path / str(number) for number in range(20)]
    for folder in folders:
        folder.mkdir()

    for folder in folders:
        listing.start(folder)

    last = inbox.wait(lambda messages: bool(messages) and messages[-1].runs.folder == str(folders[-1]))  # type: ignore[union-attr]
    assert last.refused is None


def test_a_folder_that_is_not_there_is_refused_and_comes_back_with_it(
    tmp_path: Path, inbox: Inbox, listing: Listing
) -> None:
    listing.start(tmp_path / "later")
    refused = inbox.wait(lambda messages: bool(messages))
    (tmp_path / "later").mkdir()

    listed = inbox.wait(lambda messages: messages[-1].refused is None)

    assert refused.runs is None
    assert "No such file or directory" in (refused.refused or "")
    assert listed.runs == Runs(str(tmp_path / "later"), (), ())


def test_a_folder_without_end_is_left_after_a_while_and_says_so(tmp_path: Path, tiny_trace: Path, inbox: Inbox) -> None:
    (tmp_path / "sub").mkdir()
    shutil.copy(tiny_trace, tmp_path / "a.h5")
    shutil.copy(tiny_trace, tmp_path / "sub" / "b.h5")
    impatient = Listing(inbox.post, patience_s=0.0)

    impatient.start(tmp_path)
    listed = inbox.wait(lambda messages: bool(messages))
    impatient.stop()

    assert _files(listed) == ["a.h5"]
    assert "choose a nearer folder" in (listed.refused or "")


def test_a_live_trace_is_listed_as_it_grows(live_trace: Path, inbox: Inbox, listing: Listing) -> None:
    listing.start(live_trace.parent)
    listed = inbox.wait(lambda messages: bool(messages))

    assert listed.runs is not None
    assert [(run.status, run.scales_done) for run in listed.runs.runs] == [("live", 3)]


def test_a_demo_run_writes_its_trace_and_tells_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    demo = start_demo(tmp_path)
    code = demo.wait(60)

    assert code == 0
    assert demo.path.parent == tmp_path
    assert any("scales done" in line for line in demo.said())
    with Trace.open(demo.path) as trace:
        assert trace.status == "done"


def test_a_demo_run_that_cannot_write_says_why(tmp_path: Path) -> None:
    demo = start_demo(tmp_path / "nowhere")
    code = demo.wait(60)

    assert code == 6
    assert "nowhere does not exist" in demo.said()[-1]
