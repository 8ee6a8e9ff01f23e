from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
from textual.widgets._toast import Toast

from kvscope import units
from kvscope.analysis import summarize
from kvscope.errors import NoTerminalError, TraceError, TraceFormatError
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.tui.actions import actions_of
from kvscope.tui.app import KVScopeApp, run_app
from kvscope.tui.metrics import METRICS, cell_text, why
from kvscope.tui.palette import LIGHT
from kvscope.tui.screens.base import TraceScreen
from kvscope.tui.screens.help import HelpScreen
from kvscope.tui.widgets.canvas import Canvas


def test_numbers_on_the_live_screen_are_those_of_the_summary(drive, tiny_trace: Path) -> None:
    with Trace.open(tiny_trace) as trace:
        summary = summarize(trace)

    async def script(viewer) -> None:
        accounted, stored, budget, full = viewer.lines("ledger")[1:5]
        assert units.bytes_text(summary.accounted_peak_bytes) in accounted
        assert units.fraction_text(summary.accounted_peak_of_budget) in accounted
        assert units.bytes_text(summary.storage_peak_bytes) in stored
        assert units.bytes_text(summary.budget_bytes) in budget
        assert units.bytes_text(summary.full_history_bytes) in full
        assert [line.split()[-1] for line in (accounted, stored, budget, full)] == [
            *["measured"] * 2,
            *["defined"] * 2,
        ]
        for scale, line in zip(summary.scales, viewer.lines("scales")[2:], strict=False):
            assert units.bytes_text(scale.accounted_bytes) in line
            assert units.bytes_text(scale.storage_bytes) in line
            assert units.seconds_text(scale.seconds) in line

    drive(tiny_trace, script, size=(120, 40))


def test_a_trace_that_is_read_at_once_is_in_the_first_frame(tiny_trace: Path) -> None:
    frames: list[str] = []

    class Watched(KVScopeApp):
        CSS_PATH = Path(sys.modules[KVScopeApp.__module__].__file__).with_name("theme.tcss")

        def _display(self, screen, renderable) -> None:
            if isinstance(screen, TraceScreen):
                frames.append(screen.query_one("#top", Canvas).render_line(0).text)
            super()._display(screen, renderable)

    async def main() -> None:
        async with Watched(tiny_trace).run_test(size=(120, 40)) as pilot:
            await pilot.pause()

    asyncio.run(main())

    assert "seed 0" in frames[0]


def test_the_top_line_says_what_run_what_state_and_how_honest(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        (top,) = viewer.lines("top")
        for words in ("fake", "heatkv", "seed 0", "a red circle — ünïcode", "perturbed", "✓ done 5 of 5 scales"):
            assert words in top

    drive(tiny_trace, script, size=(140, 40))


def test_the_cell_under_the_cursor_is_told_in_words_on_the_map(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "j", "l", "left_square_bracket")
        view = viewer.app.view
        assert (view.cursor.layer, view.cursor.head, view.cursor.query_scale) == (1, 1, 3)
        words = viewer.text("words")
        assert "layer 1 · head 1" in words
        assert cell_text(view.snapshot, "kept", view.cursor) in words
        assert why(view.snapshot, view.cursor).split(":")[0] in words

    drive(tiny_trace, script, size=(120, 40))


def test_the_cursor_is_the_same_on_every_screen(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("down", "right", "left_square_bracket", "left_curly_bracket")
        on_live = viewer.app.view.cursor
        assert "query scale 3 · L1 h1" in viewer.text("heads")
        await viewer.press("2")
        assert viewer.app.view.cursor == on_live
        assert "query scale 3 (4×4) ← source scale 0 (1×1)" in viewer.text("title")
        await viewer.press("G", "1")
        assert "query scale 3 · L2 h1" in viewer.text("heads")

    drive(tiny_trace, script, size=(120, 40))


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (("j", "down", "j", "j"), (4, 2, 0, 1)),
        (("l", "l", "h", "l"), (4, 0, 1, 1)),
        (("G", "g"), (4, 0, 0, 1)),
        (("end", "home"), (4, 0, 0, 1)),
        (("left_square_bracket",) * 9, (0, 0, 0, 1)),
        (("left_square_bracket", "right_square_bracket", "right_square_bracket"), (4, 0, 0, 1)),
        (("right_curly_bracket",) * 9, (4, 0, 0, 4)),
        (("left_curly_bracket",) * 9, (4, 0, 0, 0)),
    ],
)
def test_keys_move_the_cursor(drive, tiny_trace: Path, keys: tuple[str, ...], place: tuple[int, ...]) -> None:
    async def script(viewer) -> None:
        await viewer.press(*keys)
        cursor = viewer.app.view.cursor
        assert (cursor.query_scale, cursor.layer, cursor.head, cursor.source_scale) == place

    drive(tiny_trace, script)


