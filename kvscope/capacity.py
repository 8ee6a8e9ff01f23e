"""Capacity: the largest batch that fits in a memory, for every resolution and budget, from the ledger's predictions.

Everything here is predicted; what cannot be predicted is named in UNCOUNTED and is in no sum. A batch is images
made at once: 2 rows an image with guidance, 1 without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from heatkv.budget import budget_tokens, check_budget, codec_budget
from heatkv.codecs import MODEL
from heatkv.config import model_config
from heatkv.errors import BudgetError
from heatkv.head_codecs import bytes_per_token
from heatkv.scales import RESOLUTIONS
from kvscope import forecast
from kvscope.job import Job
from kvscope.ledger_lines import device_kind
from kvscope.plan import Plan, plan_job
from kvscope.units import bytes_text, fraction_text

if TYPE_CHECKING:
    from heatkv.config import ModelConfig
    from heatkv.schedule import PruningSchedule

UNCOUNTED = {
    "cuda": (
        "the text encoder",
        "what a GPU's driver and an allocator keep for themselves",
        "previews of a recorded run, decoded while the cache is held",
    ),
    "cpu": (
        "the text encoder",
        "Python, PyTorch and other libraries, and what loading the weights leaves behind",
        "what a system's allocator and libraries keep for reuse",
    ),
}
"""By kind of device."""
_MOST_IMAGES = 1 << 20
_RGB = 3
_DECODER_TENSORS = {"cpu": 3, "cuda": 5}
"""Of the decoder's largest, alive at once in the first block at the image's own size: input, normalised, activated; on
CUDA also what cuDNN copies into a layout of its own, input and output (seen on an H100: 4.9 at 0.25M and 1M)."""


@dataclass(frozen=True, slots=True)
class Use:
    """Predicted bytes of one batch."""

    images: int
    weights_bytes: int
    """Of the transformer and the VAE."""
    cache_bytes: int
    """The pool, for the whole budget, or under a policy for its plan's peak; and its index, where that is on the device
    as well."""
    layer_bytes: int
    """The most that one layer needs for a moment, beside the two above."""
    decode_bytes: int
    """To decode the images, one after the other; the cache and the layers are gone by then."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + max(self.cache_bytes + self.layer_bytes, self.decode_bytes)

    @property
    def growing(self) -> str:
        """Of what grows with the batch, the line that takes most of the total."""
        if self.decode_bytes > self.cache_bytes + self.layer_bytes:
            return "decoding"
        return "cache" if self.cache_bytes >= self.layer_bytes else "one layer"

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self) | {"total_bytes": self.total_bytes, "tag": "predicted"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One resolution at one budget."""

    resolution: str
    budget: float
    use: Use | None
    """Of the largest batch; None: not one image fits, or no schedule can meet the budget."""
    binds: str
    """What a larger batch fails for: the line that grows most; or why there is no batch."""

    @property
    def images(self) -> int:
        return 0 if self.use is None else self.use.images

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        facts = {"resolution": self.resolution, "budget": self.budget, "images": self.images, "binds": self.binds}
        return facts | {"predicted": None if self.use is None else self.use.to_json()}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What fits."""

    model: str
    device: str
    dtype: str
    rows_per_image: int
    memory_bytes: int
    reserve_bytes: int
    """Of it, left to what is not counted."""
    cells: tuple[Cell, ...]
    policy: str | None = None
    """None: any that drops whole head-scales."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        facts = ("model", "device", "dtype", "rows_per_image", "memory_bytes", "reserve_bytes", "policy")
        uncounted = list(UNCOUNTED[device_kind(self.device)])
        cells = {"cells": [cell.to_json() for cell in self.cells], "uncounted": uncounted}
        return {name: getattr(self, name) for name in facts} | cells


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of all resolutions and budgets alike."""

    config: ModelConfig
    device: str
    dtype: str
    dtype_bytes: int
    rows_per_image: int
    aspect: float = 1.0
    policy: str | None = None
    """None: any that keeps to the budget by whole head-scales."""
    codec: str = MODEL
    """What all but the sinks are stored in: a budget stays the same bytes, but the whole history takes fewer."""
    orders: str | None = None
    """Path of the policy's head orders or calibration; None: those that come with heatkv."""

    def use(self, resolution: str, budget: float, images: int) -> Use:
        """What a batch takes. Raises BudgetError if no schedule can meet the budget."""
        rows = images * self.rows_per_image
        schedule, tokens, cache_bytes = self._plan(resolution, budget, rows)
        on_cpu = device_kind(self.device) == "cpu"
        height, width = self.config.image_size(schedule.scales)
        index_bytes = forecast.said_bytes(schedule, rows) + (forecast.SLOT_NUMBER_BYTES if on_cpu else 0)
        return Use(
            images,
            forecast.weight_bytes(self.config, self.dtype_bytes)
            + forecast.vae_weight_bytes(self.config.vae, self.dtype_bytes),
            cache_bytes + tokens * index_bytes,
            max(self._layer_bytes(schedule, scale, rows, on_cpu=on_cpu) for scale in range(schedule.scales.num_scales)),
            height * width * (self._decoder_bytes_per_pixel + images * _RGB),
        )

    def _plan(self, resolution: str, budget: float, rows: int) -> tuple[PruningSchedule, int, int]:
        """What says how much a layer needs at most, the most tokens held, and their bytes.

        Without a policy everything is kept in the former: a smaller budget has less to gather.
        """
        if self.policy is not None:
            plan = _planned(self.config.name, self.policy, self.codec, resolution, self.aspect, budget, self.orders)
            return plan.schedule, plan.peak_tokens, plan.capacity_bytes(rows=rows, dtype_bytes=self.dtype_bytes)
        full = _planned(self.config.name, "full", self.codec, resolution, self.aspect, None, None).schedule
        check_budget(budget, full.scales, min(self.config.sink_scales, full.scales.num_scales - 1))
        return full, *self._bought(full, budget, rows)

    def _bought(self, full: PruningSchedule, budget: float, rows: int) -> tuple[int, int]:
        """The tokens that a budget buys, over all layers and heads, and their bytes."""
        config, scales, sinks = self.config, full.scales, full.sink_scales
        if self.codec == MODEL:
            tokens = budget_tokens(budget, config, scales)
            return tokens, tokens * config.kv_bytes_per_token(dtype_bytes=self.dtype_bytes, rows=rows)
        bought = codec_budget(budget, self.codec, config, scales, sink_scales=sinks, dtype_bytes=self.dtype_bytes)
        tokens = budget_tokens(bought, config, scales)
        sizes = bytes_per_token((MODEL, self.codec), config.head_dim, rows=rows, dtype_bytes=self.dtype_bytes)
        plain, coded = sizes.tolist()
        sink_tokens = sum(scales.tokens[:sinks]) * config.num_layers * config.num_heads
        return tokens, sink_tokens * plain + (tokens - sink_tokens) * coded

    @property
    def _decoder_bytes_per_pixel(self) -> int:
        """Of the decoder's widest tensors at the image's own size."""
        vae = self.config.vae
        tensors = _DECODER_TENSORS[device_kind(self.device)]
        return vae.base_channels * max(vae.multipliers[:2]) * self.dtype_bytes * tensors

    def _layer_bytes(self, schedule: PruningSchedule, scale: int, rows: int, *, on_cpu: bool) -> int:
        way = "grouped" if on_cpu else "triton"
        sizes = {"rows": rows, "dtype_bytes": self.dtype_bytes}
        return forecast.transients(schedule, self.config, scale, **sizes, attention=way).total_bytes


def resolutions_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of all resolutions that a model makes, the smallest first."""
    return ("native",) if config.scales else tuple(RESOLUTIONS)


def capacity(
    setting: Setting,
    memory_bytes: int,
    *,
    resolutions: Sequence[str],
    budgets: Sequence[float],
    reserve_bytes: int = 0,
) -> Capacity:
    """The largest batch of every resolution and budget."""
    room = memory_bytes - reserve_bytes
    cells = (_cell(setting, resolution, budget, room) for resolution in resolutions for budget in budgets)
    return Capacity(
        setting.config.name,
        setting.device,
        setting.dtype,
        setting.rows_per_image,
        memory_bytes,
        reserve_bytes,
        tuple(cells),
        setting.policy,
    )


def capacity_text(found: Capacity) -> str:
    """The largest batches as a table, then what the largest resolution's take, then what is not counted."""
    rows = "1 row" if found.rows_per_image == 1 else f"{found.rows_per_image} rows"
    reserve = f", {bytes_text(found.reserve_bytes)} of it reserved" if found.reserve_bytes else ""
    return "\n".join(
        [
            f"{bytes_text(found.memory_bytes)}{reserve}",
            f"{found.model}, {found.dtype} on {found.device}, {rows} an image"
            + ("" if found.policy is None else f", policy {found.policy}"),
            "all numbers are predicted; nothing was run",
            "",
            "largest batch, in images, and the line that binds",
            *_table(_batches(found)),
            "",
            *_table(_uses(found)),
            f"cache: {'the whole budget' if found.policy is None else 'the peak of the plan'}; "
            "one layer, decoding: for a moment",
            "the total has the larger of cache + one layer and decoding",
            "not known, and not counted:",
            *(f"  {name}" for name in UNCOUNTED[device_kind(found.device)]),
        ]
    )


def _cell(setting: Setting, resolution: str, budget: float, room: int) -> Cell:
    def use(images: int) -> Use:
        return setting.use(resolution, budget, images)

    try:
        first = use(1)
    except BudgetError as error:
        return Cell(resolution, budget, None, f"needs {fraction_text(_rounded_up(error.minimum))}")
    if first.total_bytes > room:
        return Cell(resolution, budget, None, "weights" if first.weights_bytes > room else first.growing)
    images = _most(lambda count: use(count).total_bytes <= room)
    return Cell(resolution, budget, use(images), use(images + 1).growing)


def _rounded_up(fraction: float) -> float:
    """To what three digits of percent can say, as a smaller one would be refused."""
    digit = 10.0 ** (math.floor(math.log10(fraction)) - 2) if fraction > 0 else 1.0
    return math.ceil(fraction / digit - 1e-9) * digit


def _most(fits: Callable[[int], bool]) -> int:
    """The most images that fit, of at most _MOST_IMAGES; one does."""
    low, high = 1, 2
    while high < _MOST_IMAGES and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@lru_cache(maxsize=64)
def _planned(
    model: str, policy: str, codec: str, resolution: str, aspect: float, budget: float | None, orders: str | None
) -> Plan:
    # A model with scales of its own has one resolution, which has no name to ask for.
    name = None if model_config(model).scales else resolution
    job = Job("", model, policy, resolution=name, aspect=aspect, budget=budget, orders=orders, kv_codec=codec)
    return plan_job(job)


def _batches(found: Capacity) -> list[list[str]]:
    resolutions = list(dict.fromkeys(cell.resolution for cell in found.cells))
    by_place = {(cell.resolution, cell.budget): cell for cell in found.cells}
    rows = [["budget", *resolutions]]
    for budget in dict.fromkeys(cell.budget for cell in found.cells):
        cells = [by_place[resolution, budget] for resolution in resolutions]
        rows.append([fraction_text(budget), *(f"{cell.images:,} ({cell.binds})" for cell in cells)])
    return rows


def _uses(found: Capacity) -> list[list[str]]:
    last = found.cells[-1].resolution
    rows = [[f"{last}, budget", "images", "weights", "cache", "one layer", "decoding", "total", "left"]]
    room = found.memory_bytes - found.reserve_bytes
    for cell in found.cells:
        if cell.resolution != last or cell.use is None:
            continue
        use = cell.use
        parts = (use.weights_bytes, use.cache_bytes, use.layer_bytes, use.decode_bytes, use.total_bytes)
        texts = [bytes_text(part) for part in (*parts, room - use.total_bytes)]
        rows.append([fraction_text(cell.budget), f"{use.images:,}", *texts])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]
