"""docs/policies.md, made from the table of policies: `python -m kvscope.policies_docs [--check] docs/policies.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from kvscope.cli_docs import write_or_check
from kvscope.policy_list import PolicyRecord, policy_records

_INTRODUCTION = """\
# Policies

What decides which keys and values stay. `--policy NAME`, or with parameters `--policy NAME:key=value,key=value`,
wherever a command takes one; `kvscope policies` lists them, with `--json` all that this page says. Planned policies
make a schedule before the run. Online ones plan how many tokens each head may keep, to the last byte, and choose
which during the run. Either way the budget holds in true bytes after every step, on one pool, and what is evicted is
freed. Ties go to the lower position.

*Rows*: whether each batch row chooses for itself, the rows of guidance among them, or one choice is made for the
run; a planned schedule is the same for all. *Needs*: what `kvscope calibrate` measures, given as `--orders FILE`
(infinity-tiny comes with its own); a policy refuses what was measured on another model or at other scales.
*Sinks*: the first scales that are never evicted where `--sink-scales` says nothing.

Most of these were published for other models, or without a port to next-scale images, some without code: each
section says what the source does, what this does instead, and why. Where a paper leaves a value open, the default
is ours and says so: a number measured with a policy here is not a number of its paper. CAKE is not here, as what we
could read of it was too little to port, nor are LOOK-M and MEDA, which merge tokens.

This page is made from the code by `python -m kvscope.policies_docs docs/policies.md`.
"""

_COLUMNS = ("policy", "what it does", "chooses", "rows", "needs", "sinks")


def page() -> str:
    """The whole page, Markdown."""
    records = policy_records()
    return "\n".join([_INTRODUCTION, *_table(records), *(line for one in records for line in _section(one))])


def _table(records: list[PolicyRecord]) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"
    for one in records:
        sinks = "model's" if one.sink_scales is None else str(one.sink_scales)
        cells = (f"[{one.name}](#{one.name})", one.what, one.chooses, one.rows or "all", ", ".join(one.needs), sinks)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _section(one: PolicyRecord) -> Iterator[str]:
    yield f"## {one.name}\n"
    yield f"{_with_lists(one.source)}\n"
    if one.parameters:
        yield "| parameter | meaning |\n| --- | --- |"
        yield from (f"| `{each.text}` | {each.meaning} |" for each in one.parameters)
        yield ""


def _with_lists(text: str) -> str:
    """Docstrings begin a list right under a line; Markdown wants an empty line before it."""
    lines = text.split("\n")
    starts = [
        index
        for index, line in enumerate(lines)
        if line.startswith("- ") and index and not lines[index - 1].startswith(("- ", "  "))
    ]
    ends = [
        index
        for index, line in enumerate(lines)
        if line and index and not line.startswith(("- ", "  ")) and lines[index - 1].startswith(("- ", "  "))
    ]
    for index in sorted(starts + ends, reverse=True):
        lines.insert(index, "")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(write_or_check(sys.argv[1:], page(), "kvscope.policies_docs"))
