"""THE trace format: every table, axis, column, unit and header key, and the version of it all.

Knows no HDF5 library: the writer makes files of these tables, the reader reads them, and `python -m kvscope.format
docs/trace-format.md` writes them into the documentation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from kvscope.job import MapKind
from kvscope.maps import (
    FLOOR_CODE,
    MAP_CODES,
    MAP_FLOOR,
    MAP_GRID,
    NOT_MEASURED_CODE,
    ONE_CODE,
    ZERO_CODE,
)

FORMAT = "kvscope.trace"
VERSION = (1, 3)
"""(major, minor). A reader takes its own major; a newer minor only adds what older readers ignore."""

LEVELS = ("info", "warning", "error")
"""Levels of the log; a row stores the index."""

TEXT_BYTES = 240
"""UTF-8 bytes of one text in a row; longer texts end in an ellipsis."""

NO_CODEC = 255
"""In place of the index of a codec: the plan has none."""

RECORDING_STOPPED = "recording stopped: "
"""How the message of a failed trace begins if its run went on: only the recording ended early."""


class Status(IntEnum):
    """How a run stands, as its last commit row says."""

    RUNNING = 0
    DONE = 1
    FAILED = 2
    CANCELLED = 3


class Reason(IntEnum):
    """Why a GPU value is unavailable; the value itself is then NaN."""

    MEASURED = 0
    LIBRARY_NOT_FOUND = 1
    DRIVER_NOT_LOADED = 2
    NO_PERMISSION = 3
    NOT_SUPPORTED = 4
    GPU_LOST = 5
    WRONG_MODULE = 6
    FUNCTION_NOT_FOUND = 7
    NOT_LISTED = 8
    NOT_SEPARATED = 9
    NO_SUCH_GPU = 10
    NO_MODULE = 11
    OTHER = 12

    @property
    def text(self) -> str:
        return _REASON_TEXTS[self]


_REASON_TEXTS = {
    Reason.MEASURED: "measured",
    Reason.LIBRARY_NOT_FOUND: "no NVIDIA driver on this machine: library not found",
    Reason.DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    Reason.NO_PERMISSION: "no permission to read this value",
    Reason.NOT_SUPPORTED: "this GPU or driver does not report it",
    Reason.GPU_LOST: "the GPU was lost",
    Reason.WRONG_MODULE: "another module named pynvml hides nvidia-ml-py",
    Reason.FUNCTION_NOT_FOUND: "the driver is too old to report it",
    Reason.NOT_LISTED: "the driver does not list this process",
    Reason.NOT_SEPARATED: "the driver counts it within used_bytes",
    Reason.NO_SUCH_GPU: "no such GPU",
    Reason.NO_MODULE: "the Python package nvidia-ml-py is not installed",
    Reason.OTHER: "NVML failed",
}

GPU_FIELDS = (
    ("used_bytes", "bytes", "Memory in use on the whole GPU"),
    ("reserved_bytes", "bytes", "Memory the driver keeps for itself"),
    ("total_bytes", "bytes", "Memory of the GPU"),
    ("process_bytes", "bytes", "Memory of this process as the driver counts it"),
    ("util_pct", "percent", "Share of the driver's last window in which a kernel ran"),
    ("power_w", "W", "Power drawn"),
    ("temperature_c", "degC", "Core temperature"),
    ("clock_mhz", "MHz", "Clock of the multiprocessors"),
)
"""What a GPU sample measures: (column, unit, meaning). Each has a sibling column `<name>_reason`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis: a dimension scale at the root of the file."""

    name: str
    meaning: str
    grows: bool = False
    """Lengthened as the run goes on. `query_scale` carries its indices; other growing axes carry no values."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a row table."""

    name: str
    dtype: str
    unit: str
    meaning: str

    @property
    def field(self) -> tuple[str, str] | tuple[str, str, tuple[int]]:
        # netCDF-C crashes on a fixed string inside a compound; an array of characters is what it writes itself.
        return (self.name, "S1", (TEXT_BYTES,)) if self.dtype == "text" else (self.name, self.dtype)


