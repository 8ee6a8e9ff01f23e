"""Prompt files: one prompt a line, as text or as JSON lines; or a folder of text files, one prompt each."""

from __future__ import annotations

import json
from pathlib import Path

from heatkv.errors import PromptsError
from heatkv.files import read_text

_EXPECTED_LINE = "a JSON object with prompt, caption or captions"


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt (one a line) or .jsonl (`prompt`, `caption` or `captions[0]`); blank lines are skipped.

    Of a folder: each .txt in it, by name, is one prompt, its lines joined. Raises PromptsError, naming the line or the
    file, if there are none or one is no text.
    """
    if path.is_dir():
        return _folder_prompts(path)
    text = _text(path)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise PromptsError(f"{path}: holds no prompts; expected one a line")
    if path.suffix == ".jsonl":
        return [_json_prompt(f"{path}, line {number}", line) for number, line in lines]
    return [line for _, line in lines]


def _folder_prompts(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise PromptsError(f"{folder}: holds no .txt; expected a folder of text files, one prompt each")
    prompts = [" ".join(_text(file).split()) for file in files]
    for file, prompt in zip(files, prompts, strict=True):
        if not prompt:
            raise PromptsError(f"{file}: holds no prompt; expected a text")
    return prompts


def _text(path: Path) -> str:
    text = read_text(path, expected="text, one prompt a line", error=PromptsError)
    if "\0" in text:
        raise PromptsError(f"{path}: not text (it holds zero bytes); expected text, one prompt a line")
    return text


def _json_prompt(place: str, line: str) -> str:
    try:
        record = json.loads(line)
        prompt = record.get("prompt") or record.get("caption") or record["captions"][0]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise PromptsError(f"{place}: no prompt in {line[:60]!r}; expected {_EXPECTED_LINE}") from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptsError(f"{place}: the prompt is {json.dumps(prompt)[:60]}; expected a text")
    return prompt.strip()
