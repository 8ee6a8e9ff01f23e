"""The true Infinity-2B geometry, end to end through the CLI: a minute and 5 GB, with random weights."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heatkv.config import model_config
from heatkv.orders import HeadOrders
from heatkv.policies.heatkv import HeatKVPolicy
from kvscope.trace import Trace

_GOLDEN = Path(os.environ.get("KVSCOPE_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
_MOST_MEMORY = 12 << 30
_MOST_OVER_BUDGET = 1.03
"""The index beside keys and values."""


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published orders of 2B; random ones in the same format where golden data is absent."""
    published = _GOLDEN / "heatkv_2b_orders.json"
    if published.is_file():
        return published
    random, config = np.random.default_rng(0), model_config("infinity-2b")
    slots = [random.permutation(config.num_layers * config.num_heads) for _ in range(9)]
    pairs = [[[int(slot) % 16, int(slot) // 16] for slot in one] for one in slots]
    path = tmp_path_factory.mktemp("orders") / "2b.json"
    path.write_text(json.dumps(pairs))
    return path


@pytest.mark.slow
def test_2b_under_heatkv_keeps_what_the_plan_says_at_every_step_and_fits_in_12_gb(tmp_path: Path, orders: Path) -> None:
    out, config = tmp_path / "run.h5", model_config("infinity-2b")
    options = ["--model", "infinity-2b", "--random-weights", "--resolution", "0.06M", "--policy", "heatkv"]
    options += ["--orders", str(orders), "--budget", "0.1", "--prompt", "a red sports car", "--seed", "1"]

    done = subprocess.run(
        [sys.executable, "-m", "kvscope", "run", *options, "-o", str(out), "--json"],
        capture_output=True, text=True, check=True, timeout=280,
    )  # fmt: skip

    summary = json.loads(done.stdout)
    assert summary["full_history_bytes"] == 265 * 32 * 16 * 2 * 128 * 2 * 2
    assert summary["budget_bytes"] == summary["full_history_bytes"] // 10
    assert summary["accounted_peak_bytes"] <= summary["budget_bytes"]
    assert summary["storage_peak_bytes"] <= _MOST_OVER_BUDGET * summary["budget_bytes"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < _MOST_MEMORY
    scales = config.schedule_for("0.06M")
    plan = HeatKVPolicy(HeadOrders.load(orders, config=config)).plan(config, scales, budget=0.1)
    with Trace.open(out) as trace:
        assert trace.schedule.content_hash == plan.content_hash
        np.testing.assert_array_equal(trace.kept_tokens, plan.kept_tokens())
        pool_bytes = trace.header.capacity_tokens * trace.header.bytes_per_token
        assert pool_bytes >= plan.peak_tokens * trace.header.bytes_per_token
        assert (trace.steps["storage_bytes"] >= pool_bytes).all()
        assert trace.image is not None
        assert trace.image.shape == (256, 256, 3)
