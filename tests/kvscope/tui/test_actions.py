"""The table of actions, and all that is read from it: bindings, footer, help, command palette, docs, `kvscope keys`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kvscope.cli import main
from kvscope.keys_docs import page
from kvscope.tui.actions import ACTIONS, NO_CHANGES, Keymap, actions, actions_of, hints_of, key_text, last_hints
from kvscope.tui.app import KVScopeApp
from kvscope.tui.keymap import parse_keymap
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens import SCREENS, load_screen
from kvscope.tui.screens.help import help_lines
from kvscope.tui.view import View
from kvscope.tui.widgets.chrome import key_line

OTHERS = parse_keymap('[keys]\nhelp = "f2"\n"metric.next" = ["e", "E"]\n"cursor.up" = "ctrl+u"\nquit = "Q"\n', "test")
KEYMAPS = pytest.mark.parametrize("keymap", [NO_CHANGES, OTHERS], ids=["own", "changed"])
EVERY_SCREEN = pytest.mark.parametrize("screen", SCREENS)


def help_text(screen: str, keymap: Keymap, width: int = 78) -> str:
    view = View(ink(DARK), screen=screen, keymap=keymap)
    return "\n".join(strip.text for strip in help_lines(view, width, 24))


def test_ids_are_unique() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)


@KEYMAPS
@EVERY_SCREEN
def test_no_key_does_two_things_on_a_screen(screen: str, keymap: Keymap) -> None:
    keys = Counter(key for action in actions_of(screen, keymap) for key in action.keys)

    assert keys.most_common(1)[0][1] == 1


def test_every_screen_has_its_number_in_the_table() -> None:
    commands = {action.command: action.keys for action in ACTIONS}

    for name, row in SCREENS.items():
        assert commands[f"show('{name}')"] == (row.key,)


def test_the_app_and_its_screens_bind_the_table_and_nothing_else() -> None:
    bound = {binding.id for binding in KVScopeApp.BINDINGS}
    for name in SCREENS:
        bound |= {binding.id for binding in load_screen(name).BINDINGS}

    assert bound == {action.id for action in ACTIONS}


def test_every_action_is_one_that_the_app_has() -> None:
    for action in ACTIONS:
        name = action.command.partition("(")[0]
        assert hasattr(KVScopeApp, f"action_{name}"), action.id


@KEYMAPS
@EVERY_SCREEN
@pytest.mark.parametrize("width", [78, 118])
def test_help_lists_every_key_of_its_screen_with_all_its_words(screen: str, keymap: Keymap, width: int) -> None:
    lines = help_text(screen, keymap, width).splitlines()

    for action in actions_of(screen, keymap):
        assert any(f" {action.shown}  " in line and action.help in line for line in lines), action.id


@KEYMAPS
@EVERY_SCREEN
def test_the_footer_names_every_action_that_has_a_hint(screen: str, keymap: Keymap) -> None:
    text = key_line(View(ink(DARK), screen=screen, keymap=keymap), 260, 1)[0].text

    for action in actions_of(screen, keymap):
        assert not action.hint or f"{action.shown} {action.hint}" in text


@EVERY_SCREEN
def test_the_footer_of_the_smallest_terminal_keeps_screens_help_and_quit(screen: str) -> None:
    text = key_line(View(ink(DARK), screen=screen), 80, 1)[0].text

    assert len(text) <= 80
    assert text.split()[-4:] == ["?", "help", "q", "quit"]
    for row in SCREENS.values():
        assert f" {row.key} " in text


@EVERY_SCREEN
def test_the_footer_claims_no_movement_that_a_screen_has_not(screen: str) -> None:
    shown = {action.shown.split()[0] for action in actions_of(screen)}
    arrows = {key_text(key) for key in ("up", "down", "left", "right")}

    for keys, _ in [*hints_of(screen), *last_hints(screen)]:
        assert set(arrows if keys == "arrows" else keys.split()) <= shown


@KEYMAPS
def test_the_command_palette_offers_every_action_with_its_keys(drive, tiny_trace: Path, keymap: Keymap) -> None:
    async def script(viewer) -> None:
        for screen in ("live", "map"):
            viewer.app.action_show(screen)
            await viewer.pilot.pause()
            commands = {(one.title, one.help) for one in viewer.app.get_system_commands(viewer.app.screen)}
            assert commands == {(one.help, f"key {one.shown}") for one in actions_of(screen, keymap)}

    drive(tiny_trace, script, keymap=keymap)


def test_changed_keys_do_what_they_are_said_to_do_and_the_old_ones_nothing(drive, tiny_trace: Path) -> None:
    async def script(viewer) -> None:
        await viewer.press("m")
        assert viewer.app.view.metric == "kept"
        await viewer.press("e", "E")
        assert viewer.app.view.metric not in ("kept", "read")
        await viewer.press("j", "j", "k", "up")
        assert viewer.app.view.cursor.layer == 2
        await viewer.press("ctrl+u")
        assert viewer.app.view.cursor.layer == 1
        await viewer.press("question_mark")
        assert len(viewer.app.screen_stack) == 2
        await viewer.press("f2")
        assert len(viewer.app.screen_stack) == 3
        assert "^u  one layer up" in viewer.text("help")
        assert "f2 closes" in viewer.text("help").lower()
        await viewer.press("f2")
        assert len(viewer.app.screen_stack) == 2
        assert "F2 help" in viewer.text("keys")
        assert "Q quit" in viewer.text("keys")

    drive(tiny_trace, script, keymap=OTHERS)


@KEYMAPS
def test_kvscope_keys_prints_the_table(
    keymap: Keymap, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    arguments = ["keys"]
    if keymap:
        file = tmp_path / "mine.toml"
        file.write_text("[keys]\n" + "".join(f'"{one}" = {keys.split(",")!r}\n' for one, keys in keymap.items()))
        arguments += ["--keymap", str(file)]

    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert main([*arguments, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["actions"]

    assert len(lines) == len(ACTIONS)
    assert [record["id"] for record in records] == [action.id for action in ACTIONS]
    for action, record in zip(actions(keymap), records, strict=True):
        assert record["keys"] == list(action.keys)
        assert record["changed"] == (action.id in keymap)
        name = action.id + ("*" if action.id in keymap else "")
        words = [action.screen or "every", *action.shown.split(), name, *action.help.split()]
        assert words in [line.split() for line in lines]


def test_the_page_of_keys_is_what_the_table_says() -> None:
    file = Path(__file__).resolve().parents[3] / "docs" / "keys.md"
    text = file.read_text(encoding="utf-8")

    assert text == page(), "run `python -m kvscope.keys_docs docs/keys.md`"
    for action in ACTIONS:
        assert f"| {action.help} | `{action.id}` |" in text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("up", "↑"),
        ("pagedown", "pgdn"),
        ("escape", "esc"),
        ("enter", "enter"),
        ("space", "space"),
        ("f11", "F11"),
        ("ctrl+c", "^c"),
        ("shift+up", "shift+↑"),
        ("question_mark", "?"),
        ("minus", "-"),
        ("G", "G"),
        ("é", "é"),
    ],
)
def test_keys_are_written_as_a_person_writes_them(key: str, text: str) -> None:
    assert key_text(key) == text
