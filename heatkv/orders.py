"""HeadOrders: for each source scale, the heads ranked from least to most needed, and the official order files.

Knows nothing of how the ranks were measured. numpy only. A file that does not fit is told apart by its likely
cause: another model's, numbers exchanged, cut short, edited, not JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.config import MODELS
from heatkv.errors import OrdersError
from heatkv.files import read_json, write_new

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.config import ModelConfig

OFFICIAL_SINK_SCALES = 3
"""Sink scales of the published order files, which carry no metadata that would say so."""

_EXPECTED_ORDERS = (
    "an orders file (one list per source scale of [head, layer] pairs, least needed first) or a calibration (.h5)"
)


@dataclass(frozen=True, slots=True, eq=False)
class HeadOrders:
    """For each source scale, all heads of all layers ranked from least to most needed.

    `content_hash`, which plans record as `orders_sha256`, is of the ranks, not of a file's bytes: the same orders in
    another layout, or with other metadata, have the same hash.
    """

    slots: NDArray[np.int32]
    """[ranked source, rank]; slot = layer * num_heads + head. Each row holds every slot once. Read-only."""
    first_source: int
    """Source scale of the first row: the number of sink scales that the orders were made for."""
    num_layers: int
    num_heads: int
    source: str = "memory"
    """Where they came from, such as a file name."""
    metadata: dict[str, Any] = field(default_factory=dict)  # Any: JSON values
    """What their maker recorded; empty for the published files."""

    def __post_init__(self) -> None:
        slots = np.array(self.slots, dtype=np.int32)
        num_slots = self.num_layers * self.num_heads
        if slots.ndim != 2 or slots.shape[1] != num_slots:
            raise OrdersError(f"orders have shape {list(slots.shape)}; expected [source scales, {num_slots}]")
        if (np.sort(slots, axis=1) != np.arange(num_slots)).any():
            raise OrdersError("an order does not hold every head of every layer exactly once")
        slots.flags.writeable = False
        object.__setattr__(self, "slots", slots)

    @property
    def sources(self) -> range:
        """The source scales that are ranked."""
        return range(self.first_source, self.first_source + len(self.slots))

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the JSON text [first_source, num_layers, num_heads], then `slots` as little-endian int32."""
        head = [self.first_source, self.num_layers, self.num_heads]
        return hashlib.sha256(json.dumps(head).encode() + self.slots.astype("<i4").tobytes()).hexdigest()

    def for_source(self, source_scale: int) -> NDArray[np.int32]:
        """Slots by rank for one source scale: [num_layers * num_heads]. Raises OrdersError if it is not ranked."""
        self.require(range(source_scale, source_scale + 1))
        row: NDArray[np.int32] = self.slots[source_scale - self.first_source]
        return row

    def require(self, sources: range) -> None:
        """Raises OrdersError, with the way out, unless all these source scales are ranked."""
        missing = [str(source) for source in sources if source not in self.sources]
        if not missing:
            return
        ranked = f"{self.source}: ranks source scales {self.sources.start} to {self.sources.stop - 1}"
        way_out = "calibrate again with as many scales as the run"
        if sources.start < self.first_source:
            way_out = f"calibrate again with {sources.start} sink scales"
            if sources.stop <= self.sources.stop:
                way_out += f", or use --sink-scales {self.first_source}"
        raise OrdersError(f"{ranked}, the run needs {', '.join(missing)} too; {way_out}")

    def check_model(self, config: ModelConfig) -> None:
        """Raises OrdersError unless the orders were made for a model of this shape."""
        if (self.num_layers, self.num_heads) != (config.num_layers, config.num_heads):
            raise OrdersError(f"{self.source}: {_other_model(self.num_layers, self.num_heads, config)}")

    @classmethod
    def load(cls, path: Path | str, *, config: ModelConfig, first_source: int | None = None) -> HeadOrders:
        """Read an official orders file: bare lists as published, or with metadata as calibration writes it.

        `first_source` is that of the first list; None: what the metadata says, or 3 as for all published
        orders. Raises OrdersError naming the path, what is wrong and its likely cause.
        """
        path = Path(path)
        record = read_json(path, expected=_EXPECTED_ORDERS, error=OrdersError)
        try:
            orders, metadata = _unwrap(record)
            _check_metadata(metadata, config)
            if first_source is None:
                first_source = metadata.get("sink_scales", OFFICIAL_SINK_SCALES)
            slots = _read_slots(orders, config, first_source)
        except OrdersError as error:
            raise OrdersError(f"{path}: {error}") from None
        return cls(slots, first_source, config.num_layers, config.num_heads, path.name, metadata)

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the official file with metadata. Raises OutputError if it exists, unless `overwrite`."""
        record = {"metadata": self.metadata | self.shape_metadata(), "orders": self.to_lists()}
        return write_new(Path(path), json.dumps(record).encode() + b"\n", overwrite=overwrite)

    def to_lists(self) -> list[list[list[int]]]:
        """The official form: per ranked source scale, [head, layer] pairs, least needed first."""
        heads, layers = self.slots % self.num_heads, self.slots // self.num_heads
        lists: list[list[list[int]]] = np.stack([heads, layers], axis=-1).tolist()
        return lists

    def shape_metadata(self) -> dict[str, Any]:  # Any: JSON values
        """What the official files record of the shape."""
        return {
            "sink_scales": self.first_source,
            "eligible_source_scales": list(self.sources),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "order_format": "[head, layer], least needed first",
        }


def _unwrap(record: Any) -> tuple[list[Any], dict[str, Any]]:  # Any: whatever a file held
    metadata: dict[str, Any] = {}
    if isinstance(record, dict):
        orders, found = record.get("orders"), record.get("metadata")
        metadata = found if isinstance(found, dict) else {}
    else:
        orders = record
    if not isinstance(orders, list) or not orders:
        raise OrdersError(f"holds no list of orders; expected {_EXPECTED_ORDERS}")
    return orders, metadata


def _check_metadata(metadata: dict[str, Any], config: ModelConfig) -> None:
    sinks = metadata.get("sink_scales", OFFICIAL_SINK_SCALES)
    if type(sinks) is not int or sinks < 0:
        raise OrdersError(f"metadata says sink_scales {sinks!r}; expected a whole number, 0 or more")
    shape = metadata.get("num_layers", config.num_layers), metadata.get("num_heads", config.num_heads)
    if shape != (config.num_layers, config.num_heads):
        raise OrdersError(_other_model(*shape, config))


def _read_slots(orders: list[Any], config: ModelConfig, first_source: int) -> NDArray[np.int32]:
    pairs = [_pairs(entries, first_source + index) for index, entries in enumerate(orders)]
    _check_counts(pairs, config, first_source)
    head_layer = np.stack(pairs)
    _check_ranges(head_layer, config, first_source)
    slots = (head_layer[..., 1] * config.num_heads + head_layer[..., 0]).astype(np.int32)
    _check_duplicates(slots, config, first_source)
    return slots


def _pairs(entries: Any, source_scale: int) -> NDArray[np.int64]:  # Any: whatever a file held
    try:
        pairs = np.array(entries)
    except ValueError:
        pairs = np.array(None)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i":
        raise OrdersError(f"the list for source scale {source_scale} is malformed; expected {_EXPECTED_ORDERS}")
    return pairs.astype(np.int64)


def _check_counts(pairs: list[NDArray[np.int64]], config: ModelConfig, first_source: int) -> None:
    num_slots = config.num_layers * config.num_heads
    wrong = [index for index, one in enumerate(pairs) if len(one) != num_slots]
    if not wrong:
        return
    num_heads, num_layers = (int(value) + 1 for value in np.concatenate(pairs).max(axis=0))
    if num_heads * num_layers == len(pairs[0]) and len(wrong) == len(pairs):
        raise OrdersError(_other_model(num_layers, num_heads, config))
    found = f"the list for source scale {first_source + wrong[0]} has {len(pairs[wrong[0]])} entries"
    expected = f"{num_slots} ({config.name}: {config.num_layers} layers × {config.num_heads} heads)"
    raise OrdersError(f"{found}, expected {expected}; the file was cut short or edited, get it again")


def _check_ranges(head_layer: NDArray[np.int64], config: ModelConfig, first_source: int) -> None:
    limits = np.array([config.num_heads, config.num_layers])
    outside = ((head_layer < 0) | (head_layer >= limits)).any(axis=-1)
    if not outside.any():
        return
    if (head_layer >= 0).all() and (head_layer < limits[::-1]).all():
        raise OrdersError("entries are [layer, head], expected [head, layer]; swap the two numbers of every entry")
    index, rank = (int(found[0]) for found in np.nonzero(outside))
    place = f"entry {rank} for source scale {first_source + index} is {head_layer[index, rank].tolist()}"
    expected = f"[head below {config.num_heads}, layer below {config.num_layers}] for {config.name}"
    raise OrdersError(f"{place}, expected {expected}; the orders are for another model, or damaged")


def _check_duplicates(slots: NDArray[np.int32], config: ModelConfig, first_source: int) -> None:
    for index, row in enumerate(slots):
        times = np.bincount(row, minlength=config.num_layers * config.num_heads)
        if (times > 1).any():
            twice, absent = (divmod(int(slot), config.num_heads) for slot in (times.argmax(), times.argmin()))
            raise OrdersError(
                f"the list for source scale {first_source + index} has layer {twice[0]} head {twice[1]} "
                f"{times.max()} times and layer {absent[0]} head {absent[1]} not at all; "
                "expected each once; the file was edited, get it again"
            )


def _other_model(num_layers: Any, num_heads: Any, config: ModelConfig) -> str:  # Any: metadata may hold anything
    known = [model.name for model in MODELS.values() if (model.num_layers, model.num_heads) == (num_layers, num_heads)]
    made_for = f"{num_layers!r:.20} layers, {num_heads!r:.20} heads"
    made_for = f"{known[0]} ({made_for})" if known else made_for
    expected = f"{config.name} ({config.num_layers} layers, {config.num_heads} heads)"
    return f"the orders are for {made_for}, the run is {expected}; give the orders of this model"
