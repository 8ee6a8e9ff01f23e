"""ScaleKV: drafters, layers that look broadly at a scale, keep nearly all; refiners keep less at every further scale.

Source: Li et al., arXiv 2505.19602 (NeurIPS 2025) and its code. As there: the attention selectivity of every (layer,
scale), z-scored within the scale; the lowest pairs draft; refiners' capacities fall linearly with the scale; all heads
of a layer alike; nothing is evicted until a layer holds more than `start` tokens. Selection is the code's: 16 queries
on a 4 × 4 grid, projected only (no bias, norm, scale or RoPE); their raw products with the cached keys / sqrt(D),
summed; the window's own columns -inf; pooled along the cache; the window stays, then the highest. Deviations:
- the paper takes softmax attention and average pooling, the code raw products and max pooling: we follow the code
  (`pooling=average` is the code's other option: a window token's neighbours become -inf too);
- how many pairs draft is not published: 6 % (the shipped files have 5.6 % for 2B and 7.5 % for 8B), at least one;
- 600 - 70 k tokens at a mean of 650, as in the paper, are shares of the mean here, so that any budget works; k counts
  from the first scale that evicts. Together with the next but one point this comes within 2 tokens of what is shipped
  for 2B, but for its last scale; `budget_file` reads the shipped capacities themselves;
- the capacity after a scale goes by the selectivity of the next one, which will read it;
- drafters take what refiners leave of the budget, and pass on what they cannot take;
- `start` is the mean capacity, as 650 is for the shipped 10 %;
- the code fails where the capacity is below the window, and has no room for others just above it: here the window
  takes at most half of the capacity, spread over the map, and the rest of it competes;
- on a map too small for the grid, or not square, the window is its last tokens, of the current scale only.
The budget holds after every step, where the paper's is a mean at the end of a scale. No sinks, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from heatkv.budget import budget_from_tokens
from heatkv.errors import OptionError
from heatkv.files import read_json
from heatkv.online import by_shares
from heatkv.policies import MOST_QUERIES, WIDEST_POOLING, check_parameter
from heatkv.policies.tokens import TokenPolicy, spread_order

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heatkv.config import ModelConfig
    from heatkv.measurements import Measurements
    from heatkv.online import OnlinePlan
    from heatkv.scales import ScaleSchedule
    from heatkv.seen import Seen

FORMAT = "scalekv-budget/1"
_REFINER, _FALL = 600 / 650, 70 / 650
"""A refiner's first capacity, and how much less it is at each further scale: shares of the mean."""


