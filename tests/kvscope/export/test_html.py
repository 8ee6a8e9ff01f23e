"""The report: one file, complete in itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np

from kvscope.analysis import summarize
from kvscope.export.html import _levels
from kvscope.recorder import Recorder
from kvscope.trace import Trace
from kvscope.units import bytes_text, fraction_text, seconds_text

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Fails where tags do not match; collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_well_formed_and_loads_and_runs_nothing(tiny_trace: Path, export: Callable[..., Path]) -> None:
    page = checked(export(tiny_trace, "html").read_text())

    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert len(page.loads) == 6  # five previews and the image
    assert page.tags & {"script", "link", "iframe", "object"} == set()


def test_numbers_are_those_of_the_analysis_in_the_words_of_units(tiny_trace: Path, export: Callable[..., Path]) -> None:
    page = export(tiny_trace, "html").read_text()

    with Trace.open(tiny_trace) as trace:
        summary = summarize(trace)
    assert f'title="{summary.storage_peak_bytes:,} bytes">{bytes_text(summary.storage_peak_bytes)}<' in page
    assert f"<td>{fraction_text(summary.accounted_peak_of_budget)}</td>" in page
    for scale in summary.scales:
        assert f"<td>{seconds_text(scale.seconds)}</td>" in page
    assert {"measured", "defined"} <= set(re.findall(r'class="tag (\w+)"', page))


def test_what_was_not_measured_bears_no_tag(tiny_trace: Path, export: Callable[..., Path]) -> None:
    page = export(tiny_trace, "html").read_text()

    assert "<td>not measured: no CUDA</td><td></td>" in page


def test_foreign_text_cannot_become_markup(tmp_path: Path, fake_run: ModuleType, export: Callable[..., Path]) -> None:
    path, evil = tmp_path / "evil.h5", "<script>alert(1)</script>\x1b\u202e&"
    with Recorder(path, fake_run.fake_job()) as recorder:
        fake_run.run(recorder, scales=1)
        recorder.log("error", evil)
        recorder.finish("failed", evil)

    page = export(path, "html", redact=False).read_text()

    assert "script" not in checked(page).tags
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;") == 2


def test_pictures_can_be_left_out(tiny_trace: Path, export: Callable[..., Path]) -> None:
    page = export(tiny_trace, "html", images=False).read_text()

    assert checked(page).loads == []
    assert "Pictures" not in page


def test_large_previews_are_shrunk_and_the_image_is_not(
    tmp_path: Path, fake_run: ModuleType, export: Callable[..., Path]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    path = tmp_path / "large.h5"
    with Recorder(path, fake_run.fake_job(), preview=lambda _: noise) as recorder:
        fake_run.run(recorder, image=noise)

    sources = checked(export(path, "html").read_text()).loads

    assert max(map(len, sources[1:])) < len(sources[0]) / 3


def test_a_full_history_far_above_the_rest_is_told_and_not_drawn(
    tiny_trace: Path,
) -> None:
    with Trace.open(tiny_trace) as trace:
        summary = summarize(trace)
    for budget, is_drawn in ((summary.budget_bytes, True), (summary.full_history_bytes // 10, False)):
        few = dataclasses.replace(summary, budget_bytes=budget)

        levels, beyond = _levels(few, top=1)

        assert [level.style for level in levels] == ["budget", "full"][: 1 + is_drawn]
        assert beyond.endswith("is above the chart") != is_drawn
