"""Compare, key 7: what it says of two traces, at every size, and where the keys and the mouse lead."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
from rich.color import Color

from kvscope.compare import MEASURES, largest
from kvscope.compare_report import verdict
from kvscope.trace import Trace
from kvscope.tui.beside import Mark, beside, compared, largest_differences
from kvscope.tui.cursor import Cursor
from kvscope.tui.feed import Snapshot, take_snapshot
from kvscope.tui.metrics import METRICS
from kvscope.tui.palette import DARK, LIGHT, ink
from kvscope.tui.screens.compare import CompareScreen
from kvscope.tui.view import CHOICES, View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.compare import absence, differences_hit, differences_list, head, pictures, totals
from kvscope.tui.widgets.panels import LESS, MORE, difference_styles, panels, panels_hit, sign_of

SIZES = ((36, 16), (60, 12), (120, 16), (160, 24), (220, 30))
Record = Callable[..., Path]


def paired_runs() -> ModuleType:
    """tests/kvscope/paired_runs.py, which no package holds."""
    path = Path(__file__).parent.parent / "paired_runs.py"
    spec = importlib.util.spec_from_file_location("paired_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAIRED = paired_runs()


def snapshot_of(path: Path) -> Snapshot:
    with Trace.open(path) as trace:
        return take_snapshot(path, trace, None)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType) -> Record:
    """record(name, schedule, …): a trace of the fake run."""
    folder = tmp_path_factory.mktemp("pairs")
    return lambda name, *args, **options: PAIRED.record(fake_run, folder / f"{name}.h5", *args, **options)


@pytest.fixture(scope="module")
def full_path(record: Record, fake_run: ModuleType) -> Path:
    return record("full", PAIRED.full_schedule(fake_run))


@pytest.fixture(scope="module")
def pruned_path(record: Record, fake_run: ModuleType) -> Path:
    return record("pruned", image=fake_run.fake_image() ^ np.uint8(4))


@pytest.fixture(scope="module")
def full(full_path: Path) -> Snapshot:
    return snapshot_of(full_path)


@pytest.fixture(scope="module")
def pruned(pruned_path: Path) -> Snapshot:
    return snapshot_of(pruned_path)


@pytest.fixture(scope="module")
def wide(wide_trace: Path) -> Snapshot:
    return snapshot_of(wide_trace)


@pytest.fixture(scope="module")
def wide_other(wide: Snapshot) -> Snapshot:
    """The same run with every other layer's mass and tokens halved."""
    kept, mass = wide.kept_tokens.copy(), wide.attention_mass.copy()
    kept[:, ::2] //= 2
    mass[:, ::2] *= 0.5
    return replace(wide, kept_tokens=kept, attention_mass=mass, header=replace(wide.header, run_id="other"))


def view_of(a: Snapshot, b: Snapshot | None, cursor: Cursor = Cursor(4, 1, 0, 2), **changes: object) -> View:  # noqa: B008 - frozen
    return replace(View(ink(DARK), a, cursor, "kept", screen="compare", other=b), **changes)


def with_side(view: View, side: str) -> View:
    return replace(view, choices=MappingProxyType({**view.choices, "side": side}))


def text_of(lines: list[object]) -> str:
    return "\n".join(strip.text for strip in lines)  # type: ignore[attr-defined]


# Numbers.


@pytest.mark.parametrize("name", sorted(set(MEASURES) & set(METRICS)))
def test_the_screens_differences_are_those_of_the_command(full: Snapshot, pruned: Snapshot, name: str) -> None:
    screen = [cell.to_json() for cell in largest_differences(full, pruned, name)]

    assert screen == [cell.to_json() for cell in largest(MEASURES[name](full), MEASURES[name](pruned), 100)]
    assert screen


