"""Every error that kvscope raises for a user's or a file's fault, and the exit code each gives the CLI.

KVScopeError                1
├── UsageError              2   options, or a job, that make no sense
├── TraceError              5   a trace that cannot be read
│   ├── TraceFormatError    5   not a trace, or a damaged one
│   └── TraceVersionError   5   a trace of a format that this version does not read
├── OutputError             6   a file that cannot be written, or would be overwritten
├── NoTerminalError         7   screens were asked for where there is no terminal
├── ControlError           10   a run that cannot be reached, or that refused
├── OutOfMemoryError       11   memory, of the machine or the GPU, that was too small
└── RunStopped            130   a run that a viewer ended
"""

from __future__ import annotations


class KVScopeError(Exception):
    """Base of all errors here; its text is one line that tells the way out."""

    exit_code = 1


class UsageError(KVScopeError):
    """Options, or a job, that make no sense."""

    exit_code = 2


class TraceError(KVScopeError):
    """A trace that cannot be read."""

    exit_code = 5


class TraceFormatError(TraceError):
    """A file that is not a trace, or is a damaged one."""


class TraceVersionError(TraceError):
    """A trace of a format version that this kvscope does not read."""


class OutputError(KVScopeError):
    """A file that cannot be written, or that exists and would be overwritten."""

    exit_code = 6


class NoTerminalError(KVScopeError):
    """Screens were asked for where there is no terminal."""

    exit_code = 7


class ControlError(KVScopeError):
    """A running run that cannot be reached, or that refused what it was asked."""

    exit_code = 10


class OutOfMemoryError(KVScopeError):
    """Memory, of the machine or of its GPU, that was too small."""

    exit_code = 11


class RunStopped(KVScopeError):  # noqa: N818 - nothing went wrong
    """A viewer ended the run, as Ctrl-C would; raised in the run's thread between scales."""

    exit_code = 130
