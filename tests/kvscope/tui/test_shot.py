from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from kvscope.cli import main
from kvscope.errors import KVScopeError, TraceFormatError, UsageError
from kvscope.tui import shot
from kvscope.tui.shot import LARGEST, Look, shoot

PLAIN = Look(width=80, height=24, plain=True, colours="none")


def test_text_is_the_whole_screen_and_nothing_else(tiny_trace: Path) -> None:
    lines = shoot(tiny_trace, "text", Look(width=90, height=30, colours="none")).splitlines()

    assert len(lines) == 30
    assert max(map(len, lines)) <= 90
    assert "✓ done 5 of 5 scales" in lines[0]
    assert lines[-1].endswith("q quit")
    assert all(line.isprintable() for line in lines)


def test_ascii_text_is_ascii_but_for_nothing(tiny_trace: Path) -> None:
    assert shoot(tiny_trace, "text", PLAIN).isascii()


def test_a_place_leads_to_its_screen_cell_and_metric(tiny_trace: Path) -> None:
    text = shoot(tiny_trace, "text", PLAIN, place="map q2 l1 h1 s1 read")

    for words in ("read at the step", "query scale 2", "source scale 1", "layer 1", "head 1"):
        assert words in text


def test_keys_are_pressed_before_it_is_taken(tiny_trace: Path) -> None:
    text = shoot(tiny_trace, "text", PLAIN, presses=["?"])

    assert "? closes" in text
    assert "memory, scale by scale" in text


def test_keys_that_leave_are_refused(tiny_trace: Path) -> None:
    with pytest.raises(UsageError, match="leave the viewer"):
        shoot(tiny_trace, "text", PLAIN, presses=["q"])
    with pytest.raises(UsageError, match="no key"):
        shoot(tiny_trace, "text", PLAIN, presses=["hlep"])


def test_numbers_are_those_that_the_keys_write(
    drive, tiny_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(viewer) -> None:
        await viewer.press("W", "J")

    drive(tiny_trace, script)
    written = {path.suffix: path.read_bytes() for path in tmp_path.iterdir()}

    for form in ("csv", "json"):
        assert shoot(tiny_trace, form, PLAIN).encode() == written[f".{form}"]
    rows = list(csv.DictReader(io.StringIO(written[".csv"].decode(), newline="")))
    assert [row["query_scale"] for row in rows] == [str(one["query_scale"]) for one in json.loads(written[".json"])]


@pytest.mark.parametrize(("light", "ground"), [(False, "#0f1317"), (True, "#f8f7f3")])
def test_a_picture_is_svg_on_the_ground_of_its_theme(tiny_trace: Path, light: bool, ground: str) -> None:
    svg = shoot(tiny_trace, "svg", Look(width=80, height=24, light=light))

    root = ElementTree.fromstring(svg)
    texts = [element for element in root.iter() if element.tag.endswith("}text")]
    assert root.tag.endswith("svg")
    assert f'fill="{ground}"' in svg
    assert "accounted" in svg
    assert all(
        element.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"
        for element in texts
        if (element.get("class") or "").rpartition("-")[2].startswith("r")
    )


def test_a_picture_without_colours_has_those_of_text_and_ground_alone(tiny_trace: Path) -> None:
    svg = shoot(tiny_trace, "svg", Look(width=80, height=24, colours="none"))

    styles = [line for line in svg.splitlines() if "-r" in line and "{ fill" in line]
    colours = {line.partition("fill: ")[2].partition(" ")[0].rstrip(";") for line in styles}
    assert "#d3dae1" in colours
    assert all(is_between(colour, "#0f1317", "#d3dae1") for colour in colours)


def is_between(colour: str, ground: str, front: str) -> bool:
    """Whether a colour is one of the two, or the dim text between them."""
    triples = [[int(one[index : index + 2], 16) for index in (1, 3, 5)] for one in (ground, colour, front)]
    return all(low <= value <= high for low, value, high in zip(*triples, strict=True))


def test_a_live_trace_is_drawn_as_it_stands(live_trace: Path) -> None:
    assert "* live 3 of 5 scales" in shoot(live_trace, "text", PLAIN)


def test_what_is_no_trace_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"nothing")

    with pytest.raises(TraceFormatError, match=r"a\.h5"):
        shoot(tmp_path / "a.h5", "text", PLAIN)


def test_a_screen_that_is_none_is_refused(tiny_trace: Path) -> None:
    with pytest.raises(UsageError, match="'mup' is no screen; the screens are live, map"):
        shoot(tiny_trace, "text", PLAIN, screen="mup")


@pytest.mark.parametrize("size", [(79, 24), (80, 23), (LARGEST[0] + 1, 40)])
def test_a_size_that_cannot_be_drawn_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="give a size of 80x24 to 1000x500"):
        Look(width=size[0], height=size[1])


def test_waiting_has_an_end(tiny_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shot, "_is_read", lambda *_: False)

    with pytest.raises(KVScopeError, match=r"not drawn after 0\.1 s"):
        shoot(tiny_trace, "text", PLAIN, timeout_s=0.1)


def test_the_attention_that_a_place_asks_for_is_there(maps_trace: Path) -> None:
    app_seen = []
    settle = shot._settled

    async def spy(app, pilot, wait) -> None:
        await settle(app, pilot, wait)
        app_seen.append(app.view.attention)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shot, "_settled", spy)
        shoot(maps_trace, "text", PLAIN, place="q3 l1 h1")

    assert app_seen[-1].place == (3, 1, 1)


def test_the_command_prints_text_and_writes_files(
    tiny_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "live.svg"

    assert main(["screen", str(tiny_trace), "--size", "80x24"]) == 0
    assert capsys.readouterr().out.count("\n") == 24
    assert main(["screen", str(tiny_trace), "--format", "svg", "-o", str(out)]) == 0
    assert out.read_text().startswith("<svg")
    assert capsys.readouterr() == ("", f"kvscope: written to {out}\n")
    assert main(["screen", str(tiny_trace), "--format", "svg", "-o", str(out)]) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "png"], "--format png; give one of text, svg, csv, json"),
        (["--size", "big"], "--size big; give columns and rows of up to four digits, as in 120x40"),
        (["--size", "10x10"], "give a size of 80x24"),
        (["--colours", "few"], "--colours few; give one of auto, truecolor, 256, 16, none"),
        (["--screen", "mup"], "--screen mup; give one of live, map"),
        (["--goto", "nowhere"], "'nowhere' leads nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    tiny_trace: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["screen", str(tiny_trace), *options]) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err
