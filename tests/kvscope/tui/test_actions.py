from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kvscope.tui.actions import ACTIONS, actions_of, bindings
from kvscope.tui.app import KVScopeApp
from kvscope.tui.palette import DARK, ink
from kvscope.tui.screens import SCREENS, load_screen
from kvscope.tui.screens.help import help_lines
from kvscope.tui.widgets.canvas import View
from kvscope.tui.widgets.chrome import key_line


def test_ids_are_unique() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)


@pytest.mark.parametrize("screen", SCREENS)
def test_no_key_does_two_things_on_a_screen(screen: str) -> None:
    keys = Counter(key for action in actions_of(screen) for key in action.keys)

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


@pytest.mark.parametrize("screen", SCREENS)
def test_help_lists_every_action_of_its_screen(screen: str) -> None:
    text = "\n".join(strip.text for strip in help_lines(View(ink(DARK), screen=screen), 78, 24))

    for action in actions_of(screen):
        assert action.help in text


@pytest.mark.parametrize("screen", SCREENS)
def test_help_fits_in_the_smallest_terminal(screen: str) -> None:
    assert len(help_lines(View(ink(DARK), screen=screen), 78, 24)) <= 24


@pytest.mark.parametrize("screen", SCREENS)
def test_the_footer_names_every_action_that_has_a_hint(screen: str) -> None:
    text = key_line(View(ink(DARK), screen=screen), 140, 1)[0].text

    for action in actions_of(screen):
        assert not action.hint or f"{action.shown} {action.hint}" in text


def test_a_narrow_footer_keeps_help_and_quit() -> None:
    text = key_line(View(ink(DARK), screen="map"), 40, 1)[0].text

    assert "? help" in text
    assert "q quit" in text
    assert len(text) <= 40


def test_the_palette_offers_every_action() -> None:
    app = KVScopeApp(Path("none.h5"))

    assert {binding.description for binding in bindings()} >= {
        action.help for action in ACTIONS if action.screen is None
    }
    assert app.ENABLE_COMMAND_PALETTE
