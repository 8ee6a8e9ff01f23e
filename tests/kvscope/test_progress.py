from __future__ import annotations

import io

import pytest

from heatkv.config import model_config
from heatkv.policies.full import FullPolicy
from heatkv.probe import RunStart, ScaleInfo, StepInfo
from kvscope import progress
from kvscope.progress import ProgressProbe


class Terminal(io.StringIO):
    """A stream that says it is a terminal; its width is that of COLUMNS."""

    def isatty(self) -> bool:
        return True


def run_of_scales(probe: ProgressProbe, *, steps: bool = False) -> None:
    config = model_config("infinity-2b")
    scales = config.schedule_for("0.06M")
    schedule = FullPolicy().plan(config, scales)
    probe.run_started(RunStart("infinity-2b", scales, 32, 16, 128, 32, 2, "bfloat16", 2, "cpu", "plain", 0, schedule))
    for scale in range(scales.num_scales):
        for layer in range(config.num_layers if steps else 0):
            probe.step_done(StepInfo(scale, layer, *[None] * 9))  # type: ignore[arg-type]  # progress reads the numbers only
        probe.scale_done(ScaleInfo(scale, None, None, None))  # type: ignore[arg-type]  # progress reads the number only


def test_without_a_terminal_there_is_one_line_per_scale() -> None:
    stream = io.StringIO()

    run_of_scales(ProgressProbe(stream))

    lines = stream.getvalue().splitlines()
    assert len(lines) == 7
    assert "scale 0 (1x1), 1 of 7 scales done" in lines[0]
    assert "scale 5 (12x12), 6 of 7 scales done" in lines[5]
    assert "100%" in lines[-1]
    assert "\x1b" not in stream.getvalue()


def test_after_the_last_scale_the_picture_is_awaited_and_no_time_is_promised() -> None:
    stream = io.StringIO()

    run_of_scales(ProgressProbe(stream))

    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("all scales done")
    assert last.endswith("gone; making the picture")
    assert "left" not in last


def test_the_share_done_counts_work_not_scales() -> None:
    stream = io.StringIO()

    run_of_scales(ProgressProbe(stream))

    shares = [int(line.split("]")[1].split("%")[0]) for line in stream.getvalue().splitlines()]
    assert shares == sorted(shares)
    assert 45 < shares[5] < 55


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_a_line_is_never_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(progress, "_REDRAW_S", 0.0)
    stream = Terminal()

    run_of_scales(ProgressProbe(stream), steps=True)

    lines = [line.rstrip("\n") for line in stream.getvalue().split("\r\x1b[K")[1:]]
    assert len(lines) == 7 * 32 + 1
    assert max(map(len, lines)) < columns
    assert lines[32].startswith("scale 1 (2x2), 1/32 layers")
    assert ("[" in lines[200]) == (columns >= 80)