@dataclass(frozen=True, slots=True)
class ScaleKVPolicy(TokenPolicy):
    """Keeps an observing window and what its queries match best; drafters keep more than refiners."""

    measurements: Measurements | None = None
    window: int = 16
    """Observing queries, whose tokens stay; a square number lies on a grid."""
    kernel: int = 5
    """Width of the pooling along the cache; 1: none."""
    pooling: Literal["max", "average"] = "max"
    """max, as the official runner; average, as its other option."""
    start: int | None = None
    """Tokens up to which a head evicts nothing; None: the mean capacity."""
    drafters: float = 0.06
    """Share of (layer, scale) pairs that draft."""
    budget_file: str | None = None
    """A file of capacities (scalekv-budget/1), instead of selectivity and budget."""

    name: ClassVar[str] = "scalekv"
    needs: ClassVar[tuple[str, ...]] = ("selectivity",)
    needs_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"budget_file": ()}
    default_sinks: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        check_parameter(self, "window", least=1, most=MOST_QUERIES)
        check_parameter(self, "kernel", least=1, most=WIDEST_POOLING)
        if self.start is not None:
            check_parameter(self, "start", least=0, most=2**32 - 1)
        check_parameter(self, "drafters", least=0, most=1)

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
    ) -> OnlinePlan:
        """As TokenPolicy.plan; with a budget file, the budget may be left out: it is the peak of the file's plan."""
        if self.budget_file is None or budget is not None:
            # No super(): a dataclass with slots is another class than the one that it was made from.
            return TokenPolicy.plan(self, config, scales, budget=budget, sink_scales=sink_scales)
        plan = TokenPolicy.plan(self, config, scales, budget=1.0, sink_scales=sink_scales)
        return replace(plan, budget=budget_from_tokens(plan.peak_tokens, config, scales))

    def capacities(
        self, mean: float, config: ModelConfig, scales: ScaleSchedule, sink_scales: int
    ) -> NDArray[np.float64]:
        if self.budget_file is not None:
            of_layers = read_capacities(Path(self.budget_file), config, scales)
        else:
            assert self.measurements is not None  # as `needs` says
            self.measurements.require(self.needs, config, scales)
            of_layers = self._by_roles(mean, config, scales)
        return np.repeat(of_layers[:, :, None], config.num_heads, axis=2)

    def _by_roles(self, mean: float, config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.float64]:
        """[query_scale, layer]: everything until the start, then drafters' and refiners' parts of the mean."""
        cached = np.array([*scales.offsets[1:-1], scales.offsets[-2]])
        evicts = cached > (mean if self.start is None else self.start)
        since = np.maximum(np.cumsum(evicts) - 1, 0)
        refiner = np.maximum(_REFINER - _FALL * since, 0.0)
        drafts = self._drafts(evicts)
        num_drafters = drafts.sum(axis=1)
        drafter = (config.num_layers - (config.num_layers - num_drafters) * refiner) / np.maximum(num_drafters, 1)
        shares = np.where(num_drafters[:, None] == 0, 1.0, np.where(drafts, drafter[:, None], refiner[:, None]))
        dealt = by_shares(mean, shares[:, :, None], scales)[:, :, 0]
        return np.where(evicts[:, None], dealt, cached[:, None])

    def _drafts(self, evicts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[query_scale, layer]: whether a layer drafts for the scale after this one."""
        assert self.measurements is not None  # the caller's
        selectivity = self.measurements.selectivity
        assert selectivity is not None  # required when planning
        reader = np.minimum(np.arange(len(evicts)) + 1, len(evicts) - 1)
        read = selectivity[reader]
        scored = (read - read.mean(axis=1, keepdims=True)) / np.maximum(read.std(axis=1, keepdims=True), 1e-12)
        scored[~evicts] = np.inf
        scored[-1] = np.inf  # nothing reads what is there after the last scale
        pairs = int(evicts[:-1].sum()) * scored.shape[1]
        lowest = np.argsort(np.nan_to_num(scored, nan=np.inf), axis=None, kind="stable")
        drafts = np.zeros(scored.shape, dtype=np.bool_)
        drafts.flat[lowest[: min(max(1, round(self.drafters * pairs)), pairs)]] = True
        return drafts

    def scores(self, seen: Seen) -> Tensor:
        # Deferred: planning needs no torch.
        import torch

        window, ranking = self.ranking(seen)
        most = torch.minimum(seen.capacity // 2, torch.full_like(seen.capacity, len(window)))
        order = torch.tensor(spread_order(len(window)), device=window.device)
        stays = torch.zeros(len(seen.heads), seen.keys.shape[2], dtype=torch.bool, device=window.device)
        stays[:, seen.num_stored + window] = order < most[:, None]
        return ranking.masked_fill(stays, torch.inf)

    def ranking(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """The window's indices among the current tokens, and what the others are ranked by, [R, G, T] float32."""
        # Deferred: planning needs no torch.
        import torch

        from heatkv.seen import pooled

        window = seen.grid_queries(self.window)
        queries = seen.raw_queries(window).float()
        products = (queries.sum(2, keepdim=True) @ seen.keys.float().transpose(-1, -2))[:, :, 0]
        scores = (products / seen.keys.shape[-1] ** 0.5).masked_fill(seen.is_current(window), -torch.inf)
        return window, pooled(scores, self.kernel, "max" if self.pooling == "max" else "zero-padded mean")


def read_capacities(path: Path, config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.float64]:
    """Capacities of a budget file, [query_scale, layer]. Raises OptionError if it is none, or for another run."""
    record = read_json(path, expected=f"a budget file ({FORMAT})", error=OptionError)
    try:
        return _capacities(record, path, config, scales)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise OptionError(f"{path}: damaged ({error!r}); expected a budget file ({FORMAT})") from None


def _capacities(
    record: Any,  # Any: JSON values
    path: Path,
    config: ModelConfig,
    scales: ScaleSchedule,
) -> NDArray[np.float64]:
    if record["format"] != FORMAT:
        raise OptionError(f"{path}: format {record['format']!r}; this version reads {FORMAT}")
    found = (record["num_layers"], tuple(record["scale_token_counts"]))
    if found != (config.num_layers, scales.tokens):
        made_for = f"{found[0]} layers and scales of {', '.join(map(str, found[1]))} tokens"
        raise OptionError(f"{path}: made for {made_for}; {config.name} at {scales.resolution} has others")
    capacities = np.repeat(np.array(scales.offsets[1:], np.float64)[:, None], config.num_layers, axis=1)
    for one in record["scales"]:
        capacities[int(one["applied_after_scale_index"])] = one["tokens_per_layer"]
    capacities[-1] = capacities[-2]
    return capacities
