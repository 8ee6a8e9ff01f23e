"""What each part may load, measured in fresh interpreters: the run-time twin of the import contracts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvscope.cli import COMMANDS

HEAVY = ("torch", "textual", "h5py", "numpy", "pynvml", "transformers", "triton")

ALLOWED = {
    "import heatkv": (),
    "import kvscope": (),
    "import heatkv.errors, heatkv.config, heatkv.scales, heatkv.probe": (),
    "import heatkv.schedule, heatkv.orders, heatkv.scas, heatkv.policies.full, heatkv.policies.heatkv": ("numpy",),
    "import heatkv.attention, heatkv.generate, heatkv.calibrate": ("numpy", "torch", "pynvml"),  # torch imports pynvml
    "import kvscope.errors, kvscope.units, kvscope.job, kvscope.cli": (),
    "import kvscope.control.client, kvscope.control.server, kvscope.control.targets": (),
    "import kvscope.edits, kvscope.draft, kvscope.journal, kvscope.estimate, kvscope.fidelity": ("numpy",),
    "import kvscope.advisor": ("numpy",),
    "import kvscope.report, kvscope.png": ("numpy",),
    "import kvscope.plan, kvscope.calibration, kvscope.official": ("numpy", "h5py"),
    "import kvscope.league.standings, kvscope.league.page, kvscope.league.file": ("numpy", "h5py"),
    "import kvscope.trace, kvscope.recorder, kvscope.analysis": ("numpy", "h5py"),
    "import kvscope.runner, kvscope.progress, kvscope.live, kvscope.calibrate, kvscope.league.running": (
        "numpy",
        "h5py",
        "pynvml",
    ),
    "import kvscope.tui.app": ("numpy", "h5py", "textual"),
    "from kvscope.cli import main; main(['plan', '--model', 'infinity-2b', '--resolution', '1M'])": ("numpy", "h5py"),
}

LATER = (
    *("heatkv.probe", "heatkv.spending", "kvscope.draft", "kvscope.estimate", "kvscope.layout", "kvscope.league.file"),
    *("kvscope.ledger", "kvscope.plan", "tomllib"),
)
"""Not for the first frame: some screens, some keys and some users need these."""


def loaded_by(statement: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of these are in sys.modules after a statement, in an interpreter of its own."""
    code = f"{statement}\nimport sys\nprint('\\n' + ' '.join(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("statement", ALLOWED)
def test_a_module_loads_no_heavy_package_beyond_its_floor(statement: str) -> None:
    assert loaded_by(statement) <= set(ALLOWED[statement])


@pytest.mark.parametrize("option", ["--help", "--version", "run --help", "open --help"])
def test_help_loads_neither_numpy_nor_textual_nor_torch(option: str) -> None:
    statement = f"from kvscope.cli import main\ntry: main({option.split()!r})\nexcept SystemExit: pass"

    assert loaded_by(statement) == set()


def test_the_viewer_starts_without_what_only_later_frames_need() -> None:
    statement = "import kvscope.commands.open, kvscope.opening, kvscope.trace, kvscope.tui.app, kvscope.tui.screens.map"

    assert loaded_by(statement, LATER) == set()


def test_a_command_loads_no_other() -> None:
    names = tuple(f"kvscope.commands.{name}" for name in COMMANDS)
    statement = "from kvscope.cli import main\ntry: main(['runs', '--help'])\nexcept SystemExit: pass"

    assert loaded_by(statement, names) == {"kvscope.commands.runs"}
