"""A league that was really measured, of the bundled model; and one made of numbers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvscope.league.entrants import Entrant
from kvscope.league.running import run_league
from kvscope.league.settings import Settings
from kvscope.league.table import League, Row

PROMPTS = (
    "a red circle left of a blue square on a white background",
    "a green triangle at the top on a black background",
)
TARGETS = (599_040, 119_808, 23_961)
"""Half and a tenth of the history; and less than any schedule of the bundled orders can take."""


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Two prompts under full and heatkv."""
    return Settings(("full", "heatkv"), TARGETS, PROMPTS, (3,), "infinity-tiny", cfg=3.0, tau=1.0)


@pytest.fixture(scope="session")
def measured(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[League, Path]:
    """What two workers measured, and its file."""
    path = tmp_path_factory.mktemp("league") / "league.h5"
    return run_league(settings, path, jobs=2), path


@pytest.fixture(scope="session")
def made_up(settings: Settings) -> League:
    """Ten prompts, three policies, two targets; `other` is always 0.01 nats worse than `heatkv`."""
    wider = replace(settings, policies=("full", "heatkv", "other"), prompts=PROMPTS * 5, targets=TARGETS[:2])
    entrants = [Entrant("full", None, None, 1_198_080)]
    entrants += [
        Entrant(policy, target, 0.1, target - 256) for policy in ("heatkv", "other") for target in wider.targets
    ]
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 0.2, (len(wider.prompts), len(entrants)))
    noise[:, 3:] = noise[:, 1:3] + 0.01
    rows = [
        _row(index, prompt, 0.0 if index == 0 else float(noise[prompt, index]))
        for prompt in range(len(wider.prompts))
        for index in range(len(entrants))
    ]
    return League(wider, tuple(entrants), tuple(rows))


def _row(index: int, prompt: int, kl: float) -> Row:
    psnr = np.inf if index == 0 else 30.0
    times = {"seconds": 2.0 if index else 1.0, "full_seconds": 1.0}
    return Row(index, prompt, 3, "ab" * 32, {"kl": kl, "psnr": psnr, **times}, (0.0,) * 6 + (kl,))