@dataclass(frozen=True, slots=True)
class Table:
    """One dataset: an array (`dtype`) or rows (`columns`)."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    unit: str = ""
    dtype: str = ""
    columns: tuple[Column, ...] = ()
    chunk: tuple[int, ...] = ()
    """Shape of a chunk; 0: the whole axis."""
    fill: float = 0
    compressed: bool = False
    """Only where one append is whole chunks: a partly filled compressed chunk is rewritten at every flush."""
    late: bool = False
    """gzip waits until the run has ended; faster filters do not."""
    fixed: bool = False
    """Written once, before the run's first step."""
    attributes: tuple[tuple[str, str | float], ...] = ()
    """What else the dataset says of itself, beside `long_name` and `units`."""
    since_minor: int = 0
    """Traces of an older minor version have no such table."""

    @property
    def row_dtype(self) -> np.dtype[np.void]:
        return np.dtype([column.field for column in self.columns])

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        return self.row_dtype if self.columns else np.dtype(self.dtype)

    @property
    def count_name(self) -> str:
        """The commit column that says how far this table may be read along its first growing axis."""
        return "scales_done" if self.axes[0] == "query_scale" else f"{self.name}_rows"


@dataclass(frozen=True, slots=True)
class HeaderKey:
    """One attribute of the root group. `text` ones are UTF-8; an absent key means none."""

    name: str
    kind: str
    meaning: str
    optional: bool = False


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("query_scale", "The scale that attends", grows=True),
        Axis("layer", "Transformer layer"),
        Axis("head", "Attention head"),
        Axis("source_scale", "The scale that is attended to"),
        Axis("map_y", "Row of cells of a token grid, from the top"),
        Axis("map_x", "Column of cells of a token grid, from the left"),
        Axis("batch", "Image of the batch", grows=True),
        Axis("token", "Token of the whole sequence, scale after scale", grows=True),
        Axis("bit", "Bit of a token"),
        Axis("preview_y", "Row of pixels, from the top", grows=True),
        Axis("preview_x", "Column of pixels, from the left", grows=True),
        Axis("image_y", "Row of pixels, from the top", grows=True),
        Axis("image_x", "Column of pixels, from the left", grows=True),
        Axis("rgb", "Red, green, blue"),
        Axis("steps_row", "Row of steps", grows=True),
        Axis("gpu_row", "Row of gpu", grows=True),
        Axis("allocator_row", "Row of allocator", grows=True),
        Axis("log_row", "Row of log", grows=True),
        Axis("cost_row", "Row of cost", grows=True),
        Axis("commit_row", "Row of commit", grows=True),
    )
}

_HEAD_SCALES = ("query_scale", "layer", "head", "source_scale")
_T_NS = Column("t_ns", "i8", "ns", "When, on the monotonic clock")

_STEPS = (
    Column("query_scale", "i2", "1", "Scale that attended"),
    Column("layer", "i2", "1", "Layer"),
    Column("begin_ns", "i8", "ns", "Start, on the monotonic clock; on a GPU the host's clock at launch"),
    Column("end_ns", "i8", "ns", "End, on the same clock"),
    Column("device_ns", "f8", "ns", "Time on the device; NaN: not measured"),
    Column(
        "accounted_bytes", "i8", "bytes", "What the budget counts: kept tokens of all layers and heads × bytes each"
    ),
    Column(
        "storage_bytes",
        "i8",
        "bytes",
        "What the run allocated for the cache: its pool, which does not change during a run, and the index into it",
    ),
    Column("evicted_tokens", "i8", "tokens", "Freed by this step, over all layers and heads"),
)

_SCALE_SUMMARY = (
    Column("begin_ns", "i8", "ns", "Start of its first step"),
    Column("end_ns", "i8", "ns", "End of its last step"),
    Column("layer_ns", "i8", "ns", "Time within its steps"),
    Column("accounted_peak_bytes", "i8", "bytes", "Most accounted_bytes of its steps"),
    Column("storage_peak_bytes", "i8", "bytes", "Most storage_bytes of its steps"),
    Column("evicted_tokens", "i8", "tokens", "Freed by its steps, over all layers and heads"),
    Column("kept_tokens", "i8", "tokens", "Sum of its kept_tokens: each layer's after its own step"),
    Column("read_tokens", "i8", "tokens", "Sum of its read_tokens"),
)

_GPU = (
    _T_NS,
    Column("sample_ns", "i8", "ns", "How long the sample took"),
    Column("memory_version", "u1", "1", "2: used_bytes excludes reserved_bytes; 1: it includes them; 0: not measured"),
    *(
        column
        for name, unit, meaning in GPU_FIELDS
        for column in (
            Column(name, "f8", unit, meaning),
            Column(f"{name}_reason", "u1", "1", f"0: {name} is measured; else the reason it is NaN"),
        )
    ),
)

