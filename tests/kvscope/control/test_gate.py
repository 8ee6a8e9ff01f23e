"""The gate: a thread that passes scale after scale, and requests that hold it, let it go and end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from kvscope.control.gate import MOST_WAITING, STOPPED, Gate
from kvscope.control.protocol import Accepted, Message, Pause, Refused, Resume, Revise, Step, Stop, Submit
from kvscope.errors import RunStopped, UsageError

SCALES = 4
Wait = Callable[..., None]


class Walker:
    """A run without a model: its thread passes the gate after every scale that it is allowed to compute."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.allowed = threading.Semaphore(0)
        self.log: list[str] = []
        self.stopped: str | None = None
        self.thread = threading.Thread(target=self._walk)

    def start(self) -> None:
        self.gate.loading("/nowhere/run.h5")
        self.gate.recording("ab", self.log.append)
        self.thread.start()

    def _walk(self) -> None:
        try:
            self.gate.run_started(SimpleNamespace(scales=SimpleNamespace(num_scales=SCALES)))
            for scale in range(SCALES):
                self.allowed.acquire()
                self.gate.step_done(SimpleNamespace(layer=2))
                self.gate.scale_done(SimpleNamespace(query_scale=scale))
        except RunStopped as stop:
            self.stopped = str(stop)

    def compute(self, scales: int = 1) -> None:
        self.allowed.release(scales)


@pytest.fixture
def walker(gate: Gate) -> Iterator[Walker]:
    one = Walker(gate)
    yield one
    gate.ask(Stop())
    one.compute(SCALES)
    if one.thread.is_alive():
        one.thread.join(5)
    assert not one.thread.is_alive()


def state(gate: Gate) -> tuple[str, int]:
    return gate.progress.state, gate.progress.scales_done


def submitted(name: str) -> Submit:
    return Submit({"prompt": "x"}, f"/nowhere/{name}.h5")


