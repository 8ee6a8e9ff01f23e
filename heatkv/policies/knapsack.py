"""The knapsack planner: whenever the cache would exceed its budget, what is worth least per byte goes, or gets coarser.

Source: ours. Unlike HeatKV (arXiv 2605.14877) it chooses over all layers, heads and source scales at once, judges a
head-scale after a step only by what later steps lose without it, in both guidance rows, and knows coarser codecs
beside keeping and dropping. What is lost is measured: `output`, the change of the layer's attention output were the
head blind to the source scale, which predicts the effect of dropping far better than attention mass does
(docs/beyond.md); or `mass`, which every trace has. The choosing itself is heatkv.spending.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from heatkv.budget import budget_tokens, check_budget, check_sink_scales
from heatkv.codecs import CODECS, MODEL
from heatkv.errors import BudgetError, OptionError, OrdersError, UnknownNameError
from heatkv.measurements import Measurements
from heatkv.policies import check_parameter, parameters
from heatkv.policies.full import keep_everything
from heatkv.policies.pinned import FREE, check_pins, no_pins
from heatkv.schedule import PruningSchedule
from heatkv.spending import NOISE, Costs, Spent, bytes_of, loss_of, noise_in, noise_of, spend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig
    from heatkv.scales import ScaleSchedule

_DTYPE_BYTES = 2
"""Of the model's numbers: bfloat16. In float32 coded tokens take a smaller share, so that a plan fits there too."""
_TRIES = 8


