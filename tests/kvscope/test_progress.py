from __future__ import annotations

import io

from heatkv.config import model_config
from heatkv.policies.full import FullPolicy
from heatkv.probe import RunStart, ScaleInfo
from kvscope.progress import ProgressProbe


def run_of_scales(probe: ProgressProbe) -> None:
    config = model_config("infinity-2b")
    scales = config.schedule_for("0.06M")
    schedule = FullPolicy().plan(config, scales)
    probe.run_started(RunStart("infinity-2b", scales, 32, 16, 128, 32, 2, "bfloat16", 2, "cpu", schedule))
    for scale in range(scales.num_scales):
        probe.scale_done(ScaleInfo(scale, None, None, None))  # type: ignore[arg-type]  # progress reads the number only


def test_without_a_terminal_there_is_one_line_per_scale() -> None:
    stream = io.StringIO()

    run_of_scales(ProgressProbe(stream))

    lines = stream.getvalue().splitlines()
    assert len(lines) == 7
    assert "scale  1/7  layer 32/32" in lines[0]
    assert "100%" in lines[-1]
    assert "\x1b" not in stream.getvalue()


def test_the_share_done_counts_work_not_scales() -> None:
    stream = io.StringIO()

    run_of_scales(ProgressProbe(stream))

    shares = [int(line.split("]")[1].split("%")[0]) for line in stream.getvalue().splitlines()]
    assert shares == sorted(shares)
    assert 45 < shares[5] < 55
