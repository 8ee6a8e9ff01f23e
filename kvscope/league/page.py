"""The league as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvscope.export.page import document, note, safe, table
from kvscope.league.chart import curves_svg
from kvscope.league.report import command, mean_text, target_text
from kvscope.league.settings import FULL
from kvscope.league.table import MEASURES
from kvscope.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from kvscope.league.standings import Standing
    from kvscope.league.table import League


def league_page(league: League, found: Sequence[Standing], *, against: str | None) -> str:
    """Curves of every measure, the table of means, differences, and KL by scale."""
    names = [name for name in MEASURES if any(name in one.means for one in found)]
    sections = (
        _heading(league),
        _curves(league, found, names),
        _means(league, found, names),
        _differences(league, found, names, against),
        _scales(league, found),
        _commands(league),
    )
    return document(f"league of {safe(league.settings.model)}", "\n".join("\n".join(one) for one in sections))


def _heading(league: League) -> Iterator[str]:
    settings = league.settings
    yield f"<h1>KV-cache league: {safe(settings.model)}</h1>"
    yield (
        f"<p>{len(settings.prompts)} prompts × {len(settings.seeds)} seeds, {safe(settings.dtype)} on "
        f"{safe(settings.device)}; {len(league.rows)} of {league.num_wanted} runs measured.</p>"
    )
    yield note(
        f"Budgets are peaks of true bytes of keys and values; 100 % is {settings.history_bytes:,} bytes: "
        f"bfloat16, all scales but the last, {settings.rows} batch rows. Means over prompts with 95 % intervals."
    )


def _curves(league: League, found: Sequence[Standing], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"<h2>{safe(MEASURES[name].title)}</h2><figure>{curves_svg(league.settings, found, name)}</figure>"


def _means(league: League, found: Sequence[Standing], names: Sequence[str]) -> Iterator[str]:
    yield "<h2>Standings</h2>"
    titles = ["policy", "budget", "peak", "stored", "time", "× full", *(MEASURES[name].title for name in names), ""]
    yield '<div class="shares">'
    yield from table(map(safe, titles), (_mean_cells(league, one, names) for one in found))
    yield "</div>"
    yield note("Peak: planned, and accounted. Stored: the pool and its index, from the tensors. Time: medians.")


def _mean_cells(league: League, one: Standing, names: Sequence[str]) -> list[str]:
    cells = [
        one.entrant.policy,
        target_text(league.settings, one.entrant.target_bytes),
        bytes_text(one.entrant.peak_bytes),
        bytes_text(one.stored_bytes, absent="-"),
        seconds_text(one.seconds, absent="-"),
        f"{one.time_ratio:.2f}" if one.runs else "-",
        *(mean_text(one.means[name]) if name in one.means else "-" for name in names),
        one.entrant.remark,
    ]
    return [safe(cell) for cell in cells]


def _differences(league: League, found: Sequence[Standing], names: Sequence[str], against: str | None) -> Iterator[str]:
    paired = [one for one in found if one.differences]
    if against is None or not paired:
        return
    yield f"<h2>Against {safe(against)}, prompt by prompt</h2>"
    rows = (
        [one.entrant.policy, target_text(league.settings, one.entrant.target_bytes)]
        + [mean_text(one.differences.get(name), signed=True) for name in names]
        for one in paired
    )
    yield '<div class="shares">'
    yield from table(
        map(safe, ["policy", "budget", *(MEASURES[name].title for name in names)]), (map(safe, row) for row in rows)
    )
    yield "</div>"
    yield note("This minus that, at the same budget; an interval that holds 0 shows no difference.")


def _scales(league: League, found: Sequence[Standing]) -> Iterator[str]:
    yield "<h2>Forced KL by scale, nats per bit</h2>"
    titles = ["policy", "budget", *(f"scale {scale}" for scale in range(league.settings.scales.num_scales))]
    rows = (
        [one.entrant.policy, target_text(league.settings, one.entrant.target_bytes)]
        + [f"{mean.value:.3g}" for mean in one.kl_by_scale]
        for one in found
        if one.entrant.policy != FULL and one.kl_by_scale
    )
    yield '<div class="shares">'
    yield from table(map(safe, titles), (map(safe, row) for row in rows))
    yield "</div>"


def _commands(league: League) -> Iterator[str]:
    settings = league.settings
    yield "<h2>Repeat a row</h2>"
    yield note("The first prompt and seed of each; the CSV has the command of every row.")
    for one in league.entrants:
        if one.is_reachable:
            yield f"<p><code>{safe(command(settings, one, 0, settings.seeds[0]))}</code></p>"
