"""The reference implementation's files, which its own tools read: a calibration's, and a schedule's.

tools/compute_scas.py of arm-research/heatkv: scas_orders.json, scas_scores.json, scas_scores.pt, scas_orders.pt.
The reference has no file of schedules: it plans one from orders, a budget and sink scales. So a schedule can be
written only if there are orders that it would be planned from; budget and sink scales go into the metadata.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heatkv.config import model_config
from heatkv.errors import BudgetError, OrdersError, OutputError, ScheduleError
from heatkv.files import check_new, write_new
from heatkv.orders import HeadOrders
from heatkv.policies.heatkv import HeatKVPolicy
from heatkv.schedule import PruningSchedule
from kvscope.calibration import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule
    from heatkv.scas import ScasScores


FILES = ("scas_orders.json", "scas_scores.json", "scas_scores.npz", "scas_scores.pt", "scas_orders.pt")
"""Every file of a calibration."""
ORDERS_FILE = "scas_orders.json"
"""The file of a schedule: what the reference plans it from."""


def check_official(folder: Path, *, overwrite: bool = False) -> None:
    """Raises OutputError if save_official could not write its files there; touches nothing."""
    _check_folder(folder, FILES, overwrite=overwrite)


def save_official(calibration: Calibration, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the folder, made if absent; returns the files. Raises OutputError if one exists, unless `overwrite`."""
    check_official(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    scores = calibration.scores()
    scores.save(folder, overwrite=overwrite)
    _save_tensors(scores, folder, overwrite=overwrite)
    return [folder / name for name in sorted(FILES)]


def check_official_schedule(folder: Path, *, overwrite: bool = False) -> None:
    """Raises OutputError if save_official_schedule could not write its file there; touches nothing."""
    _check_folder(folder, (ORDERS_FILE,), overwrite=overwrite)


def save_official_schedule(schedule: PruningSchedule, folder: Path, *, overwrite: bool = False) -> tuple[Path, float]:
    """Write the orders that a schedule is planned from, its budget and sink scales in their metadata.

    Returns the file and that budget. Raises ScheduleError, with the first head-scale that breaks it, if the reference
    could not plan this schedule.
    """
    config = model_config(schedule.model)
    budget, orders = _planned_from(schedule, config)
    check_official_schedule(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [[1, *size] for size in schedule.scales.sizes]
    metadata = {"model": config.name, "scale_schedule": sizes, "budget": budget, "aspect": schedule.scales.aspect}
    made = HeadOrders(orders.slots, orders.first_source, config.num_layers, config.num_heads, ORDERS_FILE, metadata)
    return made.save(folder / ORDERS_FILE, overwrite=overwrite), budget


def load_official_schedule(folder: Path, config: ModelConfig, scales: ScaleSchedule) -> PruningSchedule:
    """The schedule that a folder of save_official_schedule stands for. Raises OrdersError if it names no budget."""
    orders = HeadOrders.load(folder / ORDERS_FILE, config=config)
    budget = orders.metadata.get("budget")
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise OrdersError(f"{folder / ORDERS_FILE}: names no budget; plan with --orders and --budget")
    return HeatKVPolicy(orders).plan(config, scales, budget=float(budget))


def orders_behind(schedule: PruningSchedule) -> HeadOrders:
    """Orders in which the head-scales of every source scale leave: those that leave first are the least needed.

    Within a scale, those that leave earlier come first; among equals, the order of slots.
    """
    num_layers, num_scales = schedule.num_layers, schedule.scales.num_scales
    drop_step = schedule.drop_step.reshape(-1, num_scales).astype(np.int64)
    drop_step = np.where(drop_step == schedule.num_steps - 1, schedule.num_steps, drop_step)  # never leaves: last
    sources = range(schedule.sink_scales, num_scales - 1)
    slots = [np.lexsort((drop_step[:, source], drop_step[:, source] // num_layers)) for source in sources]
    shape = (len(slots), num_layers * schedule.num_heads)
    return HeadOrders(np.reshape(slots, shape), schedule.sink_scales, num_layers, schedule.num_heads)


def _check_folder(folder: Path, names: tuple[str, ...], *, overwrite: bool) -> None:
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    if not existing.is_dir():
        raise OutputError(f"{folder}: cannot be made, {existing} is no folder; choose another name")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"{folder}: no permission to write in {existing}; choose another folder")
    if folder.exists():
        for name in names:
            check_new(folder / name, overwrite=overwrite)


def _planned_from(schedule: PruningSchedule, config: ModelConfig) -> tuple[float, HeadOrders]:
    """The budget and orders that the reference plans this schedule from. Raises ScheduleError."""
    if schedule.online:
        raise ScheduleError(f"policy {schedule.policy} chooses tokens during the run: there are no orders to write")
    if schedule.sink_scales >= schedule.scales.num_scales - 1:
        raise ScheduleError("every cached scale is a sink: there are no orders to write; keep fewer sink scales")
    orders = orders_behind(schedule)
    nearest: PruningSchedule | None = None
    for budget in _budgets(schedule):
        try:
            planned = HeatKVPolicy(orders).plan(config, schedule.scales, budget=budget)
        except BudgetError:
            continue
        if np.array_equal(planned.drop_step, schedule.drop_step):
            return budget, orders
        nearest = nearest or planned
    assert nearest is not None  # a schedule's own peak holds its sinks
    raise ScheduleError(f"the reference's format cannot hold this schedule: {_difference(schedule, nearest)}")


def _budgets(schedule: PruningSchedule) -> list[float]:
    """What it may have been planned for: the budget that it names, and what it takes."""
    taken = schedule.peak_tokens / schedule.history_tokens
    return [taken] if schedule.budget is None else [schedule.budget, taken]


def _difference(schedule: PruningSchedule, planned: PruningSchedule) -> str:
    """The first head-scale that is kept otherwise, and the rule of the format that it breaks."""
    layer, head, source = (int(index[0]) for index in np.nonzero(schedule.drop_step != planned.drop_step))
    ours, theirs = (_leaves(one, layer, head, source) for one in (schedule, planned))
    cell = f"layer {layer}, head {head}, source scale {source} has to {ours}, and would {theirs}"
    uneven = _uneven(schedule)
    rule = uneven or "when a head-scale leaves follows from orders and budget alone, no pin or other plan can be told"
    return f"{cell}; {rule}; use the schedule file"


def _leaves(schedule: PruningSchedule, layer: int, head: int, source: int) -> str:
    step = int(schedule.drop_step[layer, head, source])
    if step == schedule.num_steps - 1:
        return "stay to the end"
    return f"leave after scale {step // schedule.num_layers}, layer {step % schedule.num_layers}"


def _uneven(schedule: PruningSchedule) -> str:
    """Two source scales that do not lose as many heads, in words; empty: all always do."""
    gone_after = np.where(
        schedule.drop_step == schedule.num_steps - 1,
        schedule.scales.num_scales,
        schedule.drop_step // schedule.num_layers,
    )
    for scale in range(schedule.sink_scales, schedule.scales.num_scales - 1):
        gone: NDArray[np.int64] = (gone_after[..., schedule.sink_scales : scale + 1] <= scale).sum(axis=(0, 1))
        if len(set(gone.tolist())) > 1:
            most, least = int(gone.argmax()), int(gone.argmin())
            first = schedule.sink_scales
            return (
                f"it frees as many heads of every source scale, and after scale {scale} this one has freed "
                f"{gone[most]} of source scale {first + most} and {gone[least]} of source scale {first + least}"
            )
    return ""


def _save_tensors(scores: ScasScores, folder: Path, *, overwrite: bool) -> None:
    # Deferred: torch, which calibrating has loaded; .pt is its format.
    import io

    import torch

    metadata = scores.metadata | scores.orders().shape_metadata()
    contents = {
        "scas_scores.pt": {"scores": torch.from_numpy(scores.scores.copy()), "metadata": metadata},
        "scas_orders.pt": {"orders": scores.orders().to_lists(), "metadata": metadata},
    }
    for name, content in contents.items():
        packed = io.BytesIO()
        torch.save(content, packed)
        write_new(folder / name, packed.getvalue(), overwrite=overwrite)
