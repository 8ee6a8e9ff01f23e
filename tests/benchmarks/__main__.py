"""`make bench`: every bench_*.py of this folder, its rows as text and as JSON, with machine, versions and commit."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_PACKAGES = ("torch", "numpy", "h5py", "textual")


def main() -> None:
    report = {"machine": _machine(), "commit": _commit(), "date": time.strftime("%Y-%m-%d"), "results": []}
    sys.stdout.write(f"{json.dumps(report['machine'])}\n")
    for path in sorted(_FOLDER.glob("bench_*.py")):
        result = _load(path).run()
        report["results"].append(result)
        sys.stdout.write(f"\n{result['name']} (median of {result['repeats']}; other: {result['other']})\n")
        for row in result["rows"]:
            ours, other = f"{row['ours_s'] * 1e3:.2f} ms", f"{row['other_s'] * 1e3:.1f} ms"
            sys.stdout.write(
                f"  {row['name']:34} {ours:>12}  other {other:>12}  ratio {row['ratio']:.2f}  {row['note']}\n"
            )
    out = Path("out") / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"\nwritten to {out}\n")


def _load(path: Path) -> Any:  # Any: a module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _machine() -> dict[str, Any]:  # Any: JSON values
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
