"""Every error has its exit code and is caught by the base class."""

from __future__ import annotations

import pytest

from heatkv import errors

_EXIT_CODES = {
    "HeatKVError": 1,
    "UnknownNameError": 2,
    "OptionError": 2,
    "ScheduleError": 2,
    "OrdersError": 2,
    "MeasurementsError": 2,
    "PromptsError": 2,
    "BudgetError": 3,
    "CheckpointError": 4,
    "OutputError": 6,
}


@pytest.mark.parametrize(("name", "exit_code"), _EXIT_CODES.items())
def test_each_error_has_its_documented_exit_code(name: str, exit_code: int) -> None:
    kind = getattr(errors, name)

    assert issubclass(kind, errors.HeatKVError)
    assert kind.exit_code == exit_code
    assert f"{name} " in (errors.__doc__ or "")


def test_unknown_name_lists_the_known_nearest_first() -> None:
    error = errors.UnknownNameError("model", "infinity2b", ["infinity-8b", "tiny", "infinity-2b"])

    assert str(error) == "unknown model 'infinity2b'; known, nearest first: infinity-2b, infinity-8b, tiny"


def test_budget_error_carries_the_minimum() -> None:
    assert errors.BudgetError("too small", minimum=0.25).minimum == 0.25