def test_m_goes_through_every_metric_and_back(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        for metric in [*list(METRICS.values())[1:], next(iter(METRICS.values()))]:
            await viewer.press("m")
            assert metric.title in viewer.text("title")
        await viewer.press("M")
        assert viewer.app.view.metric == list(METRICS)[-1]

    drive(tiny_trace, script, size=(120, 40))


def test_a_click_on_a_cell_moves_the_cursor_there(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2")
        await viewer.pilot.click("#grid", offset=(5 + 3 * 7 + 1, 1 + 20))
        assert (viewer.app.view.cursor.layer, viewer.app.view.cursor.head) == (20, 7)
        assert "layer 20 · head 7" in viewer.text("words")

    drive(wide_trace, script, size=(120, 40))


def test_a_live_run_is_followed_to_its_end(drive, tmp_path: Path, fake_run: ModuleType) -> None:
    recorder = Recorder(tmp_path / "run.h5", fake_run.fake_job(), preview=fake_run.fake_preview)
    fake_run.run(recorder, scales=2)

    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 2)
        assert "● live 2 of 5 scales" in viewer.text("top")
        assert viewer.app.view.cursor.query_scale == 1
        assert "planned" in viewer.text("scales")
        fake_run.run_scale(recorder, fake_run.fake_schedule(), 2)
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 3)
        assert viewer.app.view.cursor.query_scale == 2
        await viewer.press("left_square_bracket")
        fake_run.run_scale(recorder, fake_run.fake_schedule(), 3)
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 4)
        assert viewer.app.view.cursor.query_scale == 1
        recorder.finish("cancelled", "stopped by the user")
        await viewer.until(lambda: viewer.app.view.snapshot.status == "cancelled")
        assert "run cancelled after 4 of 5 scales: stopped by the user; 4 scales are safe" in viewer.text("notice")

    drive(recorder.path, script, size=(120, 40))


def test_what_comes_while_help_is_open_is_there_when_it_closes(drive, tmp_path: Path, fake_run: ModuleType) -> None:
    recorder = Recorder(tmp_path / "run.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=2)

    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 2)
        await viewer.press("question_mark")
        assert isinstance(viewer.app.screen, HelpScreen)
        recorder.finish("failed", "out of memory")
        await viewer.until(lambda: viewer.app.view.snapshot.status == "failed")
        await viewer.press("escape")
        assert "✗ failed" in viewer.text("top")

    drive(recorder.path, script)


def test_a_crashed_run_says_what_is_safe(drive, crashed_trace: Path) -> None:
    async def script(viewer) -> None:
        assert "✗ crashed" in viewer.text("top")
        assert "run crashed at scale 3; 3 scales are safe" in viewer.text("notice")

    drive(crashed_trace, script)


def test_a_run_that_failed_at_once_shows_its_message_and_its_plan(drive, empty_trace: Path) -> None:
    async def script(viewer) -> None:
        assert "run failed at scale 0: out of memory; nothing was recorded" in viewer.text("notice")
        assert "no scale was finished" in viewer.lines("ledger")[1]
        assert "measured" not in viewer.lines("ledger")[1]
        assert "planned" in viewer.lines("chart")[0]
        await viewer.press("2")
        assert "no scale was recorded" in viewer.text("grid")

    drive(empty_trace, script)


def test_before_the_first_scale_the_screen_says_so(drive, tmp_path: Path, fake_run: ModuleType) -> None:
    with Recorder(tmp_path / "run.h5", fake_run.fake_job()) as recorder:
        fake_run.run(recorder, scales=0)

        async def script(viewer) -> None:
            assert "no scale yet" in viewer.text("notice")
            assert "● live 0 of 5 scales" in viewer.text("top")

        drive(recorder.path, script)


