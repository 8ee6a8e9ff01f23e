"""Every error that heatkv raises for a user's or a file's fault, and the exit code each gives a CLI.

HeatKVError                 1
├── UnknownNameError        2   a model, policy, resolution or option that does not exist
├── OptionError             2   a value, such as a temperature, that no run could use
├── ScheduleError           2   a pruning schedule, or its file, that cannot be obeyed
├── OrdersError             2   head orders or S-CAS scores that do not fit
├── MeasurementsError       2   a calibration's measurements that are absent, or of another model or scales
├── PromptsError            2   a prompt file that cannot be read, or holds no prompts
├── BudgetError             3   a budget that cannot be met; carries the minimum
├── CheckpointError         4   weights that are missing, damaged or of another architecture
└── OutputError             6   a file that cannot be written, or would be overwritten
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeatKVError(Exception):
    """Base of all errors here; its text is one line that tells the way out."""

    exit_code = 1


class UnknownNameError(HeatKVError):
    """A name that is in no table. The message lists the known ones, nearest first."""

    exit_code = 2

    def __init__(self, kind: str, name: object, known: Iterable[object]) -> None:
        ranked = sorted((str(one) for one in known), key=lambda one: -_similarity(str(name), one))
        super().__init__(f"unknown {kind} {name!r}; known, nearest first: {', '.join(ranked)}")


class OptionError(HeatKVError):
    """A value, such as a temperature or a device, that no run could use."""

    exit_code = 2


class ScheduleError(HeatKVError):
    """A pruning schedule, or its file, that cannot be obeyed."""

    exit_code = 2


class OrdersError(HeatKVError):
    """Head orders or S-CAS scores that do not fit the model, the scales or the format."""

    exit_code = 2


class MeasurementsError(HeatKVError):
    """Measurements of a calibration that are absent, or do not fit the model or the scales."""

    exit_code = 2


class PromptsError(HeatKVError):
    """A prompt file that cannot be read, or holds something else than prompts."""

    exit_code = 2


class BudgetError(HeatKVError):
    """A budget that no schedule can meet. `minimum` is the least feasible fraction of history."""

    exit_code = 3

    def __init__(self, message: str, *, minimum: float) -> None:
        super().__init__(message)
        self.minimum = minimum


class CheckpointError(HeatKVError):
    """Weights that are missing, damaged or made for another architecture."""

    exit_code = 4


class OutputError(HeatKVError):
    """A file that cannot be written, or that exists and would be overwritten."""

    exit_code = 6


def _similarity(name: str, candidate: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), candidate.lower()).ratio()