def test_a_paused_run_waits_until_it_is_resumed(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    walker.start()
    assert gate.ask(Pause()) == Accepted("pause", "it pauses after this scale")
    walker.compute(SCALES)
    wait_until(lambda: state(gate) == ("paused", 1))

    assert gate.ask(Resume()) == Accepted("resume", "it goes on")

    wait_until(lambda: state(gate) == ("running", SCALES))
    assert walker.log[0] == "paused by a viewer, after scale 0"
    assert walker.log[1].startswith("resumed: paused for ")


def test_a_step_computes_one_scale_whether_the_run_is_held_or_not(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    walker.start()
    wait_until(lambda: gate.progress.state == "running")
    for done in (1, 2, 3):
        assert gate.ask(Step()).kind == "accepted"
        walker.compute()
        wait_until(lambda done=done: state(gate) == ("paused", done))


def test_a_pause_while_weights_load_holds_the_run_before_its_first_scale(
    gate: Gate, walker: Walker, wait_until: Wait
) -> None:
    assert gate.ask(Pause()) == Accepted("pause", "it pauses before its first scale")
    walker.start()
    wait_until(lambda: state(gate) == ("paused", 0))

    assert gate.ask(Step()) == Accepted("step", "it computes scale 0 and pauses")
    walker.compute(SCALES)

    wait_until(lambda: state(gate) == ("paused", 1))
    assert gate.progress.query_scale == 1


def test_stop_ends_a_held_run_at_once(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    gate.ask(Pause())
    walker.start()
    wait_until(lambda: gate.progress.state == "paused")

    assert gate.ask(Stop()) == Accepted("stop", "it ends")

    walker.thread.join(5)
    assert walker.stopped == STOPPED
    assert walker.log[-1] == STOPPED


def test_stop_ends_a_run_after_its_scale(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    walker.start()
    wait_until(lambda: gate.progress.state == "running")
    assert gate.ask(Stop()) == Accepted("stop", "it ends after this scale")
    assert gate.progress.state == "stopping"

    walker.compute()

    walker.thread.join(5)
    assert walker.stopped == STOPPED
    assert gate.progress.scales_done == 1


def test_a_pause_right_after_a_resume_holds_the_next_scale(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    gate.ask(Pause())
    walker.start()
    wait_until(lambda: gate.progress.state == "paused")

    assert gate.ask(Resume()).kind == gate.ask(Pause()).kind == "accepted"
    walker.compute(SCALES)

    wait_until(lambda: state(gate) == ("paused", 1))


def test_what_cannot_apply_is_refused_with_the_reason(gate: Gate, walker: Walker, wait_until: Wait) -> None:
    def refused(request: Message, says: str) -> None:
        answer = gate.ask(request)
        assert isinstance(answer, Refused)
        assert says in answer.reason

    refused(Resume(), "not paused")
    refused(Revise("/nowhere/schedule.json", "ab"), "/nowhere/schedule.json")
    gate.ask(Pause())
    refused(Pause(), "already")
    walker.start()
    wait_until(lambda: gate.progress.state == "paused")
    refused(Pause(), "paused already")
    gate.ask(Resume())
    walker.compute(SCALES)
    wait_until(lambda: gate.progress.scales_done == SCALES)
    for request in (Pause(), Step(), Stop(), Resume()):
        refused(request, "picture")
    gate.idle("done")
    for request in (Pause(), Step(), Resume()):
        refused(request, "no job is running")
    gate.ended()
    refused(Stop(), "ending already")
    refused(submitted("x"), "ending already")


def test_a_run_held_after_its_last_scale_makes_its_picture_when_it_is_resumed(
    gate: Gate, walker: Walker, wait_until: Wait
) -> None:
    walker.start()
    walker.compute(SCALES - 1)
    wait_until(lambda: gate.progress.scales_done == SCALES - 1)
    gate.ask(Pause())
    walker.compute()
    wait_until(lambda: state(gate) == ("paused", SCALES))

    assert gate.ask(Step()) == Refused("step", f"all {SCALES} scales are done; resume makes the picture")
    gate.ask(Resume())

    walker.thread.join(5)
    assert walker.stopped is None


def test_jobs_wait_in_order_and_only_so_many(gate: Gate) -> None:
    gate.loading("/nowhere/run.h5")

    answers = [gate.ask(submitted(str(number))) for number in range(MOST_WAITING + 1)]

    assert [answer.kind for answer in answers] == ["accepted"] * MOST_WAITING + ["refused"]
    gate.idle("done")
    first = gate.next_task()
    assert first is not None
    assert first.trace == "/nowhere/0.h5"
    assert gate.progress.waiting == MOST_WAITING - 1


def test_two_jobs_may_not_write_one_file(gate: Gate) -> None:
    gate.loading("/nowhere/run.h5")

    assert gate.ask(submitted("run")).kind == "refused"
    assert gate.ask(submitted("a")).kind == "accepted"
    assert gate.ask(submitted("b/../a")).kind == "refused"


def test_a_job_is_refused_with_the_words_of_its_check() -> None:
    def check(_: Submit) -> None:
        raise UsageError("a budget of three; expected less")

    assert Gate(check=check).ask(submitted("a")) == Refused("submit", "a budget of three; expected less")


def test_a_check_that_breaks_is_a_refusal() -> None:
    def check(_: Submit) -> None:
        raise ZeroDivisionError

    answer = Gate(check=check).ask(submitted("a"))

    assert isinstance(answer, Refused)
    assert "ZeroDivisionError" in answer.reason


def test_a_process_that_ends_with_its_job_takes_no_other() -> None:
    gate = Gate()

    answer = gate.ask(submitted("a"))

    assert isinstance(answer, Refused)
    assert "--keep" in answer.reason
    assert "submit" not in gate.commands


def test_stop_ends_a_process_that_waits_for_a_job(gate: Gate, wait_until: Wait) -> None:
    gate.idle("done")
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(gate.next_task()))
    waiting.start()

    gate.ask(Stop())

    waiting.join(5)
    assert found == [None]


def test_a_stopped_job_does_not_stop_the_next(gate: Gate) -> None:
    gate.loading("/nowhere/run.h5")
    gate.ask(Stop())
    with pytest.raises(RunStopped):
        gate.run_started(SimpleNamespace(scales=SimpleNamespace(num_scales=1)))
    gate.idle("stopped")

    gate.loading("/nowhere/next.h5")
    gate.run_started(SimpleNamespace(scales=SimpleNamespace(num_scales=1)))

    assert gate.progress.state == "running"
