"""The tool's errors: exit codes as documented, one base."""

from __future__ import annotations

import pytest

from kvscope import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.KVScopeError, 1),
        (errors.UsageError, 2),
        (errors.TraceError, 5),
        (errors.TraceFormatError, 5),
        (errors.TraceVersionError, 5),
        (errors.OutputError, 6),
        (errors.NoTerminalError, 7),
        (errors.ControlError, 10),
        (errors.RunStopped, 130),
    ],
)
def test_every_error_has_its_documented_exit_code(kind: type[errors.KVScopeError], code: int) -> None:
    assert issubclass(kind, errors.KVScopeError)
    assert kind.exit_code == code


def test_the_module_draws_every_error_with_its_code() -> None:
    drawn = errors.__doc__ or ""

    for name, kind in vars(errors).items():
        if isinstance(kind, type):
            line = next(line for line in drawn.splitlines() if f"{name} " in line)
            assert f" {kind.exit_code} " in f"{line} "
