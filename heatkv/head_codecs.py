"""Which codec each head-scale of a schedule is stored in: its checks, its text in a file, and what a budget then buys.

numpy only. The codec of a head-scale is an index, uint8 [layer, head, source_scale], into a tuple of names of CODECS.
What it says of the last scale, which is never stored, means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.codecs import CODECS, MODEL
from heatkv.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_MOST_CODECS = 10
"""So that an index is one digit."""


def checked(codec: ArrayLike, codecs: Sequence[str], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The indices, read-only. Raises ScheduleError unless there is one of a known codec for every head-scale."""
    for name in codecs:
        if name not in CODECS:
            raise ScheduleError(f"KV codec {name!r:.40} is unknown; known: {', '.join(CODECS)}")
    values = np.asarray(codec)
    if not 1 <= len(codecs) <= _MOST_CODECS or len(set(codecs)) != len(codecs):
        raise ScheduleError(f"codecs are {', '.join(codecs) or 'none'}; expected 1 to {_MOST_CODECS} different names")
    if values.shape != shape or values.dtype.kind not in "iu" or (values < 0).any() or (values >= len(codecs)).any():
        found = f"codec is {values.dtype} of shape {list(values.shape)}"
        raise ScheduleError(f"{found}; expected indices of {len(codecs)} codecs of shape {list(shape)}")
    indices = values.astype(np.uint8)
    indices.flags.writeable = False
    return indices


def to_text(codec: NDArray[np.uint8]) -> list[list[str]]:
    """A text for each layer and head, with a digit for each source scale."""
    return [["".join(map(str, head)) for head in layer] for layer in codec.tolist()]


def from_text(record: Any) -> NDArray[np.uint8]:  # Any: whatever a file held
    """What `to_text` was given. Raises ScheduleError."""
    try:
        digits = [[[int(digit) for digit in head] for head in layer] for layer in record]
        return np.array(digits, np.uint8)
    except (ValueError, TypeError, AttributeError):
        raise ScheduleError("codec is damaged; expected a text of digits for each layer and head") from None


def names_of(record: Any) -> tuple[str, ...]:  # Any: whatever a file held
    """The codecs' names. Raises ScheduleError."""
    if not isinstance(record, list) or not all(isinstance(name, str) and name.isprintable() for name in record):
        raise ScheduleError(f"codecs is {record!r:.60}; expected a list of names")
    return tuple(record)


def bytes_per_token(codecs: Sequence[str], head_dim: int, *, rows: int, dtype_bytes: int) -> NDArray[np.int64]:
    """Of one token's key and value in one head, over all rows, in each codec: [codec]."""
    return np.array(
        [CODECS[name].bytes_per_token(head_dim, rows=rows, dtype_bytes=dtype_bytes) for name in codecs], np.int64
    )


def all_but_sinks(name: str, shape: tuple[int, ...], sink_scales: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Indices and names that store everything in one codec, but the sinks, which everybody reads, as the model does."""
    codec = np.ones(shape, np.uint8)
    codec[..., :sink_scales] = 0
    return codec, (MODEL, name)


def of_names(stored_in: NDArray[np.str_]) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
    """Indices and names that store each head-scale [layer, head, source_scale] in the codec of this name.

    Without the last scale, which is never stored. All in the model's dtype: None, and no names.
    """
    names = [name for name in CODECS if (stored_in[..., :-1] == name).any()]
    if names in ([], [MODEL]):
        return None, ()
    codec = np.zeros(stored_in.shape, np.uint8)
    for index, name in enumerate(names):
        codec[stored_in == name] = index
    return codec, tuple(names)


def tokens_bought(allowed_tokens: int, sink_tokens: int, name: str, *, head_dim: int, dtype_bytes: int) -> int:
    """How many tokens fit where `allowed_tokens` of the model's own fit, if all but the sinks are in this codec.

    Tokens are over all layers and heads. Less than the sinks alone: `allowed_tokens`, which is then too little.
    """
    plain, coded = bytes_per_token((MODEL, name), head_dim, rows=1, dtype_bytes=dtype_bytes).tolist()
    if allowed_tokens < sink_tokens:
        return allowed_tokens
    rest: int = (allowed_tokens - sink_tokens) * plain // coded
    return sink_tokens + rest