_ALLOCATOR = (
    _T_NS,
    Column("allocated_bytes", "f8", "bytes", "Held by tensors, as torch's CUDA allocator counts; NaN without CUDA"),
    Column("reserved_bytes", "f8", "bytes", "Held by that allocator; NaN without CUDA"),
    Column("peak_bytes", "f8", "bytes", "Most allocated_bytes so far; NaN without CUDA"),
    Column("process_rss_bytes", "f8", "bytes", "Resident memory of the process in the host's RAM; NaN: not measured"),
)

_LOG = (
    _T_NS,
    Column("level", "u1", "1", ", ".join(f"{code}: {level}" for code, level in enumerate(LEVELS))),
    Column("text", "text", "1", "UTF-8, padded with zeros"),
)

_COST = (
    _T_NS,
    Column("scales_done", "u2", "1", "Scales finished by then"),
    Column("run_ns", "i8", "ns", "Time the recorder took from the run since the last row, previews included"),
    Column("preview_ns", "i8", "ns", "Of which decoding previews"),
    Column("writer_ns", "i8", "ns", "Time the writer thread worked since the last row"),
    Column("file_bytes", "i8", "bytes", "Length of this file by then, with the room reserved for what comes next"),
    Column("dropped_rows", "i8", "1", "GPU samples lost since the last row; nothing else is ever dropped"),
)

_REVISIONS = (
    Column("is_revised", "u1", "1", "1: before this scale the run was given another plan; 0: it goes on as before"),
    Column("sink_scales", "i2", "1", "The first scales, which that plan never evicts"),
    Column("budget", "f8", "1", "Of that plan, if the whole run keeps to it; NaN: none"),
    Column("policy", "text", "1", "Of that plan; UTF-8, padded with zeros"),
    Column("asked_sha256", "text", "1", "Content hash of the schedule that was asked for; UTF-8, padded with zeros"),
)

ARRAYS = (
    Table("scale_height", ("source_scale",), "Height of the token grid", "tokens", "i4", chunk=(0,), fixed=True),
    Table("scale_width", ("source_scale",), "Width of the token grid", "tokens", "i4", chunk=(0,), fixed=True),
    Table("drop_step", _HEAD_SCALES[1:], "The plan at the run's start: the step (query_scale × num_layers + layer) "
          "right after which a head-scale is freed; the last step: kept to the end. Where the header's schedule has "
          "layer_tokens an online policy chose single tokens, and this is only the longest they can be there",
          "step", "i2", chunk=(0, 0, 0), fixed=True),
    Table("revised_drop_step", _HEAD_SCALES, "The plan in force from this scale on where revisions.is_revised is 1, of "
          "the whole run: what it let go of at once has the step before the scale; -1: not revised here", "step", "i2",
          chunk=(1, 0, 0, 0), fill=-1, since_minor=2),
    Table("revised_codec", _HEAD_SCALES, "That plan's codec of each head-scale: an index of the codecs in the header's "
          "schedule; 255: it has none, or was not revised here", "1", "u1", chunk=(1, 0, 0, 0), fill=NO_CODEC,
          since_minor=3),
    Table("kept_tokens", _HEAD_SCALES, "Tokens that the layer holds after its step's write and eviction; in the "
          "first row, as many in others",
          "tokens", "u2", chunk=(1, 0, 0, 0), compressed=True, late=True),
    Table("read_tokens", _HEAD_SCALES, "Tokens that attention at the step could read, the current scale included",
          "tokens", "u2", chunk=(1, 0, 0, 0), compressed=True, late=True),
    Table("attention_mass", _HEAD_SCALES, "Attention that the source scale receives: mean over queries and conditional "
          "rows; NaN: not measured, or not visible", "1", "f4", chunk=(1, 0, 0, 0), fill=float("nan"), compressed=True,
          late=True),
    Table("attention_mass_uncond", _HEAD_SCALES, "The same of the unconditional rows", "1", "f4",
          chunk=(1, 0, 0, 0), fill=float("nan"), compressed=True,
          late=True),
    Table("attention_map", (*_HEAD_SCALES, "map_y", "map_x"), "Attention that the cell of tokens receives: mean over "
          "queries and conditional rows; in codes, or as f4 with NaN", "1", "u1", chunk=(1, 1, 0, 0, 0, 0),
          fill=NOT_MEASURED_CODE, compressed=True, late=True, attributes=(("grid", MAP_GRID), ("codes", MAP_CODES),
          ("code_floor", MAP_FLOOR), ("not_measured_code", NOT_MEASURED_CODE), ("zero_code", ZERO_CODE),
          ("floor_code", FLOOR_CODE), ("one_code", ONE_CODE))),
    Table("forced_kl", ("query_scale",), "Of a forced run: mean over tokens and bits of KL(parent || this run), at the "
          "parent's bits; NaN: not measured", "nat", "f4", chunk=(16,), fill=float("nan"), since_minor=1),
    Table("forced_flips", ("query_scale",), "Of a forced run: share of the bits whose likelier value is not the "
          "parent's; NaN: not measured", "1", "f4", chunk=(16,), fill=float("nan"), since_minor=1),
    Table("attention_error", _HEAD_SCALES[:3], "Of a forced run: |output - the parent's| / |the parent's| of the "
          "head's attention, at the parent's inputs; NaN: not measured", "1", "f4", chunk=(1, 0, 0), fill=float("nan"),
          since_minor=1),
    Table("bits", ("batch", "token", "bit"), "Sampled bits, all scales one after another", "1", "u1",
          chunk=(1, 1024, 0)),
    Table("preview", ("query_scale", "preview_y", "preview_x", "rgb"), "Picture decoded after the scale "
          "(first image of the batch); empty: none was made", "1", "u1", chunk=(1, 256, 256, 0), compressed=True),
    Table("image", ("image_y", "image_x", "rgb"), "The final picture (first image of the batch)", "1", "u1",
          chunk=(256, 256, 0), compressed=True),
)  # fmt: skip
"""Tables that are arrays with named axes."""

