"""Prompts are read as they are written, and what is no prompt is refused with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from heatkv.errors import PromptsError
from heatkv.prompts import read_prompts

if TYPE_CHECKING:
    from pathlib import Path


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red circle\r\n\n  größer  \n3\n".encode())

    assert read_prompts(path) == ["a red circle", "größer", "3"]


def test_json_lines_have_a_prompt_a_caption_or_captions(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"caption": "two"}\n{"captions": ["three", "four"]}\n')

    assert read_prompts(path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"prompt": 3}', "the prompt is 3; expected a text"),
        ('{"prompt": NaN}', "the prompt is NaN"),
        ('{"prompt": " "}', "the prompt is"),
        ('{"captions": [null]}', "the prompt is null"),
        ('{"caption": ["a"]}', r'the prompt is \["a"\]'),
        ('{"prompt": null}', "no prompt in"),
        ('"a red circle"', "no prompt in"),
        ("3", "no prompt in"),
        ("null", "no prompt in"),
        ("{", "no prompt in"),
    ],
)
def test_a_line_without_a_text_is_named(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n\n{line}\n')

    with pytest.raises(PromptsError, match=rf"prompts\.jsonl, line 3: {found}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "holds no prompts"), (b"\n \n", "holds no prompts"), (b"\xff\xd8", "not text"), (b"a\0b", "not text")],
)
def test_a_file_without_prompts_is_one_line(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)

    with pytest.raises(PromptsError, match=found):
        read_prompts(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="cannot be read"):
        read_prompts(tmp_path / "absent.txt")


def test_a_folder_of_texts_is_one_prompt_a_file_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("a blue\nsquare\n")
    (tmp_path / "a.txt").write_text("a red circle")
    (tmp_path / "notes.md").write_text("no prompt")

    assert read_prompts(tmp_path) == ["a red circle", "a blue square"]


def test_a_folder_without_texts_or_with_an_empty_one_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"holds no \.txt"):
        read_prompts(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(PromptsError, match=r"a\.txt: holds no prompt"):
        read_prompts(tmp_path)
