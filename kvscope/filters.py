"""Filters: how the compressed tables of a trace are stored, by name, and whether this machine can read and write them.

gzip is part of every HDF5. Faster filters come with the package hdf5plugin, which is never needed for a trace that
was not written with one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import h5py

from kvscope.errors import UsageError

DEFAULT_FILTER = "gzip"
PLUGIN = "hdf5plugin"
"""The package that brings the filters that HDF5 itself lacks."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One way to store compressed tables."""

    code: int | None
    """HDF5's registered number; None: stored as it is."""
    options: tuple[int, ...] = ()
    shuffle: bool = False
    """Bytes of equal weight are put side by side first."""
    keeps_up: bool = True
    """Fast enough for every table while the run goes on."""

    @property
    def creation(self) -> dict[str, Any]:  # Any: what h5py's create_dataset takes
        if self.code is None:
            return {}
        if self.code == h5py.h5z.FILTER_DEFLATE:  # h5py takes its number for a level
            return {"compression": "gzip", "compression_opts": self.options[0], "shuffle": self.shuffle}
        return {"compression": self.code, "compression_opts": self.options, "shuffle": self.shuffle}


FILTERS = {
    "gzip": Filter(h5py.h5z.FILTER_DEFLATE, (1,), shuffle=True, keeps_up=False),
    "none": Filter(None),
    "bitshuffle-lz4": Filter(32008, (0, 2)),  # block size of its own choice; LZ4
}
"""Every filter by name."""


def filter_named(name: str) -> Filter:
    """The filter, ready to use. Raises UsageError if there is none of that name, or it is not installed."""
    found = FILTERS.get(name)
    if found is None:
        raise UsageError(f"trace filter {name!r}; expected one of {', '.join(FILTERS)}")
    if found.code is not None and not is_available(found.code):
        raise UsageError(f"trace filter {name}: needs the Python package {PLUGIN}; install it, or use gzip")
    return found


def is_available(code: int) -> bool:
    """Whether HDF5 can use this filter here; loads the plugins if they are needed and installed."""
    if not h5py.h5z.filter_avail(code):
        try:
            importlib.import_module(PLUGIN)  # registers its filters
        except ImportError:
            return False
    return bool(h5py.h5z.filter_avail(code))


def missing_filter(dataset: h5py.Dataset) -> str | None:
    """The filter that reading this dataset needs and that is not installed, in words; None: it can be read."""
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, title = properties.get_filter(index)
        if not is_available(code):
            names = [name for name, known in FILTERS.items() if known.code == code]
            return names[0] if names else title.decode(errors="replace").partition(";")[0] or f"number {code}"
    return None


def needs_filter(name: str) -> str:
    """What is said of a file or table that cannot be read without a filter, and the way out."""
    return f"is stored with the filter {name}, which is not installed; install the Python package {PLUGIN}"
