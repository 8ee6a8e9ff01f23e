"""`python -m tests.compat.hdf5_1_14 [FILE...]`: whether HDF5 1.14 reads our traces, in a temporary environment.

The h5py of that environment bundles HDF5 1.14; ours, a later one. Every table of every file is read whole, and must
be what our own h5py reads. Without files: the traces of this repository. Needs a package index.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import h5py

H5PY = "h5py==3.12.1"
"""Its wheels bundle HDF5 1.14.4."""

READ = """
import hashlib, json, sys
import h5py

def digest(path):
    with h5py.File(path) as file:
        return {name: hashlib.sha256(file[name][...].tobytes()).hexdigest() for name in file}

print(json.dumps({"hdf5": h5py.version.hdf5_version, "files": {path: digest(path) for path in sys.argv[1:]}}))
"""


def main(arguments: list[str]) -> int:
    paths = arguments or sorted(map(str, (Path(__file__).parents[2] / "traces").glob("*.h5")))
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(Path(folder))
        done = subprocess.run([python, "-c", READ, *paths], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        return 1
    read = json.loads(done.stdout)
    different = [path for path in paths if read["files"][path] != _digests(path)]
    for path in paths:
        sys.stdout.write(f"{path}: {'read otherwise' if path in different else 'the same'}\n")
    sys.stdout.write(f"HDF5 {read['hdf5']} against {h5py.version.hdf5_version}\n")
    return int(bool(different) or not read["hdf5"].startswith("1.14"))


def _environment(folder: Path) -> str:
    """A Python with that h5py, in this folder."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", H5PY], timeout=600, check=True)
    return python


def _digests(path: str) -> dict[str, str]:
    with h5py.File(path) as file:
        return {name: hashlib.sha256(file[name][...].tobytes()).hexdigest() for name in file}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
