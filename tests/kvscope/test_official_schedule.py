from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.errors import OrdersError, OutputError, ScheduleError
from heatkv.orders import HeadOrders
from heatkv.policies.full import FullPolicy, keep_everything
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.schedule import PruningSchedule
from kvscope import cli
from kvscope.official import ORDERS_FILE, load_official_schedule, save_official_schedule

TINY = model_config("infinity-tiny")
SCALES = TINY.schedule_for()
LARGE = model_config("infinity-2b")


def random_orders(num_scales: int, *, seed: int, layers: int = 6, heads: int = 6, sinks: int = 2) -> HeadOrders:
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(layers * heads) for _ in range(num_scales - 1 - sinks)]
    return HeadOrders(np.array(rows), sinks, layers, heads)


@pytest.mark.parametrize("budget", [0.05, 0.07, 0.1, 0.123, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_heatkv_plans_comes_back_with_the_same_hash(tmp_path: Path, budget: float, seed: int) -> None:
    planned = HeatKVPolicy(random_orders(SCALES.num_scales, seed=seed)).plan(TINY, SCALES, budget=budget)

    save_official_schedule(planned, tmp_path / "new" / "folder")

    assert load_official_schedule(tmp_path / "new" / "folder", TINY, SCALES).content_hash == planned.content_hash


def test_a_schedule_of_2b_at_1m_comes_back_too(tmp_path: Path) -> None:
    scales = LARGE.schedule_for("1M")
    orders = random_orders(scales.num_scales, seed=1, layers=32, heads=16, sinks=3)
    planned = HeatKVPolicy(orders).plan(LARGE, scales, budget=0.1)

    save_official_schedule(planned, tmp_path)

    assert load_official_schedule(tmp_path, LARGE, scales).content_hash == planned.content_hash


def test_the_file_is_what_a_calibration_writes_with_the_budget_beside(tmp_path: Path) -> None:
    planned = HeatKVPolicy(random_orders(SCALES.num_scales, seed=0)).plan(TINY, SCALES, budget=0.2)

    path, budget = save_official_schedule(planned, tmp_path)

    record = json.loads(path.read_text())
    assert budget == record["metadata"]["budget"] == 0.2
    assert record["metadata"]["eligible_source_scales"] == [2, 3, 4, 5]
    assert record["metadata"]["scale_schedule"][-1] == [1, 10, 10]
    assert len(record["orders"]) == 4


def test_everything_kept_is_a_budget_of_all(tmp_path: Path) -> None:
    full = FullPolicy().plan(TINY, SCALES)

    _, budget = save_official_schedule(full, tmp_path)

    assert budget == 1
    assert load_official_schedule(tmp_path, TINY, SCALES).content_hash == full.content_hash


def test_a_pin_is_refused_with_the_first_cell_and_the_rule_it_breaks(tmp_path: Path) -> None:
    planned = HeatKVPolicy(random_orders(SCALES.num_scales, seed=0)).plan(TINY, SCALES, budget=0.2)
    drop_step = planned.drop_step.copy()
    kept = np.argwhere(drop_step[..., 2] == planned.num_steps - 1)
    layer, head = (int(index) for index in kept[0])
    drop_step[layer, head, 2] = 2 * 6 + layer
    pinned = PruningSchedule(drop_step, TINY.name, SCALES, 2, "heatkv+edits", 0.2)

    with pytest.raises(
        ScheduleError, match=r"layer \d, head \d, source scale \d has to .* frees as many heads of every"
    ):
        save_official_schedule(pinned, tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_other_steps_than_the_planners_are_refused(tmp_path: Path) -> None:
    drop_step = keep_everything(TINY, SCALES)
    drop_step[5, :, 2:6] = np.arange(2, 6) * 6 + 5
    drop_step[5, :, 5] = 41
    drop_step[:5, 0, 5] = 6 * 5 + 5
    uneven = PruningSchedule(drop_step, TINY.name, SCALES, 2, "hand")

    with pytest.raises(ScheduleError, match="cannot hold this schedule: layer 0, head 0, source scale"):
        save_official_schedule(uneven, tmp_path)


def test_a_schedule_of_sinks_alone_has_no_orders(tmp_path: Path) -> None:
    sinks = PruningSchedule(keep_everything(TINY, SCALES), TINY.name, SCALES, 6, "hand")

    with pytest.raises(ScheduleError, match="every cached scale is a sink"):
        save_official_schedule(sinks, tmp_path)


def test_orders_without_a_budget_are_no_schedule(tmp_path: Path) -> None:
    random_orders(SCALES.num_scales, seed=0).save(tmp_path / ORDERS_FILE)

    with pytest.raises(OrdersError, match="names no budget"):
        load_official_schedule(tmp_path, TINY, SCALES)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    planned = HeatKVPolicy(random_orders(SCALES.num_scales, seed=0)).plan(TINY, SCALES, budget=0.2)
    save_official_schedule(planned, tmp_path)

    with pytest.raises(OutputError):
        save_official_schedule(planned, tmp_path)
    save_official_schedule(planned, tmp_path, overwrite=True)


def test_the_command_writes_orders_and_says_how_to_plan_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--budget", "0.1", "--official", str(tmp_path / "to"), "--json"]) == 0
    first = capsys.readouterr()
    (command,) = (line.split("`")[1] for line in first.err.splitlines() if "`kvscope plan" in line)

    assert cli.main([*command.split()[1:], "--json"]) == 0

    again = json.loads(capsys.readouterr().out)["schedule_sha256"]
    assert json.loads(first.out)["schedule_sha256"] == again


def test_the_command_writes_nothing_at_all_when_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start.json"
    assert cli.main(["plan", "--budget", "0.1", "-o", str(start)]) == 0
    out, folder = tmp_path / "out.json", tmp_path / "to"

    code = cli.main(
        ["plan", "--from", str(start), "--edit", "drop l3 h2 s2", "-o", str(out), "--official", str(folder)]
    )

    assert code == 2
    assert "cannot hold this schedule" in capsys.readouterr().err
    assert not out.exists()
    assert not folder.exists()