def test_what_is_drawn_is_what_is_written(full: Snapshot, pruned: Snapshot) -> None:
    view = view_of(full, pruned)

    records = CompareScreen().records(view)

    cells = {(one["layer"], one["head"]): one for one in records if one["part"] == "cell"}
    assert len(cells) == 6
    assert cells[1, 0] | {"a": 9.0, "b": 0.0, "difference": -9.0, "state": "value"} == cells[1, 0]
    assert "L1 h0  A 9 tokens  B dropped  B - A -9 tokens" in text_of(panels(view, 120, 16))
    stored = next(one for one in records if one.get("name") == "storage_peak_bytes")
    comparison = compared(full, pruned)
    assert not isinstance(comparison, str)
    assert stored["difference"] == comparison.total("storage_peak_bytes").difference
    assert [one["rank"] for one in records if one["part"] == "largest"] == [1, 2, 3, 4]


def test_mass_that_only_one_run_has_is_no_difference(full: Snapshot, pruned: Snapshot) -> None:
    view = view_of(full, pruned, metric="mass")

    marks = beside(full, pruned, "mass").marks[4, :, :, 2]

    assert marks[1, 0] == Mark.ONLY_A
    assert (np.delete(marks.ravel(), 2) == Mark.VALUE).all()
    (written,) = [one for one in CompareScreen().records(view) if (one.get("layer"), one.get("head")) == (1, 0)][:1]
    assert written["difference"] is None
    assert written["state"] == "only_a"
    lines = text_of(panels(with_side(view, "difference"), 60, 12)).splitlines()
    assert "a" in lines[5]


# What is drawn.


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", SIZES)
def test_every_part_keeps_to_its_room_in_every_mode(
    full: Snapshot, pruned: Snapshot, metric: str, size: tuple[int, int]
) -> None:
    inks = (ink(DARK), ink(LIGHT), ink(DARK, glyphs=True), ink(DARK, plain=True), ink(DARK, colour=False))
    for look in (*inks, ink(DARK, colours="16"), ink(DARK, colours="256")):
        for side in CHOICES["side"]:
            view = with_side(view_of(full, pruned, metric=metric, ink=look), side)
            for painter in (head, panels, totals, differences_list, pictures):
                lines = painter(view, *size)
                assert len(lines) <= size[1] or painter is head
                assert all(strip.cell_length <= size[0] for strip in lines), painter


def test_three_panels_stand_beside_each_other_where_they_fit_whole(wide: Snapshot, wide_other: Snapshot) -> None:
    view = view_of(wide, wide_other, Cursor(5, 20, 3, 3))

    assert text_of(panels(view, 160, 24)).count(" L31") == 3
    assert text_of(panels(view, 60, 24)).startswith("─ B - A · ")
    assert text_of(panels(with_side(view, "a"), 60, 24)).startswith("─ A · ")


def test_signs_tell_a_difference_without_colour(wide: Snapshot, wide_other: Snapshot) -> None:
    for plain, less in ((False, "▼"), (True, "-")):
        view = view_of(wide, wide_other, Cursor(5, 2, 3, 1), ink=ink(DARK, plain=plain, glyphs=True))
        lines = text_of(panels(view, 70, 40)).splitlines()[4:]
        halved, same = (next(line for line in lines if f" L{layer} " in line) for layer in (0, 1))

        assert less in halved
        assert "=" not in halved.split("L1", 1)[0]
        assert "=" in same
        assert less not in same.split(" L1 ", 1)[1][:16]


def test_glyphs_tell_how_much_where_there_is_room(full: Snapshot, pruned: Snapshot) -> None:
    view = view_of(full, pruned, Cursor(4, 0, 0, 2), ink=ink(DARK, glyphs=True))

    assert "▼█" in text_of(panels(view, 60, 12))


@pytest.mark.parametrize("size", [(60, 14), (160, 24), (220, 30)])
def test_a_click_goes_to_the_cell_that_is_drawn_there(
    wide: Snapshot, wide_other: Snapshot, size: tuple[int, int]
) -> None:
    view = view_of(wide, wide_other, Cursor(5, 6, 5, 3))
    lines, found = panels(view, *size), set()
    for y in range(size[1]):
        for x in range(size[0]):
            cursor = panels_hit(view, *size, x, y)
            if cursor is not None:
                found.add((cursor.layer, cursor.head))
                before = lines[y].text[:x]
                assert f" L{cursor.layer} " in before[before.rindex(" L") :] + " ", (x, y)
    assert {layer for layer, _ in found} >= {6}
    assert {head_index for _, head_index in found} == set(range(16))


