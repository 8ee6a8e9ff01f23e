"""`python -m tests.fuzz --cases 10000`: damaged and hostile traces, schedules, jobs and orders, each in a process that
may crash. Prints every bug with the number of its case; `--case N` tries one case again, here.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 20.0
"""A case that takes longer hangs."""

Result = dict[str, Any]  # Any: JSON values, see worker.try_case


def fuzz(cases: range, folder: Path, only: str | None = None) -> Iterator[Result]:
    """The result of every case, tried one after another in processes that are replaced when they die or hang."""
    worker = _Worker(folder, only)
    for number in cases:
        begin = time.monotonic()
        result = worker.try_case(number)
        if "outcome" not in result:
            code = worker.end()
            how = f"hung for {LIMIT_S:g} s" if time.monotonic() - begin >= LIMIT_S else f"crashed with {code}"
            result |= {"case": number, "outcome": "bug", "said": [how]}
            worker = _Worker(folder, only)
        yield result
    worker.end()


class _Worker:
    def __init__(self, folder: Path, only: str | None) -> None:
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "tests.fuzz.worker",
            str(folder),
            *([only] if only else []),
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    def try_case(self, number: int) -> Result:
        """How it went; without an `outcome` if the process died, or does not answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        result: Result = {"kind": "unmade"}
        while "outcome" not in result:
            ready, _, _ = select.select([self._process.stdout], [], [], LIMIT_S)
            line = self._process.stdout.readline() if ready else b""
            if not line:
                break
            result |= json.loads(line)
        return result

    def end(self) -> int:
        """Stop it; its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="try this one in this process")
    parser.add_argument(
        "--only", help="a kind of damage to traces, as 'forged checksums', which is not tried otherwise"
    )
    options = parser.parse_args()
    from tests.fuzz.bases import make_bases

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bases(folder)
        if options.case is not None:
            return _try_here(options.case, folder, options.only)
        return _report(fuzz(range(options.first, options.first + options.cases), folder, options.only))


def _try_here(number: int, folder: Path, only: str | None) -> int:
    from tests.fuzz.worker import try_case

    bases = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    with tempfile.TemporaryDirectory() as place:
        result = try_case(number, bases, Path(place), only)
    sys.stdout.write("\n".join([result["kind"], result["outcome"], *result["said"], ""]))
    return int(result["outcome"] == "bug")


def _report(results: Iterator[Result]) -> int:
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    begin = time.monotonic()
    for result in results:
        outcomes[result["kind"].partition(" (")[0], result["outcome"]] += 1
        if result["outcome"] == "bug":
            sys.stdout.write(f"case {result['case']}, {result['kind']}: {result['said'][0]}\n")
            sys.stdout.flush()
    for (kind, outcome), count in sorted(outcomes.items()):
        sys.stdout.write(f"{count:6} {outcome:8} {kind}\n")
    bugs = sum(count for (_, outcome), count in outcomes.items() if outcome == "bug")
    took = time.monotonic() - begin
    sys.stdout.write(f"{sum(outcomes.values())} cases in {took:.0f} s, {bugs} bugs\n")
    return int(bool(bugs))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
