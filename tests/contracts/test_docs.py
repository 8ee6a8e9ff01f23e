"""Documentation that code can make is what the code says, and what it shows runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kvscope.cli import COMMANDS, EXIT_CODES, _parser
from kvscope.cli_docs import page
from kvscope.policies_docs import page as policies_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_command_line_page_is_made_from_the_commands() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page()


def test_the_page_of_policies_is_made_from_their_table() -> None:
    assert (ROOT / "docs" / "policies.md").read_text(encoding="utf-8") == policies_page()


def test_every_command_and_exit_code_is_documented() -> None:
    documented = page()

    assert all(f"## kvscope {name}\n" in documented for name in COMMANDS)
    assert all(f"| {code} |" in documented for code in EXIT_CODES)


def shown_commands() -> list[str]:
    """Every `kvscope …` line in a code block of the README and the docs, and every command's example."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    blocks = [block for text in texts for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("kvscope ")} | {one.example for one in COMMANDS.values()})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_shown_is_one_that_the_parser_takes(line: str) -> None:
    arguments = shlex.split(line)[1:]

    _parser(arguments).parse_args(arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))

    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_readmes_library_example_runs_as_it_stands() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)

    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout == "torch.Size([1, 40, 40, 3])\n"
