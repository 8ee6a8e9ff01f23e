"""Every policy in words: what POLICIES, the classes' fields and their docstrings say. Reads code, loads no torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

from heatkv.policies import GIVEN, POLICIES, load_policy


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a policy."""

    name: str
    default: Any  # Any: a number, a text or None
    meaning: str

    @property
    def text(self) -> str:
        """As `--policy` takes it."""
        return f"{self.name}={'none' if self.default is None else self.default}"


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One policy."""

    name: str
    what: str
    """What it does, a sentence."""
    chooses: str
    """When: before the run, or during it."""
    rows: str | None
    """Whose decision it is, each row's or the run's; None: planned, the same for all."""
    needs: tuple[str, ...]
    sink_scales: int | None
    """Its own default; None: the model's, or that of the orders."""
    parameters: tuple[Parameter, ...]
    source: str
    """Where it comes from, and what differs from there: Markdown."""

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return dataclasses.asdict(self)


def policy_records() -> list[PolicyRecord]:
    """All of POLICIES, by name."""
    return [_record(name) for name in sorted(POLICIES)]


def policies_text(records: list[PolicyRecord]) -> str:
    """A line for each: its name, when it chooses, what it does, and its parameters as they are given."""
    width = max(len(one.name) for one in records)
    lines = []
    for one in records:
        given = "" if not one.parameters else f" ({','.join(each.text for each in one.parameters)})"
        lines.append(f"{one.name:{width}}  {one.chooses:7}  {one.what}{given}")
    return "\n".join(lines)


def _record(name: str) -> PolicyRecord:
    kind = load_policy(name)
    meanings = _field_docstrings(kind)
    return PolicyRecord(
        name=name,
        what=(kind.__doc__ or "").split("\n\n")[0].replace("\n    ", " "),
        chooses="online" if hasattr(kind, "scores") else "planned",
        rows=getattr(kind, "rows", None),
        needs=kind.needs,
        sink_scales=getattr(kind, "default_sinks", None),
        parameters=tuple(
            Parameter(field.name, field.default, meanings.get(field.name, ""))
            for field in dataclasses.fields(kind)
            if field.name not in GIVEN
        ),
        source=(sys.modules[kind.__module__].__doc__ or "").strip(),
    )


def _field_docstrings(kind: type) -> dict[str, str]:
    """The strings under a class's fields, by field; Python itself does not keep them."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
