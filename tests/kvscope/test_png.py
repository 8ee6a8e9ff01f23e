from __future__ import annotations

import struct
import zlib

import numpy as np

from kvscope.png import png_bytes


def test_a_png_holds_the_very_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

    content = png_bytes(rgb)

    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (7, 5)
    begin = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[begin - 8 : begin - 4])
    rows = np.frombuffer(zlib.decompress(content[begin : begin + length]), np.uint8).reshape(5, 1 + 7 * 3)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:].reshape(rgb.shape), rgb)
