"""Loading the viewer: many modules at once, of which the interpreter need not be asked what is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import within this what stays until the process ends: collections leave it out, now and afterwards.

    An import makes objects that all stay, so that looking through them again and again finds nothing; a tenth of the
    viewer's start went into that, and each frame's share of later collections.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