def test_a_click_on_a_line_of_the_list_is_that_line(wide: Snapshot, wide_other: Snapshot) -> None:
    view = view_of(wide, wide_other, row=40)
    lines = differences_list(view, 60, 12)

    chosen = [differences_hit(view, 60, 12, 5, y) for y in range(12)]

    assert chosen[0] is None
    assert lines[chosen.index(40)].text.startswith("▸")
    assert chosen[1:] == list(range(chosen[1], chosen[1] + 11))


def test_less_and_more_are_of_one_luminance_and_apart_for_the_colour_blind() -> None:
    def linear(colour: str) -> np.ndarray:
        value = np.array(Color.parse(colour).get_truecolor()) / 255
        return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)

    def luminance(colour: str) -> float:
        return float(linear(colour) @ (0.2126, 0.7152, 0.0722))

    pairs = [(luminance(less), luminance(more)) for less, more in zip(LESS, MORE, strict=True)]
    # Viénot, Brettel and Mollon (1999): what is left of red and green for protanopes and deuteranopes.
    blind = [np.array([[0.112, 0.888, 0], [0.112, 0.888, 0], [0.004, -0.004, 1]]),
             np.array([[0.293, 0.707, 0], [0.293, 0.707, 0], [-0.021, 0.021, 1]])]  # fmt: skip

    assert all(abs(less - more) / max(less, more) < 0.09 for less, more in pairs)
    assert sorted(pairs) == pairs
    for matrix in blind:
        for less, more in zip(LESS, MORE, strict=True):
            assert np.abs(matrix @ linear(less) - matrix @ linear(more)).max() > 0.2


def test_the_largest_difference_stands_out_most_on_either_ground() -> None:
    less_dark, less_light = difference_styles(ink(DARK))[0], difference_styles(ink(LIGHT))[0]

    assert [style.color for style in less_dark] == [style.color for style in reversed(less_light)]
    assert less_dark[-1].color == Color.parse(LESS[-1])
    assert (sign_of(0, ink(DARK)), sign_of(1, ink(DARK)), sign_of(-1, ink(DARK, plain=True))) == ("=", "▲", "-")


# States.


def test_each_reason_to_show_nothing_is_told_with_the_way_out(
    full: Snapshot, record: Record, fake_run: ModuleType
) -> None:
    made = PAIRED.full_schedule(fake_run)
    other = snapshot_of(record("head-dim", made, scales=1, status="failed", start={"head_dim": 8}))
    empty = snapshot_of(record("nothing", scales=0, status="failed"))
    cases = {
        "press 9 and choose a trace": view_of(full, None),
        "kvscope open A --with B": view_of(full, None),
        "b.h5: not a trace": view_of(full, None, other_refused="b.h5: not a trace"),
        "head dimension 4 in A and 8 in B": view_of(full, other),
        "no scale that both have yet: A has 5, B has 0": view_of(full, empty),
    }

    for words, view in cases.items():
        assert words in " ".join(absence(view))
        assert words.split()[0] in text_of(panels(view, 80, 18))
        assert (totals(view, 60, 10), differences_list(view, 60, 10), pictures(view, 60, 10)) == ([], [], [])
        assert CompareScreen().records(view) == []
        assert CompareScreen().entered(view) is None


def test_before_there_is_a_trace_there_is_only_a_rule() -> None:
    view = View(ink(DARK), screen="compare")

    assert [strip.cell_length for strip in head(view, 60, 1)] == [60]
    assert text_of(panels(view, 60, 10)).strip() == ""


def test_a_live_run_is_compared_as_far_as_it_got(full: Snapshot, record: Record) -> None:
    part = snapshot_of(record("part", scales=3, status="cancelled"))

    shown = text_of(head(view_of(part, full), 120, 8))

    assert "B, scales 0 to 2 only: " in shown
    assert "A cancelled with 3, B done with 5" in shown
    assert "query scale 4 is not in both yet: [ goes back to 2" in text_of(panels(view_of(full, part), 120, 16))
    assert panels_hit(view_of(full, part), 120, 16, 8, 7) is None


