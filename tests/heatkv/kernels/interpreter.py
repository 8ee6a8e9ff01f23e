"""A process in which Triton interprets kernels on the CPU: arguments of ragged attention in, its results out.

Triton decides when it is imported whether it interprets, for good; hence a process of its own, started with
TRITON_INTERPRET=1. Each message is eight bytes of length, then what `torch.save` writes.
"""

from __future__ import annotations

import io
import sys
from typing import Any, BinaryIO

import torch
from torch import Tensor

from heatkv.errors import HeatKVError
from heatkv.kernels.ragged import Tile, ragged_attention

_LENGTH_BYTES = 8


def send(stream: BinaryIO, message: dict[str, Any]) -> None:  # Any: tensors, numbers and text
    buffer = io.BytesIO()
    torch.save(message, buffer)
    stream.write(buffer.tell().to_bytes(_LENGTH_BYTES, "little") + buffer.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:  # Any: as above
    """The next message, None at the stream's end."""
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    message: dict[str, Any] = torch.load(io.BytesIO(stream.read(int.from_bytes(length, "little"))), weights_only=True)
    return message


def _current(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the current scale alone, in place of cuDNN's."""
    scores = q @ keys.transpose(-1, -2)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def main() -> None:
    torch.set_num_threads(1)
    while (arguments := receive(sys.stdin.buffer)) is not None:
        tile = Tile(**arguments.pop("tile"))
        current = _current if arguments.pop("current_first") else None
        try:
            out, lse, mass = ragged_attention(**arguments, tile=tile, current=current)
        except HeatKVError as error:
            send(sys.stdout.buffer, {"error": str(error)})
        else:
            send(sys.stdout.buffer, {"out": out, "lse": lse, "mass": mass})


if __name__ == "__main__":
    main()
