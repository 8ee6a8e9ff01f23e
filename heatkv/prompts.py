"""Prompt files: one prompt a line, as text or as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from heatkv.errors import HeatKVError


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt (one a line) or .jsonl (`prompt`, `caption` or `captions[0]`); blank lines are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HeatKVError(f"{path}: cannot be read as prompts ({error}); expected text, one prompt a line") from None
    lines = [line for line in lines if line]
    prompts = [_json_prompt(path, line) for line in lines] if path.suffix == ".jsonl" else lines
    if not prompts:
        raise HeatKVError(f"{path}: holds no prompts; expected one a line")
    return prompts


def _json_prompt(path: Path, line: str) -> str:
    try:
        record = json.loads(line)
        prompt = record.get("prompt") or record.get("caption") or record["captions"][0]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise HeatKVError(f"{path}: no prompt in {line[:60]!r}; expected prompt, caption or captions") from None
    return str(prompt)