@dataclass(frozen=True, slots=True, eq=False)
class KnapsackPolicy:
    """Drops head-scales, or stores them coarser, by what is lost per byte freed."""

    measurements: Measurements
    score: Literal["output", "mass"] = "output"
    """What a loss is: change of attention's output, or attention mass."""
    uncond: float = 0.44
    """What the unconditional row counts beside the conditional one: ((cfg - 1) / cfg)² at a guidance of 3."""
    exponent: float = 1.25
    """Of the bytes that a loss is divided by: 1 is loss per byte, more prefers to free large pieces."""
    late: float = 0.0
    """A query scale counts by its queries to this power: 0, all scales alike, as a bit that is wrong early changes all
    that comes after it; 1, all queries alike."""
    codecs: str = MODEL
    """Codecs for all but the sinks, finest first, joined by +, as in int4+k4v2."""

    name: ClassVar[str] = "knapsack"
    frees_memory: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("output_error",)
    needs_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"score=mass": ("attention_mass",)}
    default_sinks: ClassVar[int | None] = 1

    @classmethod
    def of_mass(cls, mass: NDArray[np.floating], *, exponent: float = 1.5, late: float = 1.0) -> Self:
        """By attention mass alone, [query_scale, layer, head, source_scale], as a trace has it."""
        measured = Measurements(attention_mass=np.asarray(mass, np.float64))
        return cls(measured, "mass", exponent=exponent, late=late)

    def __post_init__(self) -> None:
        check_parameter(self, "uncond", least=0, most=1e6)
        check_parameter(self, "exponent", least=0, most=10)
        check_parameter(self, "late", least=-10, most=10)
        unknown = [name for name in self.coded if name not in NOISE]
        if unknown:
            raise UnknownNameError("KV codec", unknown[0], NOISE)
        sizes = [CODECS[name].bytes_per_token(128, rows=1, dtype_bytes=_DTYPE_BYTES) for name in self.coded]
        if sizes != sorted(set(sizes), reverse=True):
            raise OptionError(f"policy knapsack: codecs={self.codecs!r}; expected each coarser than the one before it")

    @property
    def coded(self) -> tuple[str, ...]:
        """Names of the codecs, finest first."""
        return tuple(self.codecs.split("+"))

    def plan(
        self,
        config: ModelConfig,
        scales: ScaleSchedule,
        *,
        budget: float | None = None,
        sink_scales: int | None = None,
        pins: NDArray[np.int16] | None = None,
    ) -> PruningSchedule:
        """The schedule whose bytes, after every step, are within the budget; sink_scales None: the first only.

        Raises BudgetError with the minimum if sinks and pins alone exceed it, OrdersError for scores of another shape.
        """
        sinks = min(self.default_sinks or 0, scales.num_scales - 1) if sink_scales is None else sink_scales
        check_sink_scales(sinks, scales)
        feasible = check_budget(budget, scales, sinks)
        pins = no_pins(config, scales) if pins is None else pins
        check_pins(pins, config, scales, sinks)
        limit = budget_tokens(feasible, config, scales) * int(bytes_of((MODEL,), config.head_dim, dtype_bytes=2)[0])
        schedule = self._within(limit, config, scales, sinks, pins, budget)
        return schedule if self.codecs == MODEL else self._allocated(schedule, limit, config, scales, sinks, pins)

    def loss_of(self, schedule: PruningSchedule, config: ModelConfig) -> float:
        """What any planned schedule loses by this policy's score, codecs by NOISE: summed over layers, a weighted mean
        over query scales. Raises OrdersError for scores of another shape."""
        return loss_of(self._paid(config, schedule.scales), schedule.drop_step, noise_in(schedule))

    def _allocated(
        self,
        schedule: PruningSchedule,
        limit: int,
        config: ModelConfig,
        scales: ScaleSchedule,
        sinks: int,
        pins: NDArray[np.int16],
    ) -> PruningSchedule:
        """The same, whose pools together are within the limit: each codec's has its own peak, at its own step."""
        aim = limit
        for _ in range(_TRIES):
            allocated = schedule.capacity_bytes(config.head_dim, rows=1, dtype_bytes=_DTYPE_BYTES)
            if allocated <= limit:
                return schedule
            aim = int(aim * min(0.99, limit / allocated))
            schedule = self._within(aim, config, scales, sinks, pins, schedule.budget)
        raise BudgetError(
            f"policy knapsack finds no plan with codecs {self.codecs} whose pools fit {limit:,} bytes a row; "
            "give one codec, or raise the budget",
            minimum=1.0,
        )

    def _within(
        self,
        limit: int,
        config: ModelConfig,
        scales: ScaleSchedule,
        sinks: int,
        pins: NDArray[np.int16],
        budget: float | None,
    ) -> PruningSchedule:
        start = keep_everything(config, scales)
        start[pins != FREE] = pins[pins != FREE]
        able = np.broadcast_to(np.arange(scales.num_scales) >= sinks, start.shape) & (pins == FREE)
        spent = spend(self._costs(config, scales), start, able, scales, limit=limit, sinks=sinks)
        codec, codecs = self._stored(spent, sinks)
        provenance = {"parameters": parameters(self), "loss": float(f"{spent.loss:.6g}")}
        return PruningSchedule(
            spent.drop_step, config.name, scales, sinks, self.name, budget, provenance, codec=codec, codecs=codecs
        )

    def _stored(self, spent: Spent, sinks: int) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
        """As a schedule tells it: with the sinks in the model's dtype."""
        if self.codecs == MODEL:
            return None, ()
        codecs = self.coded if self.coded[0] == MODEL else (MODEL, *self.coded)
        codec = spent.codec + (len(codecs) - len(self.coded))
        codec[:, :, :sinks] = 0
        return codec.astype(np.uint8), codecs

    def _costs(self, config: ModelConfig, scales: ScaleSchedule) -> Costs:
        return Costs(
            self._paid(config, scales),
            bytes_of(self.coded, config.head_dim, dtype_bytes=_DTYPE_BYTES),
            noise_of(self.coded),
            int(bytes_of((MODEL,), config.head_dim, dtype_bytes=_DTYPE_BYTES)[0]),
            self.exponent,
        )

    def _paid(self, config: ModelConfig, scales: ScaleSchedule) -> NDArray[np.float64]:
        """What each query scale loses without each head-scale, weighted: [query_scale, layer, head, source_scale]."""
        names = {"output": "output_error", "mass": "attention_mass"}
        lost = getattr(self.measurements, names[self.score])
        shape = (scales.num_scales, config.num_layers, config.num_heads, scales.num_scales)
        if lost is None:
            other = next(score for score in names if score != self.score)
            raise OrdersError(
                f"knapsack:score={self.score} needs {names[self.score]}, which nothing here has measured; "
                f"give a calibration that has it, or score={other}"
            )
        if lost.shape != shape:
            raise OrdersError(f"{names[self.score]} has shape {list(lost.shape)}; this run needs {list(shape)}")
        uncond = getattr(self.measurements, f"{names[self.score]}_uncond")
        both = np.nan_to_num(lost) + (0.0 if uncond is None else self.uncond * np.nan_to_num(uncond))
        weights = np.array(scales.tokens, np.float64) ** self.late
        paid: NDArray[np.float64] = both * (weights / weights.sum())[:, None, None, None]
        return paid
