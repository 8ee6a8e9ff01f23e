"""Forcing-KV for next-scale images: an adaptation, not a reproduction. Static heads look near, dynamic heads far.

Source: arXiv 2605.09681 (video) and its code. There, heads that pay most attention to the last frames keep the first
and the last; the others keep also the third of older segments that is least like the frame that follows. What stands
for what here, and every other deviation, is ours:
- a chunk of frames is a scale, the sink frame the sink scales, the last frame the scale just done;
- a head is static if, behind the sinks, this scale and the one before have at least `threshold` (0.8, as there) of
  its attention, mean over scales; `threshold=none` makes as many heads dynamic as can keep the paper's third;
- a scale can be larger than the budget allows: then static heads keep of it what fits, least similar cells first;
- dynamic heads get what static heads leave; what they cannot take goes back, so that the mean head keeps the budget;
- a segment is a cell of a `grid` × `grid` map; its mean key (or value) is compared, by cosine, with that of the same
  place one scale on, when the scale stops being the last one, and the number stays with its tokens. The share that
  is kept follows from the budget, and the last cell may be kept in part;
- each head, layer and row chooses for itself; the code decides in layer 1 of the first row, for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from heatkv.online import spread
from heatkv.policies import MOST_QUERIES, check_parameter
from heatkv.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.measurements import Measurements
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen

_RETAINED = 1 / 3
"""Share of older tokens that dynamic heads keep in the paper."""


@dataclass(frozen=True, slots=True)
class ForcingPolicy(TokenPolicy):
    """Keeps the sinks, the last scale, and of dynamic heads the cells that are least like what follows them."""

    measurements: Measurements
    threshold: float | None = 0.8
    """Share of attention from which a head is static; None: by the budget."""
    reach: int = 1
    """1: static heads keep the last scale; 0: only the sinks."""
    grid: int = 4
    """Cells along each side of a scale's map."""
    compare: Literal["keys", "values"] = "keys"
    """What is compared from scale to scale."""

    name: ClassVar[str] = "forcing"
    needs: ClassVar[tuple[str, ...]] = ("static_score",)
    carries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_parameter(self, "threshold", least=0, most=1)
        check_parameter(self, "reach", least=0, most=1)
        check_parameter(self, "grid", least=1, most=MOST_QUERIES)

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        self.measurements.require(self.needs, config, scales)
        if sink_scales >= scales.num_scales - 1:  # nothing but sinks is ever stored
            return np.full((scales.num_scales, config.num_layers, config.num_heads), mean)
        static = self._static(mean, scales, sink_scales)
        scale = np.minimum(np.arange(scales.num_scales), scales.num_scales - 2)
        return np.stack([self._of_scale(mean, static, int(one), scales, sink_scales) for one in scale])

    def _static(self, mean: float, scales: ScaleSchedule, sink_scales: int) -> NDArray[np.bool_]:
        """[layer, head]: whether a head is static."""
        score = self.measurements.static_score(sink_scales)
        if self.threshold is not None:
            return score >= self.threshold
        near = self._near(scales.num_scales - 2, scales, sink_scales)
        far = near + _RETAINED * (scales.offsets[-2] - near)
        num_dynamic = int(np.clip((mean - near) / max(far - near, 1) * score.size, 0, score.size))
        static = np.ones(score.size, dtype=np.bool_)
        static[np.argsort(score, axis=None, kind="stable")[:num_dynamic]] = False
        return static.reshape(score.shape)

    def _near(self, scale: int, scales: ScaleSchedule, sink_scales: int) -> int:
        """Tokens of the sinks and, with reach, of the scale just done."""
        last = self.reach * scales.tokens[scale] if scale >= sink_scales else 0
        return scales.offsets[min(sink_scales, scale + 1)] + last

    def _of_scale(
        self, mean: float, static: NDArray[np.bool_], scale: int, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        """[layer, head]: static heads what is near, dynamic heads the rest, static heads what is left of it."""
        cached = scales.offsets[scale + 1]
        near = np.where(static, min(mean, self._near(scale, scales, sink_scales)), 0.0)
        rest = mean * static.size - float(near.sum())
        far = np.zeros(static.shape)
        far[~static] = spread(rest, np.ones(int((~static).sum())), cached)
        left = rest - float(far.sum())
        near[static] += spread(left, np.ones(int(static.sum())), max(0.0, cached - float(near.max(initial=0))))
        return near + far

    def carry(self, seen: Seen) -> Tensor:
        """How much each token's cell is like the same place one scale on; of the newest scale, one scale back."""
        # Deferred: planning needs no torch.
        import torch

        scale = seen.query_scale
        known = torch.zeros(seen.tokens.shape, device=seen.tokens.device) if seen.carried is None else seen.carried
        if scale == 0:
            return known
        height, width = (
            min(self.grid, *sides) for sides in zip(*seen.scales.sizes[scale - 1 : scale + 1], strict=True)
        )
        at = [_cells(seen, one, height, width) for one in (scale - 1, scale)]
        vectors = (seen.keys if self.compare == "keys" else seen.values).float()
        before, after = (_summed(vectors, cells, height * width + 1) for cells in at)
        # Tokens of equal codes are alike in all but the order of sums: they shall tie, not be told apart by rounding.
        likeness = torch.cosine_similarity(before, after, dim=-1).round(decimals=4)
        for one, cells in zip((scale - 1, scale), at, strict=True):
            known = torch.where(seen.source_scales == one, likeness.gather(2, cells), known)
        return known

    def scores(self, seen: Seen) -> Tensor:
        assert seen.carried is not None  # this policy carries
        newest = seen.source_scales == seen.query_scale
        return 4 * newest.float() - seen.carried  # a cosine is within 1 of 0


def _cells(seen: Seen, scale: int, height: int, width: int) -> Tensor:
    """[R, G, T]: the cell, of height × width, that each candidate of a scale lies in; others': height * width."""
    rows, columns = seen.scales.sizes[scale]
    index = seen.tokens - seen.scales.offsets[scale]
    cell: Tensor = (index // columns * height // rows) * width + index % columns * width // columns
    return cell.masked_fill(seen.source_scales != scale, height * width)


def _summed(vectors: Tensor, cells: Tensor, count: int) -> Tensor:
    """[R, G, count, D]: the sum of the vectors [R, G, T, D] of each cell, which points where their mean does."""
    sums = vectors.new_zeros(*vectors.shape[:2], count, vectors.shape[3])
    return sums.scatter_add_(2, cells[..., None].expand_as(vectors), vectors)
