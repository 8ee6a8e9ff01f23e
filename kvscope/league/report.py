"""The league in text: a table of standings, a CSV of rows, one JSON object, and the command that repeats a row."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from heatkv.codecs import MODEL
from kvscope.export.values import harmless
from kvscope.league.settings import FULL, entrant_parts
from kvscope.league.table import MEASURES, NUMBERS
from kvscope.units import bytes_text, fraction_text, printable, seconds_text

if TYPE_CHECKING:
    from kvscope.export.values import Cell
    from kvscope.league.entrants import Entrant
    from kvscope.league.settings import Settings
    from kvscope.league.standings import Mean, Standing
    from kvscope.league.table import League, Row

THREADS = 1
"""Of each worker, and so of the command that repeats a row: sums are made in the order that threads make them in."""


def command(settings: Settings, entrant: Entrant, prompt: int, seed: int) -> str:
    """The `kvscope run` that makes one row's free run again: the same bits, the same bytes."""
    policy, sinks, codec = entrant_parts(entrant.policy)
    words = ["kvscope", "run", *_model_words(settings), "--policy", policy]
    if codec != MODEL:
        words += ["--kv-codec", codec]
    if sinks is not None:
        words += ["--sink-scales", str(sinks)]
    if entrant.budget is not None:
        words += ["--budget", repr(entrant.budget)]
    if entrant.policy != FULL:
        words += _given("--orders", settings.orders)
    words += ["--prompt", settings.prompts[prompt], "--seed", str(seed)]
    return shlex.join([*words, "--threads", str(THREADS), "--no-attention-mass"])


def league_text(league: League, table: list[Standing], *, against: str | None) -> str:
    """Who stands where at each target, with what a budget is a fraction of."""
    settings = league.settings
    names = [name for name in MEASURES if any(name in one.means for one in table)]
    titles = ["target", "policy", "peak", "stored", "time", *(MEASURES[name].title for name in names), ""]
    if against is not None:
        titles[-1:] = [f"KL − {against}", ""]
    rows = [titles, *(_cells(settings, one, names, against) for one in table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*_heading(league), "", *lines, "", *_notes(names)])


def league_json(league: League, table: list[Standing], *, against: str | None) -> dict[str, Any]:  # Any: JSON
    """Settings, how far it is, and every standing."""
    return {
        "settings": league.settings.to_json(),
        "history_bytes": league.settings.history_bytes,
        "rows": len(league.rows),
        "rows_wanted": league.num_wanted,
        "against": against,
        "standings": [one.to_json() for one in table],
    }


def rows_csv(league: League) -> str:
    """Every row, with units in brackets, and the command that repeats it; an empty cell was not measured.

    Then a row for each entrant that cannot run, with the least budget that it could.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scales = range(league.settings.scales.num_scales)
    numbers = [f"{name} [{column.unit}]" for name, column in NUMBERS.items()]
    kl = [f"kl_scale_{scale} [nat/bit]" for scale in scales]
    writer.writerow(
        [
            "policy",
            "target_bytes [B]",
            "budget",
            "prompt_index",
            "prompt",
            "seed",
            *numbers,
            *kl,
            "bits_sha256",
            "command",
            "remark",
        ]
    )
    blank: list[Cell] = [None] * (len(numbers) + len(kl) + 5)
    unable = (one for one in league.entrants if not one.is_reachable)
    rows = [_row_cells(league, row) for row in league.rows]
    rows += ([one.policy, one.target_bytes, one.budget, *blank, one.remark] for one in unable)
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def mean_text(mean: Mean | None, *, signed: bool = False) -> str:
    """A mean and half its interval, to the digits that the interval allows: `0.0123 ± 0.0004`."""
    if mean is None:
        return "not measured"
    sign = "+" if signed else ""
    if math.isnan(mean.half) or mean.half == 0:
        return f"{mean.value:{sign}.4g}"
    digits = min(max(1 - math.floor(math.log10(mean.half)), 0), 6)
    return f"{mean.value:{sign}.{digits}f} ± {mean.half:.{digits}f}"


def target_text(settings: Settings, target_bytes: int | None) -> str:
    """A target both ways: bytes, and the fraction of the bfloat16 history."""
    wanted = settings.history_bytes if target_bytes is None else target_bytes
    return f"{bytes_text(wanted)} ({fraction_text(wanted / settings.history_bytes)})"


def _heading(league: League) -> Iterator[str]:
    settings = league.settings
    done = f"{len(league.rows)} of {league.num_wanted} runs"
    yield (
        f"{settings.model}, {settings.dtype} on {settings.device}, {len(settings.prompts)} prompts × "
        f"{len(settings.seeds)} seeds: {done}"
    )
    yield (
        f"budgets are of {settings.history_bytes:,} bytes: bfloat16 keys and values of all scales but the last, "
        f"{settings.rows} batch rows"
    )


def _cells(settings: Settings, one: Standing, names: list[str], against: str | None) -> list[str]:
    entrant = one.entrant
    differences = [] if against is None else [_difference(one)]
    return [
        target_text(settings, entrant.target_bytes),
        printable(entrant.policy),
        bytes_text(entrant.peak_bytes),
        bytes_text(one.stored_bytes, absent="-"),
        "-" if math.isnan(one.time_ratio) else f"{seconds_text(one.seconds)} ×{one.time_ratio:.2f}",
        *(mean_text(one.means[name]) if name in one.means else "-" for name in names),
        *differences,
        entrant.remark,
    ]


def _difference(one: Standing) -> str:
    return mean_text(one.differences["kl"], signed=True) if "kl" in one.differences else "-"


def _notes(names: list[str]) -> Iterator[str]:
    yield "peak: planned and accounted; stored: pool and index, measured; time: median, × full's in the same process"
    yield "±: half of the 95 % interval over prompts; free: its own bits, forced: at full's bits"
    absent = [f"{name}=FILE" for name in ("lpips", "image_reward", "hps") if name not in names]
    if absent:
        yield f"not measured: {', '.join(absent)} (--metric, where you have the package and its weights)"


def _row_cells(league: League, row: Row) -> list[Cell]:
    entrant, settings = league.entrants[row.entrant], league.settings
    numbers = [_csv_number(row.numbers.get(name)) for name in NUMBERS]
    prompt = settings.prompts[row.prompt]
    return [
        *(entrant.policy, entrant.target_bytes, entrant.budget, row.prompt, prompt, row.seed),
        *(*numbers, *row.kl_by_scale, row.bits_sha256, command(settings, entrant, row.prompt, row.seed)),
        entrant.remark,
    ]


def _csv_number(value: float | None) -> float | int | None:
    return int(value) if value is not None and math.isfinite(value) and value == int(value) else value


def _model_words(settings: Settings) -> list[str]:
    config = settings.config
    return [
        "--model",
        settings.model,
        *_given("--resolution", settings.resolution),
        *_given("--aspect", None if settings.aspect == 1.0 else settings.aspect),
        *_given("--sink-scales", settings.sink_scales),
        *_given("--cfg", None if settings.cfg == config.cfg else settings.cfg),
        *_given("--tau", None if settings.tau == config.tau else settings.tau),
        *_given("--dtype", None if settings.dtype == "bfloat16" else settings.dtype),
        *_given("--device", None if settings.device == "cpu" else settings.device),
        *_given("--weights", settings.weights),
        *(["--random-weights"] if settings.random_weights else []),
    ]


def _given(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]
