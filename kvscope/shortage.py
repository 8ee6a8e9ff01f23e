"""What is said when memory runs out, of the machine or of a GPU: how much was missing, and what takes less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kvscope.errors import OutOfMemoryError
from kvscope.units import bytes_text

_WAY_OUT = "`kvscope ledger --plan` says what a run takes; a smaller --budget, --resolution or --kv-codec takes less"
_GPU = re.compile(
    r"CUDA out of memory\. Tried to allocate (\S+ \w+)\. .*?capacity of (\S+ \w+) of which (\S+ \w+) is free"
)
_HOST = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_ARRAY = re.compile(r"Unable to allocate (\S+ \w+) for an array")


@contextmanager
def told() -> Iterator[None]:
    """Raises OutOfMemoryError in place of what torch and numpy raise when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        missing = _missing(error)
        if missing is None:
            raise
        raise OutOfMemoryError(f"out of memory: {missing}; {_WAY_OUT}") from None


def _missing(error: Exception) -> str | None:
    """What was asked for and not there; None: the error is another one."""
    text = str(error)
    if found := _GPU.search(text):
        return f"{found[1]} more were asked of the GPU, {found[3]} of {found[2]} were free"
    if found := _HOST.search(text):
        return f"{bytes_text(int(found[1]))} more were asked of the machine"
    if found := _ARRAY.search(text):
        return f"{found[1]} more were asked of the machine"
    if isinstance(error, MemoryError):
        return "the machine has no more"
    # torch's own class, by name: this module is loaded without torch. Its texts differ between versions.
    return text.splitlines()[0] if type(error).__name__ == "OutOfMemoryError" else None
