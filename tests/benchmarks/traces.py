"""Traces for the benchmarks: of any shape, made without a model, as a recorder leaves them when the run has ended."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heatkv.config import model_config
from heatkv.probe import RunStart
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from kvscope import rows
from kvscope.finalise import NotFinalisedError, final_image, replace_content
from kvscope.format import TABLES, Status, map_table
from kvscope.header import header_of
from kvscope.job import Job, MapKind
from kvscope.maps import MAP_CELLS
from kvscope.writer import TraceWriter
from tests.benchmarks.workload import SEED

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 32
_HEAD_DIM, _ROWS, _DTYPE_BYTES = 128, 2, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a made-up run is."""

    layers: int
    heads: int
    scales: int
    maps: MapKind | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    """Grids of the scales; empty: 1x1, 2x2 and so on."""

    @classmethod
    def of_model(cls, name: str, maps: MapKind | None = None, *, side: int | None = None) -> Shape:
        """The model's own largest grids, or those up to `side`."""
        config = model_config(name)
        sizes = tuple(size for size in config.schedule_for().sizes if side is None or size[0] <= side)
        return cls(config.num_layers, config.num_heads, len(sizes), maps, sizes)

    @property
    def schedule(self) -> PruningSchedule:
        """Everything is kept."""
        scales = ScaleSchedule.custom(self.sizes or tuple((scale + 1,) * 2 for scale in range(self.scales)))
        drop_step = np.full((self.layers, self.heads, self.scales), self.layers * self.scales - 1)
        drop_step[:, :, -1] = (self.scales - 1) * self.layers + np.arange(self.layers)[:, None]
        return PruningSchedule(drop_step, "made-up", scales, 1, "full")

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of one query scale."""
        return (self.layers, self.heads, self.scales, MAP_CELLS, MAP_CELLS)


def start_of(shape: Shape) -> RunStart:
    """What a run of this shape tells first."""
    schedule = shape.schedule
    return RunStart(
        model="made-up",
        scales=schedule.scales,
        num_layers=shape.layers,
        num_heads=shape.heads,
        head_dim=_HEAD_DIM,
        bits_per_token=BITS,
        rows=_ROWS,
        dtype="bfloat16",
        dtype_bytes=_DTYPE_BYTES,
        device="cpu",
        attention="none",
        capacity_tokens=schedule.peak_tokens,
        schedule=schedule,
    )


def new_writer(path: Path, shape: Shape, *, filter_name: str = "gzip") -> TraceWriter:
    """A trace with nothing in it yet."""
    start = start_of(shape)
    job = Job("made up", "made-up", "full", attention_mass=True, attention_map=shape.maps)
    known = {"run_id": "made-up", "versions": json.dumps(rows.versions()), "filter": filter_name}
    header = header_of(job, start, known, has_previews=False)
    lengths = {"layer": shape.layers, "head": shape.heads, "source_scale": shape.scales}
    lengths |= {"map_y": MAP_CELLS, "map_x": MAP_CELLS, "bit": BITS, "rgb": 3}
    sizes = np.array(start.scales.sizes)
    fixed = {"scale_height": sizes[:, 0], "scale_width": sizes[:, 1], "drop_step": start.schedule.drop_step}
    variants = [map_table(shape.maps)] if shape.maps else []
    return TraceWriter.create(path, header, lengths, fixed, variants=variants, filter_name=filter_name)


def arrays_of(shape: Shape) -> list[dict[str, NDArray[Any]]]:
    """What a recorder appends at each query scale; maps are noise that no filter makes smaller."""
    random, schedule = np.random.default_rng(SEED), shape.schedule
    kept, read = schedule.kept_tokens(), schedule.read_tokens()
    noise = random.random(shape.map_shape, dtype=np.float32) if shape.maps == "float32" else None
    if shape.maps == "uint8":
        noise = random.integers(1, 256, shape.map_shape, dtype=np.uint8)
    arrays: list[dict[str, NDArray[Any]]] = []
    for scale in range(shape.scales):
        mass = random.random(kept.shape[1:], dtype=np.float32)
        of_scale = {"kept_tokens": kept[scale], "read_tokens": read[scale], "attention_mass": mass}
        of_scale["scale_summary"] = rows.summary_row(step_rows(shape, scale), kept[scale], read[scale])
        arrays.append(of_scale if noise is None else of_scale | {"attention_map": noise})
    return arrays


def step_rows(shape: Shape, scale: int) -> NDArray[np.void]:
    """Rows of `steps` of one query scale."""
    steps = np.zeros(shape.layers, TABLES["steps"].row_dtype)
    steps["query_scale"], steps["layer"] = scale, np.arange(shape.layers)
    steps["begin_ns"] = steps["end_ns"] = time.monotonic_ns()
    return steps


def write_trace(path: Path, shape: Shape) -> None:
    """A finished trace, finalised if a recorder would have."""
    writer = new_writer(path, shape)
    for scale, arrays in enumerate(arrays_of(shape)):
        writer.append_rows("steps", step_rows(shape, scale))
        writer.append_scale(arrays)
        writer.append_bits(np.zeros((1, shape.schedule.scales.tokens[scale], BITS), np.uint8))
        writer.append_rows("cost", np.zeros(1, TABLES["cost"].row_dtype))
        writer.commit(Status.RUNNING)
    writer.commit(Status.DONE)
    writer.close()
    made = path.stat()
    try:
        replace_content(path, final_image(path, made), made)
    except NotFinalisedError:
        return