ROWS = (
    Table("scale_summary", ("query_scale",), "One row per finished scale: what its steps and tokens add up to, so that "
          "a first look needs nothing else", columns=_SCALE_SUMMARY, chunk=(16,)),
    Table("revisions", ("query_scale",), "Where the plan changed during the run: one row per finished scale",
          columns=_REVISIONS, chunk=(16,), since_minor=2),
    Table("steps", ("steps_row",), "One row per step: a layer of a scale", columns=_STEPS, chunk=(256,)),
    Table("gpu", ("gpu_row",), "NVML samples of one GPU", columns=_GPU, chunk=(128,)),
    Table("allocator", ("allocator_row",), "Memory of the run's process, at its start and after every scale",
          columns=_ALLOCATOR, chunk=(64,)),
    Table("log", ("log_row",), "What the run said", columns=_LOG, chunk=(32,)),
    Table("cost", ("cost_row",), "What recording itself cost", columns=_COST, chunk=(64,)),
)  # fmt: skip
"""Tables of rows; each column's unit is in the `units` attribute."""

COUNTED = tuple(table.name for table in (*ROWS, *ARRAYS) if table.count_name != "scales_done" and not table.fixed)
"""Tables with a row count of their own in `commit`: rows, tokens of `bits`, lines of pixels of `image`."""

COMMIT = Table(
    "commit",
    ("commit_row",),
    "The truth about all other tables: appended last, read first; nothing past the last row's counts is valid",
    columns=(
        Column("epoch", "u4", "1", "Number of this commit"),
        _T_NS,
        Column("status", "u1", "1", ", ".join(f"{status.value}: {status.name.lower()}" for status in Status)),
        Column("scales_done", "u2", "1", "Valid length of every table along query_scale"),
        Column("previews", "u1", "1", "1: preview has a picture for each of those scales; 0: it has none"),
        *(Column(f"{name}_rows", "u4", "1", f"Valid length of {name}") for name in COUNTED),
        Column(
            "message",
            "text",
            "1",
            "Why the run failed or was cancelled, or its recording stopped; UTF-8, padded with zeros",
        ),
    ),
    chunk=(32,),
)

TABLES: dict[str, Table] = {table.name: table for table in (*ARRAYS, *ROWS, COMMIT)}
"""Every table of a trace by name."""


def map_table(kind: MapKind) -> Table:
    """`attention_map` as a job wants it stored."""
    coded = TABLES["attention_map"]
    if kind == "uint8":
        return coded
    return replace(coded, dtype="f4", fill=float("nan"), attributes=(("grid", MAP_GRID),))


