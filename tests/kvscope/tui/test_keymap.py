from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from textual.keys import _character_to_key

from kvscope.cli import main
from kvscope.errors import UsageError
from kvscope.tui.actions import ACTIONS
from kvscope.tui.keymap import TAKEN, default_path, key_name, keymap_text, parse_keymap, read_keymap
from kvscope.tui.screens import SCREENS


@pytest.mark.parametrize("sign", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~aZ0é§")
def test_a_sign_names_the_key_that_textual_hears(sign: str) -> None:
    assert key_name(sign) in (_character_to_key(sign), sign)
    assert not sign.isascii() or key_name(sign) == _character_to_key(sign)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("up", "up"),
        ("PageUp", "pageup"),
        ("F5", "f5"),
        ("ctrl+e", "ctrl+e"),
        ("ctrl+[", "ctrl+left_square_bracket"),
        ("alt+x", "alt+x"),
        ("shift+down", "shift+down"),
        ("question_mark", "question_mark"),
        ("slash", "slash"),
        ("space", "space"),
    ],
)
def test_keys_have_names(written: str, name: str) -> None:
    assert key_name(written) == name


def test_a_keymap_gives_an_action_one_key_or_several() -> None:
    text = '[keys]\nhelp = "f2"\n"metric.next" = [",", "f3"]\nmetric.back = "<"\ncursor.left = "left"\n'

    assert parse_keymap(text, "k") == {
        "help": "f2",
        "metric.next": "comma,f3",
        "metric.back": "less_than_sign",
        "cursor.left": "left",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[keys", ["not TOML", "end of document"]),
        ('[key]\nhelp = "h"', ["'key' is not read", "[keys]"]),
        ("keys = 3", ["keys is int", "[keys]"]),
        ('[keys]\n"metric.nxt" = "n"', ["'metric.nxt' is no action", "nearest: metric.next", "kvscope keys"]),
        ('[keys]\nxyzzy = "n"', ["'xyzzy' is no action; `kvscope keys`"]),
        ('[keys]\nhelp = "pagedwn"', ["help: 'pagedwn' is no key", "nearest: pagedown"]),
        ('[keys]\nhelp = "\\u001b[31m\\n"', ["'\\x1b[31m\\n' is no key"]),
        ("[keys]\nhelp = 3", ['help: 3 is no key; write "x"']),
        ("[keys]\nhelp = []", ["help: [] is no key"]),
        ('[keys]\nhelp = ["h", 3]', ["help: ['h', 3] is no key"]),
        ('[keys]\nhelp = "m"', ["m would be both metric.next and help on every screen"]),
        ('[keys]\n"time.zoom" = "m"', ["m would be both metric.next and time.zoom on time"]),
        ('[keys]\n"runs.demo" = "b"', ["b would be both runs.demo and runs.browse on runs"]),
        *((f'[keys]\nhelp = "{key}"', ["cannot be given away", words]) for key, words in TAKEN.items()),
    ],
)
def test_a_wrong_keymap_is_refused_in_one_line_that_tells_what_to_do(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_keymap(text, "mine.toml")

    message = str(refused.value)
    assert message.startswith("mine.toml: ")
    assert message.isprintable()
    for word in words:
        assert word in message


def test_two_screens_may_have_a_key_for_different_things() -> None:
    assert parse_keymap('[keys]\n"time.zoom" = "d"', "k") == {"time.zoom": "d"}


def test_two_actions_may_change_places() -> None:
    assert parse_keymap('[keys]\n"metric.next" = "c"\n"view.glyphs" = "m"', "k")


def test_a_key_given_back_to_every_screen_is_free_for_one() -> None:
    assert parse_keymap('[keys]\n"metric.next" = "e"\n"time.zoom" = "m"', "k")


def test_the_printed_file_changes_nothing_and_its_lines_are_ready_for_use() -> None:
    assert tomllib.loads(keymap_text()) == {"keys": {}}

    ready = "".join(line.removeprefix('# "').join(['"' if line.startswith('# "') else "", "\n"]) for line in
                    keymap_text().splitlines())  # fmt: skip
    keymap = parse_keymap(ready, "k")

    assert {one: tuple(keys.split(",")) for one, keys in keymap.items()} == {one.id: one.keys for one in ACTIONS}


def test_the_users_own_file_is_read_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_keymap(None) == {}

    default_path().parent.mkdir()
    default_path().write_text('[keys]\nhelp = "h"\n"cursor.left" = "left"\n"mass.head_left" = "H"\n')

    with pytest.raises(UsageError, match="h would be both"):
        read_keymap(None)  # h is still one head left on time and schedule

    default_path().write_text('[keys]\nhelp = "f2"')
    assert read_keymap(None) == {"help": "f2"}


def test_without_a_config_folder_the_file_is_in_the_home() -> None:
    assert default_path({"HOME": "/home/ada"}) == Path("/home/ada/.config/kvscope/keymap.toml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UsageError, match=r"keys\.toml: no keymap can be read there"):
        read_keymap(path)


def test_a_wrong_keymap_ends_the_command_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[keys]\nhelp = "m"')

    assert main(["keys", "--keymap", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"kvscope: error: {path}: m would be both metric.next and help on every screen; change one of them\n"
    )


def test_the_fresh_file_comes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--toml"]) == 0
    assert capsys.readouterr().out == keymap_text()
    assert main(["keys", "--toml", "--json"]) == 2


def test_every_screen_of_the_table_can_be_changed() -> None:
    for index, name in enumerate(SCREENS):
        assert parse_keymap(f'[keys]\n"screen.{name}" = "f{index + 5}"', "k")
