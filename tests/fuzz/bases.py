"""The sound files that the fuzzer damages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py

from heatkv.bundled import bundled_orders
from heatkv.config import model_config
from kvscope.job import Job
from kvscope.nvml import GpuSampler
from kvscope.plan import plan_job
from kvscope.recorder import Recorder
from tests.kvscope import fake_nvml, fake_run


def make_bases(folder: Path) -> None:
    """Write one of each: small traces of every state, a schedule, a job and orders."""
    fake_run.STEP_S = 0
    path = folder / "closed.h5"
    sampler = GpuSampler(0.001, nvml=fake_nvml.FakeNvml())
    job = fake_run.fake_job(attention_map="uint8")
    with Recorder(path, job, preview=fake_run.fake_preview, sampler=sampler) as recorder:
        fake_run.run(recorder)
    with Recorder(folder / "live.h5", fake_run.fake_job(attention_map="float32")) as recorder:
        fake_run.run(recorder, scales=3)
        fake_run.wait_for_scales(folder / "live.h5", 3)
        shutil.copy(folder / "live.h5", folder / "crashed.h5")
    (folder / "live.h5").unlink()
    _as_old_hdf5(path, folder / "old.h5")
    job = Job("a red circle", "infinity-tiny", "heatkv", budget=0.2, attention_mass=True)
    plan_job(job).schedule.save(folder / "schedule.json")
    (folder / "job.json").write_text(json.dumps(job.to_json()), encoding="utf-8")
    orders = bundled_orders(model_config("infinity-tiny"))
    assert orders is not None, "the model comes with orders"
    shutil.copy(orders, folder / "orders.json")


def _as_old_hdf5(source: Path, path: Path) -> None:
    """The trace in the oldest HDF5, whose bookkeeping has no checksums: what a hostile hand would write."""
    with h5py.File(source) as old, h5py.File(path, "w", libver="earliest") as new:
        for name in old:
            old.copy(name, new, name)
        for key in old.attrs:
            new.attrs[key] = old.attrs[key]