def test_a_run_without_a_gpu_tells_the_reason_and_one_with_a_gpu_its_memory(
    drive, tiny_trace: Path, gpu_trace: Path
) -> None:
    async def reason(viewer) -> None:
        wrapped = " ".join(line.strip() for line in viewer.lines("gpu")[1:])
        assert viewer.app.view.snapshot.gpu_unavailable in wrapped
        assert "0 B" not in wrapped

    async def memory(viewer) -> None:
        sample = viewer.app.view.snapshot.gpu[-1]
        assert units.bytes_text(float(sample["used_bytes"])) in viewer.text("gpu")
        assert "before the last commit" in viewer.text("gpu")

    drive(tiny_trace, reason, size=(120, 40))
    drive(gpu_trace, memory, size=(120, 40))


def test_a_trace_without_pictures_or_mass_says_so(drive, gpu_trace: Path) -> None:
    async def script(viewer) -> None:
        assert "no picture" in viewer.text("picture")
        await viewer.press("2", "m", "m")
        assert units.NOT_MEASURED in viewer.text("words")
        assert "?" in viewer.text("grid")

    drive(gpu_trace, script, size=(120, 40))


def test_a_file_that_vanishes_is_told_and_what_was_read_stays(drive, live_trace: Path) -> None:
    async def script(viewer) -> None:
        aside = live_trace.with_suffix(".aside")
        live_trace.rename(aside)
        await viewer.until(lambda: viewer.app.view.lost is not None)
        assert "disconnected: live.h5 is gone; what was read is shown" in viewer.text("notice")
        assert "○ disconnected" in viewer.text("top")
        assert "measured" in viewer.text("scales")
        aside.rename(live_trace)
        await viewer.until(lambda: viewer.app.view.lost is None)
        assert "● live" in viewer.text("top")

    drive(live_trace, script)


def test_a_terminal_that_is_too_small_is_told_what_is_needed(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        assert viewer.canvas("too-small").display
        assert "too small: 80×24 needed, 62×20 here" in viewer.text("too-small")
        await viewer.pilot.resize_terminal(80, 24)
        await viewer.pilot.pause()
        assert not viewer.canvas("too-small").display
        assert "accounted" in viewer.text("ledger")

    drive(tiny_trace, script, size=(62, 20))


def test_no_color_draws_glyphs_whatever_is_pressed(drive, wide_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(viewer) -> None:
        await viewer.press("2", "m", "m", "c")
        assert viewer.app.view.ink.glyphs
        assert len(set("▁▂▃▄▅▆▇█") & set(viewer.text("grid"))) >= 6

    drive(wide_trace, script, size=(120, 40))


@pytest.mark.parametrize("key", ["1", "2"])
def test_a_terminal_without_unicode_gets_ascii_only(drive, wide_trace: Path, key: str) -> None:
    async def script(viewer) -> None:
        await viewer.press(key)
        text = viewer.text()
        assert text.isascii(), sorted(set(text) - {chr(code) for code in range(128)})

    drive(wide_trace, script, size=(120, 40), plain=True)


def test_the_light_theme_has_a_light_ground(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        assert viewer.app.screen.styles.background.brightness > 0.9
        viewer.app.theme = "kvscope-dark"
        await viewer.until(lambda: viewer.app.screen.styles.background.brightness < 0.2)
        assert viewer.app.view.ink.heat[0] != viewer.app.view.ink.heat[-1]

    drive(tiny_trace, script, theme=LIGHT)


def test_w_writes_a_picture_and_never_over_one(
    drive, tiny_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kvscope-tiny-live-1.svg").write_text("mine")

    async def script(viewer) -> None:
        await viewer.press("w")
        await viewer.until(lambda: (tmp_path / "kvscope-tiny-live-2.svg").exists())
        await viewer.until(lambda: (tmp_path / "kvscope-tiny-live-2.svg").read_text().rstrip().endswith("</svg>"))

    drive(tiny_trace, script)

    assert (tmp_path / "kvscope-tiny-live-1.svg").read_text() == "mine"


def test_quitting_a_live_run_does_not_wait_for_it_and_leaves_no_thread(drive, live_trace: Path) -> None:
    pressed: list[float] = []

    async def script(viewer) -> None:
        pressed.append(time.monotonic())
        await viewer.pilot.press("q")

    drive(live_trace, script)

    assert time.monotonic() - pressed[0] < 20
    assert not [thread for thread in threading.enumerate() if thread.name == "kvscope-feed"]


def test_a_file_that_is_no_trace_ends_the_app_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "not.h5"
    path.write_text("hello")
    app = KVScopeApp(path)

    app.run(headless=True)

    assert isinstance(app.error, TraceFormatError)


def test_without_a_terminal_there_is_one_clear_error(tiny_trace: Path) -> None:
    assert not (sys.stdin.isatty() and sys.stderr.isatty())

    with pytest.raises(NoTerminalError, match="kvscope stats"):
        run_app(tiny_trace)


def test_a_missing_file_is_refused_before_any_screen_if_there_is_no_terminal_either() -> None:
    with pytest.raises((NoTerminalError, TraceError)):
        run_app(Path("missing.h5"))


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 36), (200, 50)])
def test_the_bars_show_the_cursors_scale_however_little_room_there_is(
    drive, wide_trace: Path, size: tuple[int, int]
) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", *["right_curly_bracket"] * 9)
        for name in ("sources", "queries"):
            canvas = viewer.canvas(name)
            assert canvas.parent.region.contains_region(canvas.region)
            assert any("▸" in line and " 6 " in line for line in viewer.lines(name))

    drive(wide_trace, script, size=size)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 48)])