HEADER = (
    HeaderKey("format", "text", f"`{FORMAT}`"),
    HeaderKey("format_version", "text", "major.minor of this format"),
    HeaderKey("Conventions", "text", "CF conventions that names and units follow"),
    HeaderKey("schema", "text", "This description, so that the file explains itself"),
    HeaderKey("run_id", "text", "Unique name of the run"),
    HeaderKey("parent_run_id", "text", "Run that this one repeats with changes", optional=True),
    HeaderKey("created_ns", "integer", "Wall clock at the start: ns since 1970 (UTC)"),
    HeaderKey("created_monotonic_ns", "integer", "The monotonic clock of all t_ns and *_ns columns at that moment"),
    HeaderKey("pid", "integer", "Process that recorded"),
    HeaderKey("liveness", "text", "`lock`: a lock on this file tells whether that process lives; `heartbeat`: the "
              "age of the last commit does"),
    HeaderKey("filter", "text", "HDF5 filter of compressed tables: `gzip`, `none` or one that needs a plugin, as "
              "`bitshuffle-lz4`", optional=True),
    HeaderKey("finalised", "integer", "1: written anew when the run had ended, with larger chunks and compressed; "
              "nothing is added but a row of `cost`", optional=True),
    HeaderKey("control_socket", "text", "Unix socket to steer the run by", optional=True),
    HeaderKey("job", "text", "JSON: everything needed to repeat the run"),
    HeaderKey("model", "text", "Name of the model"),
    HeaderKey("scales", "text", "JSON: token grids, resolution and aspect"),
    HeaderKey("schedule", "text", "JSON: the plan at the run's start; its drop_step is the table of that name"),
    HeaderKey("num_layers", "integer", "Layers"),
    HeaderKey("num_heads", "integer", "Heads per layer"),
    HeaderKey("head_dim", "integer", "Numbers per key, and per value"),
    HeaderKey("rows", "integer", "Batch rows that hold K and V: images, times two with guidance"),
    HeaderKey("dtype", "text", "Type of K and V"),
    HeaderKey("dtype_bytes", "integer", "Bytes of one number of that type"),
    HeaderKey("bits_per_token", "integer", "Bits per token"),
    HeaderKey("device", "text", "Where the model ran"),
    HeaderKey("versions", "text", "JSON: software that made the trace"),
    HeaderKey("attention", "text", "How self attention was computed, and why so", optional=True),
    HeaderKey("capacity_tokens", "integer", "Head-tokens that the cache has room for", optional=True),
    HeaderKey("pools", "text", "JSON: for each codec that the plan stores tokens in, `codec`, `bytes_per_token` (K and "
              "V of one head, all rows) and `capacity_tokens`; absent: all are in `dtype`", optional=True),
    HeaderKey("tiers", "text", "What is recorded of attention: `occupancy` (kept and read tokens, always), `mass`, "
              "`mass_uncond`, `maps`", optional=True),
    HeaderKey("perturbed", "integer", "1: recording changed the run's memory or speed"),
    HeaderKey("perturbed_by", "text", "What of the recording did, and what it changed", optional=True),
    HeaderKey("gpu_name", "text", "The GPU sampled", optional=True),
    HeaderKey("gpu_unavailable", "text", "Why `gpu` has no samples", optional=True),
)  # fmt: skip
"""Attributes of the root group."""


VARYING_KEYS = ("run_id", "created_ns", "created_monotonic_ns", "pid", "control_socket")
"""Header keys that may differ between two traces of one job, made by one machine and software."""

VARYING_COLUMNS = {
    "steps": ("begin_ns", "end_ns", "device_ns"),
    "scale_summary": ("begin_ns", "end_ns", "layer_ns"),
    "allocator": tuple(column.name for column in _ALLOCATOR),
    "log": ("t_ns", "text"),
    "gpu": tuple(column.name for column in _GPU),
    "cost": tuple(column.name for column in _COST),
    "commit": ("epoch", "t_ns", "gpu_rows", "cost_rows"),
}
"""Columns that may: clocks, what is measured of the machine, and texts that tell of it."""

VARYING_LENGTHS = ("gpu", "cost", "commit")
"""Tables that may be of another length: there is a row for every sample, or every second."""


def encode_text(text: str, *, limit: int = TEXT_BYTES) -> bytes:
    """UTF-8 of at most `limit` bytes; a longer text is cut between characters and ends in an ellipsis."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return encoded
    ellipsis = "…".encode()
    return encoded[: limit - len(ellipsis)].decode(errors="ignore").encode() + ellipsis


def text_field(text: str) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """A text as a row's column stores it: S1 [TEXT_BYTES], padded with zeros."""
    return np.frombuffer(encode_text(text).ljust(TEXT_BYTES, b"\0"), "S1")


def decode_text(characters: np.ndarray[tuple[int], np.dtype[np.bytes_]]) -> str:
    """The text of such a column."""
    return characters.tobytes().rstrip(b"\0").decode(errors="replace")


if __name__ == "__main__":
    # Deferred: these words are made of the tables above.
    from kvscope.schema import main

    sys.exit(main(sys.argv[1:]))
