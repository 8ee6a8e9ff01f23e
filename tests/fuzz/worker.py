"""One process of the fuzzer: takes case numbers on stdin, tries each, and tells on stdout how it went.

A case is refused well if it ends in one KVScopeError or HeatKVError of one line that no terminal obeys. Anything else,
a crash or a hang of this process among them, is a bug.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heatkv.config import model_config
from heatkv.errors import HeatKVError
from heatkv.orders import HeadOrders
from heatkv.schedule import PruningSchedule
from kvscope.analysis import summarize
from kvscope.errors import KVScopeError
from kvscope.info import describe, info_text
from kvscope.job import Job
from kvscope.plan import plan_job
from kvscope.recover import recover, snapshot
from kvscope.report import summary_text
from kvscope.trace import Trace
from kvscope.tui.feed import take_snapshot
from kvscope.units import printable
from kvscope.validate import validate
from tests.fuzz.hostile_hdf5 import write_mutated
from tests.fuzz.hostile_json import mutated_json

MEMORY_BYTES = 4 << 30
"""What one worker may take: who reads more of a hostile file than that must fail here, not the machine."""


def main(folder: Path, only: str | None = None) -> None:
    """`folder` holds the files that the cases are made of, see bases.py; `only`: traces with this kind of damage."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    bases = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    with tempfile.TemporaryDirectory() as place:
        for line in sys.stdin:
            _tell(try_case(int(line), bases, Path(place), only, begun=lambda kind: _tell({"kind": kind})))


def try_case(
    number: int,
    bases: dict[str, bytes],
    place: Path,
    only: str | None = None,
    begun: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:  # Any: JSON values
    """How one case went: `kind`, `outcome` (read, refused, bug), and what was said. `begun` hears the kind first."""
    chance = random.Random(number)
    kind, attempts = make_case(chance, bases, place, only)
    begun(kind)
    said = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (KVScopeError, HeatKVError) as error:
            said.append(str(error))
            if "\n" in str(error) and kind != "job":  # a job may name a file that is called so
                return _bug(number, kind, f"{name}: more than one line: {error!r}")
        except Exception:  # whatever is no error of ours is what is looked for
            return _bug(number, kind, f"{name}: {traceback.format_exc()}")
    return {"case": number, "kind": kind, "outcome": "refused" if said else "read", "said": said}


def make_case(
    chance: random.Random, bases: dict[str, bytes], place: Path, only: str | None = None
) -> tuple[str, dict[str, Callable[[], object]]]:
    """(what kind of case it is, what to try with it)"""
    match "trace" if only else chance.choice(("trace", "trace", "trace", "schedule", "job", "orders")):
        case "trace":
            base = chance.choice([name for name in bases if name.endswith(".h5")])
            path = place / "case.h5"
            kind = write_mutated(bases[base], path, chance, only)
            return f"trace: {kind} ({base})", _trace_attempts(path, place / "new.h5")
        case "schedule":
            path = place / "schedule.json"
            path.write_bytes(mutated_json(json.loads(bases["schedule.json"]), chance))
            job = Job("a prompt", "infinity-tiny", "heatkv", schedule=str(path))
            return "schedule", {"load": lambda: PruningSchedule.load(path), "plan": lambda: plan_job(job)}
        case "job":
            content = mutated_json(json.loads(bases["job.json"]), chance)
            return "job", {"job": lambda: _plan_of(content)}
        case _:
            path = place / "orders.json"
            path.write_bytes(mutated_json(json.loads(bases["orders.json"]), chance))
            job = Job("a prompt", "infinity-tiny", "heatkv", budget=0.2, orders=str(path))
            config = model_config("infinity-tiny")
            return "orders", {"load": lambda: HeadOrders.load(path, config=config), "plan": lambda: plan_job(job)}


def _plan_of(content: bytes) -> None:
    """What a job's text comes to; that it is JSON is for the trace's reader to see."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return
    job = Job.from_json(record)
    json.dumps(job.to_json())
    plan_job(job)


def _trace_attempts(path: Path, new: Path) -> dict[str, Callable[[], object]]:
    return {
        "open": lambda: _read(path),
        "describe": lambda: _describe(path),
        "validate": lambda: _validate(path),
        "recover": lambda: _recover(path, new),
        "snapshot": lambda: snapshot(path, new, overwrite=True),
    }


def _read(path: Path) -> None:
    """All that the screens, the exports and the reports ask of a trace."""
    with Trace.open(path) as trace:
        take_snapshot(path, trace, None)
        for name in ("attention_mass_uncond", "allocator", "cost"):
            getattr(trace, name)
        for scale in range(trace.scales_done):
            trace.bits(scale)
            trace.attention_map(scale, 0, 0)
        _check_text(summary_text(summarize(trace)))
        json.dumps(summarize(trace).to_json(), allow_nan=False)


def _describe(path: Path) -> None:
    with Trace.open(path) as trace:
        info = describe(trace)
    _check_text(info_text(info))
    json.dumps(info.to_json(), allow_nan=False)


def _validate(path: Path) -> None:
    for finding in validate(path):
        assert "\n" not in finding.text, finding


def _recover(path: Path, new: Path) -> None:
    recover(path, new, overwrite=True)
    with Trace.open(new) as trace:
        assert trace.status in ("done", "failed", "cancelled"), trace.status


def _check_text(text: str) -> None:
    assert all(line == printable(line) for line in text.split("\n")), "a terminal would obey this"


def _tell(record: dict[str, Any]) -> None:  # Any: JSON values
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _bug(number: int, kind: str, what: str) -> dict[str, Any]:
    return {"case": number, "kind": kind, "outcome": "bug", "said": [what]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
