"""ScaleSchedule: the token grids of next-scale prediction, and the official resolution and aspect tables."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from heatkv.errors import ScheduleError, UnknownNameError

Grid = tuple[int, int]
"""(height, width) of a token grid, or of an image in pixels."""

RESOLUTIONS: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Resolution name → how many of the template's 13 scales it uses."""

_LEAST_ASPECT, _MOST_ASPECT = 0.3, 3.3

# Height/width template → grids at 1M (Infinity, infinity/utils/dynamic_resolution.py). The inverse
# templates are the same grids with height and width exchanged.
_TALL: dict[float, tuple[Grid, ...]] = {
    1.0: tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    1.25: ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24),
           (35, 28), (45, 36), (55, 44), (70, 56)),
    1.333: ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21),
            (36, 27), (48, 36), (60, 45), (72, 54)),
    1.5: ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22),
          (39, 26), (48, 32), (63, 42), (78, 52)),
    1.75: ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20),
           (42, 24), (56, 32), (70, 40), (84, 48)),
    2.0: ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19),
          (46, 23), (60, 30), (74, 37), (90, 45)),
    2.5: ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16),
          (50, 20), (65, 26), (80, 32), (100, 40)),
    3.0: ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15),
          (54, 18), (72, 24), (90, 30), (111, 37)),
}  # fmt: skip

# Inverse names are int(1000 / r) / 1000: truncated, so 0.666 and 0.571, not 0.667.
_INVERSE = {1.25: 0.8, 1.333: 0.75, 1.5: 0.666, 1.75: 0.571, 2.0: 0.5, 2.5: 0.4, 3.0: 0.333}

TEMPLATES: dict[float, tuple[Grid, ...]] = _TALL | {
    inverse: tuple((width, height) for height, width in _TALL[tall]) for tall, inverse in _INVERSE.items()
}
"""Aspect template (height / width) → its 13 grids at 1M; all 15 official templates."""


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """The (height, width) token grids of one image, coarse to fine.

    `rope_grid` is the grid that 2-D RoPE positions are normalised to: the last grid of the 1M schedule
    of the same aspect template, whatever the resolution (Infinity, rope2d_normalized_by_hw=2).
    """

    sizes: tuple[Grid, ...]
    rope_grid: Grid
    resolution: str = "custom"
    aspect: float = 1.0

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise ScheduleError(f"a scale schedule needs at least 2 scales, found {len(self.sizes)}")
        for height, width in (*self.sizes, self.rope_grid):
            if height < 1 or width < 1:
                raise ScheduleError(f"scale grid {height}x{width} is empty; sides must be 1 or more")

    @classmethod
    def named(cls, resolution: str, *, aspect: float = 1.0) -> ScaleSchedule:
        """The official schedule of a resolution, for the template nearest to `aspect` (height / width)."""
        if resolution not in RESOLUTIONS:
            raise UnknownNameError("resolution", resolution, RESOLUTIONS)
        if not _LEAST_ASPECT <= aspect <= _MOST_ASPECT:
            raise ScheduleError(f"aspect {aspect:g} is beyond the templates' height / width, 0.333 to 3")
        template = min(TEMPLATES, key=lambda ratio: abs(aspect - ratio))
        grids = TEMPLATES[template]
        return cls(grids[: RESOLUTIONS[resolution]], grids[-1], resolution, template)

    @classmethod
    def custom(cls, sizes: tuple[Grid, ...], *, rope_grid: Grid | None = None) -> ScaleSchedule:
        """A schedule of the given grids; RoPE is normalised to `rope_grid`, or else to the last grid."""
        height, width = sizes[-1]
        return cls(sizes, rope_grid or sizes[-1], "custom", height / width)

    @property
    def num_scales(self) -> int:
        return len(self.sizes)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First token of each scale in the whole sequence, and the total at the end: [num_scales + 1]."""
        return (0, *accumulate(self.tokens))

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def history_tokens(self) -> int:
        """Tokens of all scales but the last: the denominator of every budget."""
        return sum(self.tokens[:-1])

    @property
    def in_words(self) -> str:
        """Such as `13 scales up to 64x64`."""
        height, width = self.sizes[-1]
        return f"{self.num_scales} scales up to {height}x{width}"

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return {
            "sizes": [list(size) for size in self.sizes],
            "rope_grid": list(self.rope_grid),
            "resolution": self.resolution,
            "aspect": self.aspect,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ScaleSchedule:  # Any: a JSON object
        try:
            sizes = tuple((int(height), int(width)) for height, width in record["sizes"])
            height, width = record["rope_grid"]
            return cls(sizes, (int(height), int(width)), str(record["resolution"]), float(record["aspect"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ScheduleError(
                f"scales record is damaged ({error!r}); expected sizes, rope_grid, resolution, aspect"
            ) from None