def test_runs_that_do_not_differ_say_so(full: Snapshot) -> None:
    view = view_of(full, full)

    assert "A and B are one run" in text_of(head(view, 80, 6))
    assert "no head-scale differs in kept" in text_of(differences_list(view, 60, 5))
    assert CompareScreen().rows(view) == 0
    assert CompareScreen().entered(view) is None


def test_pictures_of_another_seed_are_shown_but_not_measured(full: Snapshot, record: Record) -> None:
    view = view_of(full, snapshot_of(record("seed", seed=8)))

    assert "pictures not compared: seed differs" in text_of(totals(view, 60, 20))
    assert "A · image" in text_of(pictures(view, 60, 12))


# The app.


def test_n_chooses_the_next_difference_and_enter_goes_there(full_path: Path, pruned_path: Path, drive: object) -> None:
    async def script(viewer: object) -> None:
        await viewer.until(lambda: viewer.app.view.other is not None)
        assert "B: " in viewer.text("head")
        await viewer.press("n", "n", "N", "enter")
        cell = largest_differences(viewer.app.view.snapshot, viewer.app.view.other, "kept")[1]
        cursor = viewer.app.view.cursor
        assert (cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale) == (
            cell.query_scale,
            cell.layer,
            cell.head,
            cell.source_scale,
        )
        await viewer.press("d")
        assert viewer.text("panels").startswith("─ A · ")

    drive(full_path, script, other=pruned_path, screen="compare")  # type: ignore[operator]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48), (220, 50)])
def test_the_screen_says_the_same_verdict_at_every_size(
    full_path: Path, pruned_path: Path, drive: object, size: tuple[int, int]
) -> None:
    async def script(viewer: object) -> None:
        await viewer.until(lambda: viewer.app.view.other is not None)
        comparison = compared(viewer.app.view.snapshot, viewer.app.view.other)
        text = viewer.text()
        assert verdict(comparison) in text
        assert "stored peak" in text
        assert "largest differences · kept" in text
        assert "SSIM" in text
        assert viewer.app.screen.query_one("#pictures", Canvas).display == (size[1] >= 34)
        assert all(canvas.about for canvas in viewer.app.screen.query("#sheet Canvas").results(Canvas))

    drive(full_path, script, size=size, other=pruned_path, screen="compare")  # type: ignore[operator]


def test_a_trace_that_is_being_recorded_is_compared_with_one_that_is_done(
    live_trace: Path, full_path: Path, drive: object
) -> None:
    async def script(viewer: object) -> None:
        await viewer.until(lambda: viewer.app.view.other is not None)
        assert "A live with 3, B done with 5" in viewer.text("head")
        assert "B - A · kept" in viewer.text("panels")

    drive(live_trace, script, other=full_path, screen="compare")  # type: ignore[operator]


def test_a_trace_that_cannot_be_read_is_told_with_its_reason(full_path: Path, tmp_path: Path, drive: object) -> None:
    (tmp_path / "no.h5").write_text("no trace")

    async def script(viewer: object) -> None:
        await viewer.until(lambda: viewer.app.view.other_refused is not None)
        assert "B cannot be read" in viewer.text("panels")

    drive(full_path, script, other=tmp_path / "no.h5", screen="compare")  # type: ignore[operator]


def test_comparing_in_the_shape_of_infinity_2b_is_quick(wide: Snapshot, wide_other: Snapshot) -> None:
    view = view_of(wide, wide_other, metric="mass")
    for painter in (head, panels, totals, differences_list):
        painter(view, 160, 24)

    begin = time.perf_counter()
    for layer in range(10):
        moved = replace(view, cursor=Cursor(5, layer, 3, 3))
        for painter in (head, panels, totals, differences_list):
            painter(moved, 160, 24)

    assert (time.perf_counter() - begin) / 10 < 2  # 10 ms on an idle machine
