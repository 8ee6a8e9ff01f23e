"""kill -9 a recording at a given scale or moment, and see that what it had committed is all there.

`python -m tests.fuzz.kills --moments 100` kills runs without a model at every scale and at so many random moments,
`--real 10` so many real runs of the bundled model too, and prints one line for each that broke a promise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray

from kvscope.recover import recover
from kvscope.trace import Trace
from kvscope.validate import validate

ROOT = Path(__file__).parents[2]
SCALES = 5
"""Scales of the run without a model."""
SLOW_STEP_S = 0.01
"""How long its steps take here, so that random moments fall everywhere."""
LONGEST_S = 0.26
"""Random moments lie between the first commit and this much later: well past the end of the run."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What a killed recording left."""

    name: str
    path: Path
    committed: dict[str, int]
    """What its last commit before the kill said, as the process itself told; empty: there was none."""


def kill_at_scale(folder: Path, scale: int) -> Killed:
    """Kill a run in the middle of a scale, right after its last layer."""
    child = _start(folder / f"scale-{scale}.h5", "--kill-at", str(scale))
    return _ended(f"scale {scale}", folder / f"scale-{scale}.h5", child)


def kill_at_moment(folder: Path, name: str, delay_s: float) -> Killed:
    """Kill a run so long after its first commit."""
    path = folder / f"{name}.h5"
    child = _start(path)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(delay_s)
    child.send_signal(signal.SIGKILL)
    return _ended(f"{name}, after {delay_s * 1e3:.0f} ms", path, child, first)