def test_a_trace_from_somebody_else_cannot_steer_the_terminal(
    drive, hostile_trace: Path, size: tuple[int, int]
) -> None:
    async def script(viewer) -> None:
        for key in ("1", "2"):
            await viewer.press(key)
            assert all(unicodedata.category(character)[0] != "C" for character in viewer.text().replace("\n", ""))
            (top,) = viewer.lines("top")
            assert "✗ failed" in top
            assert len(top) == size[0]
            assert r"AAA\x1b]0;PWNED\x07BBB\none\rtwo\u202egnp" in viewer.text("notice").replace("\n", " ")

    drive(hostile_trace, script, size=size)


@pytest.mark.parametrize("over", [(), ("question_mark",), ("ctrl+p",), ("2",)])
def test_ctrl_c_quits_wherever_the_user_is(drive, tiny_trace: Path, over: tuple[str, ...]) -> None:
    async def script(viewer) -> None:
        await viewer.press(*over, "ctrl+c")
        assert viewer.app._exit

    drive(tiny_trace, script)


def test_w_says_what_it_wrote_once_on_one_line_over_the_footer(
    drive, tiny_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(viewer) -> None:
        await viewer.press("w", "w")
        await viewer.until(lambda: len(viewer.app.screen.query(Toast)) == 1)
        (toast,) = viewer.app.screen.query(Toast)
        assert "wrote kvscope-tiny-live-2.svg" in str(toast.render())
        assert (toast.region.height, toast.region.bottom) == (1, 23)

    drive(tiny_trace, script)


def test_w_gives_the_reason_where_it_cannot_write(
    drive, tiny_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # With what is added for the picture, a name this long is refused by every file system.
    long = Path(shutil.copy(tiny_trace, f"{'long' * 61}.h5"))

    async def script(viewer) -> None:
        await viewer.press("w")
        await viewer.until(lambda: len(viewer.app.screen.query(Toast)) == 1)
        (toast,) = viewer.app.screen.query(Toast)
        assert "nothing written: File name too long" in str(toast.render())

    drive(long, script)

    assert list(tmp_path.iterdir()) == [tmp_path / long]


def test_the_palette_holds_our_actions_only_and_is_not_there_in_ascii(drive, tiny_trace: Path) -> None:
    async def offers(viewer) -> None:
        commands = {command.title for command in viewer.app.get_system_commands(viewer.app.screen)}
        assert commands == {action.help for action in actions_of("live")}
        await viewer.press("ctrl+p")
        assert len(viewer.app.screen_stack) == 3

    async def has_none(viewer) -> None:
        await viewer.press("ctrl+p")
        assert len(viewer.app.screen_stack) == 2

    drive(tiny_trace, offers)
    drive(tiny_trace, has_none, plain=True)


def test_no_color_draws_the_picture_in_characters(drive, tiny_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(viewer) -> None:
        assert "▀" not in viewer.text("picture")
        assert set("=+*#") & set(viewer.text("picture"))

    drive(tiny_trace, script, size=(120, 40))


def test_between_the_last_scale_and_the_picture_the_screen_says_what_is_made(
    drive, tmp_path: Path, fake_run: ModuleType
) -> None:
    recorder = Recorder(tmp_path / "run.h5", fake_run.fake_job())
    fake_run.run(recorder, scales=4)
    fake_run.run_scale(recorder, fake_run.fake_schedule(), 4)

    async def script(viewer) -> None:
        await viewer.until(lambda: viewer.app.view.snapshot.scales_done == 5)
        assert "● live 5 of 5 scales, making the picture" in viewer.text("top")
        assert "making the picture" in viewer.text("picture")
        recorder.image_done(fake_run.fake_image())
        recorder.finish("done")
        await viewer.until(lambda: viewer.app.view.snapshot.status == "done")
        assert "making" not in viewer.text()

    drive(recorder.path, script, size=(120, 40))


@pytest.mark.parametrize("keys", [(), ("m",), ("m", "m"), ("m", "m", "m"), ("m", "m", "m", "m")])
def test_no_value_of_the_map_loses_its_unit_in_the_smallest_terminal(
    drive, wide_trace: Path, keys: tuple[str, ...]
) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", "right_curly_bracket", *keys)
        for name in ("words", "sources", "queries"):
            assert "…" not in viewer.text(name)
        assert cell_text(viewer.app.view.snapshot, "kept", viewer.app.view.cursor).split("= ")[-1] in viewer.text(
            "words"
        )

    drive(wide_trace, script)


def test_scales_that_a_list_has_no_room_for_are_pointed_at(drive, wide_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("2", *["right_curly_bracket"] * 9)
        lines = viewer.lines("sources")[1:]
        assert len(lines) < 7
        assert lines[0].startswith("↑")
        assert "↓" not in viewer.text("sources")
        await viewer.press(*["left_curly_bracket"] * 9)
        lines = viewer.lines("sources")[1:]
        assert "↑" not in viewer.text("sources")
        assert lines[-1].startswith("↓")

    drive(wide_trace, script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_what_is_counted_over_heads_is_called_so(drive, wide_trace: Path, size: tuple[int, int]) -> None:
    async def script(viewer) -> None:
        full = viewer.lines("ledger")[4]
        tokens = viewer.app.view.snapshot.summary.denominator_tokens
        assert (f"{tokens:,} head-tokens" if size[0] > 80 else "100 %") in full
        assert full.split()[-1] == "defined"
        assert "peak bytes of each" in viewer.lines("scales")[0]
        if size[0] > 80:
            assert viewer.lines("scales")[1].split()[-4:] == ["freed", "head-tokens", "in", "layers"]

    drive(wide_trace, script, size=size)


def test_the_picture_of_a_trace_with_a_wild_name_has_a_tame_one(
    drive, hostile_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(viewer) -> None:
        await viewer.press("w")

    drive(hostile_trace, script)

    (picture,) = tmp_path.glob("*.svg")
    assert picture.name == r"kvscope-evil\x1b[31m\n-live-1.svg"
    assert "\x1b" not in picture.read_text()


def test_a_trace_that_is_opened_is_remembered_and_first_among_the_recent(drive, tiny_trace: Path) -> None:
    opened: list[Path] = []

    async def script(viewer) -> None:
        await viewer.until(lambda: opened == [tiny_trace])
        assert viewer.app.view.recent == (str(tiny_trace), "/elsewhere/a.h5")

    drive(tiny_trace, script, recent=("/elsewhere/a.h5",), remember=opened.append)


def test_a_dumb_terminal_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tiny_trace: Path) -> None:
    monkeypatch.setenv("TERM", "dumb")

    with pytest.raises(NoTerminalError, match="`kvscope screen` draws without one"):
        run_app(tiny_trace)


class _Begun:
    """A plan's run that has no trace yet."""

    pid = 1 << 22  # no process has it

    def said(self) -> tuple[str, ...]:
        return ("loading weights",)

    def poll(self) -> None:
        return None


def test_what_a_plans_run_says_before_its_trace_is_there_is_heard(drive, tiny_trace: Path, tmp_path: Path) -> None:
    async def script(viewer) -> None:
        viewer.app.open_other(tmp_path / "to-come.h5", launched=_Begun())
        await viewer.until(lambda: viewer.app.view.applied_said == ("loading weights",))

    drive(tiny_trace, script)
