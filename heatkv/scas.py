"""S-CAS: how much attention each head pays to each earlier scale.

Owns the scores, their accumulation and their files. Knows no model and no budget: whoever measures attention
hands the mass over; planners read the HeadOrders that the scores rank. numpy only.

Scale-wise cumulative attention score, from HeatKV (arXiv 2605.14877): the attention mass that one head gives
to one source scale, averaged over queries, then over all later query scales, then over prompts.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.errors import OrdersError
from heatkv.files import write_new
from heatkv.orders import HeadOrders as HeadOrders

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ORDERS_FILE = "scas_orders.json"
SUMMARY_FILE = "scas_scores.json"
SCORES_FILE = "scas_scores.npz"


@dataclass(frozen=True, slots=True, eq=False)
class ScasScores:
    """The mean attention mass that each head gives to each source scale."""

    scores: NDArray[np.float64]
    """[layer, head, source_scale], NaN where not eligible (sink scales, the last scale). Read-only."""
    sink_scales: int
    metadata: dict[str, Any] = field(default_factory=dict)  # Any: JSON values
    """What the official files record: model, num_prompts, seed, cfg, tau, scale_schedule, prompt_file."""

    def __post_init__(self) -> None:
        scores = np.array(self.scores, dtype=np.float64)
        if scores.ndim != 3 or not 0 <= self.sink_scales < scores.shape[2]:
            expected = f"[layer, head, source_scale] and fewer sink scales than scales, not {self.sink_scales}"
            raise OrdersError(f"scores have shape {list(scores.shape)}; expected {expected}")
        eligible = np.zeros(scores.shape[2], dtype=bool)
        eligible[self.sink_scales : -1] = True
        if not np.isfinite(scores[:, :, eligible]).all():
            raise OrdersError("an eligible score is not a number; expected a mass for every head and source scale")
        scores[:, :, ~eligible] = np.nan
        scores.flags.writeable = False
        object.__setattr__(self, "scores", scores)

    @property
    def sources(self) -> range:
        """The eligible source scales."""
        return range(self.sink_scales, self.scores.shape[2] - 1)

    def orders(self) -> HeadOrders:
        """All heads ranked by ascending score; ties go to the smaller head, then the smaller layer."""
        num_layers, num_heads, _ = self.scores.shape
        layer, head = np.divmod(np.arange(num_layers * num_heads), num_heads)
        by_source = self.scores.reshape(num_layers * num_heads, -1)[:, self.sink_scales : -1].T
        slots = np.array([np.lexsort((layer, head, scores)) for scores in by_source], dtype=np.int32)
        slots = slots.reshape(-1, num_layers * num_heads)
        return HeadOrders(slots, self.sink_scales, num_layers, num_heads, "scores", dict(self.metadata))

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the official scas_orders.json and scas_scores.json, and scas_scores.npz with every score.

        The official scores file holds only a summary by source scale; the .npz is what `load` reads back.
        Returns the folder. Raises OutputError if one of them exists, unless `overwrite`.
        """
        folder = Path(folder)
        orders = self.orders()
        metadata = self.metadata | orders.shape_metadata()
        packed = io.BytesIO()
        np.savez(packed, scores=self.scores, sink_scales=self.sink_scales, metadata=json.dumps(self.metadata))
        summary = {"metadata": metadata, "summary_by_source_scale": self._summary()}
        write_new(folder / SCORES_FILE, packed.getvalue(), overwrite=overwrite)
        write_new(folder / SUMMARY_FILE, json.dumps(summary, indent=2).encode() + b"\n", overwrite=overwrite)
        orders.save(folder / ORDERS_FILE, overwrite=overwrite)
        return folder

    @classmethod
    def load(cls, path: Path | str) -> ScasScores:
        """Read scas_scores.npz, or the folder that holds it. Raises OrdersError if it cannot be read."""
        path = Path(path)
        path = path / SCORES_FILE if path.is_dir() else path
        try:
            # From memory: numpy leaves a damaged archive's file open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as packed:
                return cls(packed["scores"], int(packed["sink_scales"]), json.loads(str(packed["metadata"])))
        except OrdersError as error:
            raise OrdersError(f"{path}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OrdersError(f"{path}: not a score file ({reason}); expected {SCORES_FILE} of a calibration") from None

    def _summary(self) -> dict[str, dict[str, float]]:
        columns = {str(source): self.scores[:, :, source] for source in self.sources}
        return {
            source: {"min": float(column.min()), "mean": float(column.mean()), "max": float(column.max())}
            for source, column in columns.items()
        }


class ScasAccumulator:
    """Running sums of attention mass; `prompts` counts those that are whole.

    The model must run unpruned, and the mass be that of the conditional branch.
    """

    def __init__(self, num_layers: int, num_heads: int, num_scales: int, sink_scales: int) -> None:
        if not 0 <= sink_scales < num_scales:
            raise OrdersError(f"{sink_scales} sink scales; expected 0 to {num_scales - 1} of {num_scales} scales")
        self.sums: NDArray[np.float64] = np.zeros((num_layers, num_heads, num_scales))
        """[layer, head, source_scale], over query scales and prompts."""
        self.sink_scales = sink_scales
        self.prompts = 0

    def add(self, query_scale: int, layer: int, mass: ArrayLike) -> None:
        """Add one step of one prompt: mass [head, source_scale] is summed over keys, averaged over queries.

        It may reach to the current scale or over all scales; only earlier scales that are not sinks count.
        """
        sources = slice(self.sink_scales, max(query_scale, self.sink_scales))
        self.sums[layer, :, sources] += np.asarray(mass, dtype=np.float64)[:, sources]

    def add_prompt(self, mass: NDArray[np.floating]) -> None:
        """Add every step of one prompt, [query_scale, layer, head, source_scale], and count it."""
        for query_scale, layers in enumerate(mass):
            for layer, one in enumerate(layers):
                self.add(query_scale, layer, one)
        self.prompts += 1

    def merge(self, other: ScasAccumulator) -> None:
        """Add what another accumulator saw: other prompts of the same calibration."""
        self.sums += other.sums
        self.prompts += other.prompts

    def scores(self, metadata: dict[str, Any] | None = None) -> ScasScores:  # Any: JSON values
        """Sums over prompts × later query scales. Raises OrdersError if no prompt was finished."""
        if self.prompts < 1:
            raise OrdersError("no prompt was measured; calibrate with at least one")
        num_scales = self.sums.shape[2]
        later_scales = num_scales - 1 - np.arange(num_scales)
        later_scales[-1] = 1  # the last scale is never a source; any divisor but 0 does
        known = {"num_prompts": self.prompts} | (metadata or {})
        return ScasScores(self.sums / (self.prompts * later_scales), self.sink_scales, known)