def kill_real(folder: Path, name: str, delay_s: float) -> Killed:
    """Kill a real run of the bundled model so long after its trace appeared."""
    path = folder / f"{name}.h5"
    command = [sys.executable, "-m", "kvscope", "run", "--budget", "0.2", "--threads", "1", "-o", str(path)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not path.exists():
        time.sleep(0.001)
    time.sleep(delay_s)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return Killed(f"real run {name}, after {delay_s * 1e3:.0f} ms", path, {})


def problems(killed: Killed, recovered: Path) -> list[str]:
    """Promises that are broken by what was left; makes the recovered trace."""
    if not killed.path.exists():
        # The first commit is made before the file has its name.
        return ["no file"] if killed.committed.get("epoch", 0) > 0 else []
    before = _fingerprint(killed.path)
    found = [finding.text for finding in validate(killed.path)]
    with Trace.open(killed.path) as trace:
        done = trace.scales_done
        found += [f"{name} is lost after commit {killed.committed}" for name in _lacking(trace, killed.committed)]
    made = recover(killed.path, recovered)
    found += [f"lost: {line}" for line in made.lost]
    found += [f"recovered: {finding.text}" for finding in validate(recovered)]
    if _fingerprint(killed.path) != before:
        found.append("the original was touched")
    with Trace.open(killed.path) as trace, Trace.open(recovered) as copy:
        found += _differences(trace, copy)
    with xarray.open_dataset(recovered, engine="h5netcdf") as dataset:
        if dataset.sizes["query_scale"] != done or dataset.kept_tokens.shape[0] != done:
            found.append(f"xarray reads {dataset.kept_tokens.shape[0]} scales of {done}")
    return found


def netcdf_problems(paths: list[Path], python: str) -> list[str]:
    """What netCDF4, in a process of its own, cannot read of these files."""
    code = (
        "import sys, netCDF4\n"
        "for path in sys.argv[1:]:\n"
        "    with netCDF4.Dataset(path) as file:\n"
        "        [variable[...] for variable in file.variables.values()]\n"
    )
    return _run_problems([python, "-W", "error", "-c", code, *map(str, paths)])


def h5dump_problems(paths: list[Path], program: str) -> list[str]:
    """What h5dump cannot read of these files."""
    return [line for path in paths for line in _run_problems([program, str(path)])]


def has_netcdf(python: str) -> bool:
    return not _run_problems([python, "-c", "import netCDF4"])


def _run_problems(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return [f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}"] if done.returncode else []


def _lacking(trace: Trace, committed: dict[str, int]) -> list[str]:
    last = trace._commit
    return [name for name, count in committed.items() if int(last[name]) < count]


def _differences(trace: Trace, copy: Trace) -> list[str]:
    """What the recovered trace says otherwise than the one it was made of."""
    names = ("steps", "kept_tokens", "read_tokens", "attention_mass", "gpu", "allocator", "cost")
    different = [name for name in names if getattr(trace, name).tobytes() != getattr(copy, name).tobytes()]
    if trace.scales_done != copy.scales_done:
        return [*different, f"{copy.scales_done} scales of {trace.scales_done} are recovered"]
    different += [
        f"bits of scale {scale}"
        for scale in range(trace.scales_done)
        if not np.array_equal(trace.bits(scale), copy.bits(scale))
    ]
    return different if copy.header.run_id == trace.header.run_id else [*different, "run_id"]


def _fingerprint(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


def _start(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fuzz.kills", "--child", str(path), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _ended(name: str, path: Path, child: subprocess.Popen[str], first: str = "") -> Killed:
    """The rest of what a child told before it was killed."""
    rest, _ = child.communicate(timeout=60)
    lines = [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]
    return Killed(name, path, json.loads(lines[-1]) if lines else {})


# The child: a run without a model that tells every commit it made.


def _record(path: Path, kill_at: int | None) -> None:
    from kvscope.recorder import Recorder
    from kvscope.writer import TraceWriter
    from tests.kvscope import fake_run

    commit = TraceWriter.commit

    def told_commit(writer: TraceWriter, *arguments: object, **options: object) -> None:
        commit(writer, *arguments, **options)  # type: ignore[arg-type]
        counts = {f"{name}_rows": count for name, count in writer._committed.items() if name != "query_scale"}
        counts |= {"scales_done": writer._committed["query_scale"], "epoch": writer._epoch - 1}
        os.write(1, json.dumps(counts).encode() + b"\n")

    TraceWriter.commit = told_commit  # type: ignore[method-assign]
    fake_run.STEP_S = SLOW_STEP_S if kill_at is None else 0
    job = fake_run.fake_job(attention_map="uint8")
    with Recorder(path, job, preview=fake_run.fake_preview) as recorder:
        fake_run.run(recorder, after=lambda scale: _kill_after(path, recorder, scale, kill_at))


def _kill_after(path: Path, recorder: object, scale: int, kill_at: int | None) -> None:
    from tests.kvscope import fake_run

    if kill_at is not None and scale == kill_at - 1:
        fake_run.wait_for_scales(path, kill_at)
        fake_run.run_steps(recorder, fake_run.fake_schedule(), kill_at)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--netcdf", default=sys.executable, help="a Python that has netCDF4")
    parser.add_argument("--h5dump", default=shutil.which("h5dump"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        _record(options.child, options.kill_at)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return _kill_all(Path(folder), options)


def _kill_all(folder: Path, options: argparse.Namespace) -> int:
    delays = random.Random(options.seed)
    broken, reached, recovered = 0, dict.fromkeys(range(SCALES + 1), 0), []
    kills = [kill_at_scale(folder, scale) for scale in range(1, SCALES)]
    kills += (kill_at_moment(folder, f"moment-{i}", delays.uniform(0, LONGEST_S)) for i in range(options.moments))
    kills += (kill_real(folder, f"real-{i}", delays.uniform(0, 1.0)) for i in range(options.real))
    for index, killed in enumerate(kills):
        target = folder / f"recovered-{index}.h5"
        found = problems(killed, target)
        broken += bool(found)
        if target.exists():
            recovered.append(target)
        scales = killed.committed.get("scales_done", 0)
        reached[scales] += 1
        for line in found:
            sys.stdout.write(f"{killed.name}: {line}\n")
    others = netcdf_problems(recovered, options.netcdf) if has_netcdf(options.netcdf) else ["netCDF4 is not installed"]
    others += h5dump_problems(recovered, options.h5dump) if options.h5dump else ["h5dump is not installed"]
    sys.stdout.writelines(f"{line}\n" for line in others)
    sys.stdout.write(f"{len(kills)} kills, {broken} broke a promise; scales done → kills: {reached}\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
