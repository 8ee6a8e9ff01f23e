"""The traces opened last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvscope.recent import MOST, recent, remember


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def _made(folder: Path, name: str) -> Path:
    path = folder / name
    path.touch()
    return path


def _file(environ: dict[str, str]) -> Path:
    return Path(environ["XDG_STATE_HOME"]) / "kvscope" / "recent.json"


def test_the_trace_opened_last_comes_first_and_only_once(tmp_path: Path, environ: dict[str, str]) -> None:
    one, two = _made(tmp_path, "one.h5"), _made(tmp_path, "two.h5")

    for path in (one, two, one):
        remember(path, environ)

    assert recent(environ) == (str(one), str(two))


def test_a_relative_name_is_found_from_everywhere(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _made(tmp_path, "one.h5")
    monkeypatch.chdir(tmp_path)

    remember(Path("one.h5"), environ)

    assert recent(environ) == (str(path),)


def test_no_more_than_so_many_are_remembered(tmp_path: Path, environ: dict[str, str]) -> None:
    for number in range(MOST + 5):
        remember(_made(tmp_path, f"{number}.h5"), environ)

    found = recent(environ)

    assert len(found) == MOST
    assert found[0] == str(tmp_path / f"{MOST + 4}.h5")


def test_traces_that_are_gone_are_left_out_but_not_forgotten(tmp_path: Path, environ: dict[str, str]) -> None:
    gone, here = _made(tmp_path, "gone.h5"), _made(tmp_path, "here.h5")
    remember(gone, environ)
    remember(here, environ)
    gone.unlink()

    while_gone = recent(environ)
    gone.touch()

    assert while_gone == (str(here),)
    assert recent(environ) == (str(here), str(gone))


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"traces": 3}',
        '{"traces": [3, null, "relative.h5", "/a\\u0000b"]}',
        "[" * 100_000,
        "\x80",
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(
    tmp_path: Path, environ: dict[str, str], damage: str
) -> None:
    _file(environ).parent.mkdir(parents=True)
    _file(environ).write_bytes(damage.encode("latin-1"))
    path = _made(tmp_path, "one.h5")

    before = recent(environ)
    remember(path, environ)

    assert before == ()
    assert recent(environ) == (str(path),)
    assert json.loads(_file(environ).read_text())["traces"] == [str(path)]


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"XDG_STATE_HOME": "relative"}, {"HOME": "/dev/null"}])
def test_without_a_home_nothing_is_remembered_and_nothing_is_said(tmp_path: Path, environ: dict[str, str]) -> None:
    remember(_made(tmp_path, "one.h5"), environ)

    assert recent(environ) == ()


def test_the_home_of_the_user_serves_where_no_state_folder_is_named(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_STATE_HOME": "relative"}

    remember(_made(tmp_path, "one.h5"), environ)

    assert (tmp_path / ".local" / "state" / "kvscope" / "recent.json").is_file()


def test_nothing_but_the_one_file_is_left_behind(tmp_path: Path, environ: dict[str, str]) -> None:
    for _ in range(3):
        remember(_made(tmp_path, "one.h5"), environ)

    assert [path.name for path in _file(environ).parent.iterdir()] == ["recent.json"]
