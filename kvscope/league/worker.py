"""A worker of the league: `python -m kvscope.league.worker`, a process of its own, started by dealing.py.

JSON lines on stdin: first the league, then a task a line; on stdout: ready, each row, and done after each task. It ends
with its stdin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from heatkv.errors import HeatKVError
from kvscope.errors import KVScopeError
from kvscope.league.entrants import Entrant
from kvscope.league.measure import Ruler
from kvscope.league.settings import Settings

PROTOCOL = 1


def main(stdin: TextIO, stdout: TextIO) -> int:
    """Measure what is asked for; returns the exit code."""

    def tell(message: dict[str, Any]) -> None:  # Any: a JSON object
        stdout.write(json.dumps(message) + "\n")
        stdout.flush()

    try:
        for message in _answers(stdin):
            tell(message)
    except (HeatKVError, KVScopeError) as error:
        tell({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except BrokenPipeError:  # who asked is gone
        return 1
    return 0


def _answers(stdin: TextIO) -> Iterator[dict[str, Any]]:  # Any: JSON objects
    hello = json.loads(stdin.readline())
    if hello["protocol"] != PROTOCOL:
        raise KVScopeError(f"worker protocol {hello['protocol']}, this worker speaks {PROTOCOL}; install one version")
    entrants = [Entrant(**record) for record in hello["entrants"]]
    ruler = Ruler(Settings.from_json(hello["settings"]), entrants, threads=hello["threads"])
    yield {"ready": True}
    for line in stdin:
        task = json.loads(line)
        for row in ruler.rows(task["prompt"], task["seed"], task["entrants"]):
            yield {"row": row.to_json()}
        yield {"done": True}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # foreign packages print; stdout is for rows alone
    sys.exit(main(sys.stdin, answers))
