"""Files that are almost traces: bytes changed, blocks exchanged, checksums forged, and HDF5 made with bad intent."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from kvscope import superblock
from kvscope.format import AXES, HEADER, TABLES
from kvscope.superblock import checksum
from tests.fuzz.hostile_json import HOSTILE, mutated_bytes, mutated_json

BLOCK = 512
SECRET = "/etc/passwd"

_TYPES = ("i1", "u1", ">i4", "i8", "u8", "f2", "f4", ">f8", "c8", "S3", "V7", "?", "i4,f8", "(3,)i2")
_HUGE = (1 << 20, 1 << 31, 1 << 40, (1 << 62) - 1)
_NAMES = (*TABLES, *AXES)


def write_mutated(source: bytes, path: Path, chance: random.Random, kind: str | None = None) -> str:
    """Write a damaged copy of a trace to `path`; says what kind of damage it is: the one given, or any of KINDS."""
    kind = kind or chance.choice(KINDS)
    if kind in BYTE_KINDS:
        path.write_bytes(BYTE_KINDS[kind](source, chance))
        return kind
    block = superblock.parse(source)
    is_crashed = block is not None and not block.is_closed
    path.write_bytes(_marked(source, is_open=False) if is_crashed else source)
    # What h5py refuses to make cannot be in a file, either; the rest of the changes stays.
    with h5py.File(path, "r+") as file:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            with contextlib.suppress(Exception):
                EDITS[kind](file, chance)
    if is_crashed:
        path.write_bytes(_marked(path.read_bytes(), is_open=True))
    if chance.random() < 0.1:
        path.write_bytes(mutated_bytes(path.read_bytes(), chance))
    return kind


def _marked(content: bytes, *, is_open: bool) -> bytes:
    """The file as its writer left it, or as if that had closed it."""
    fields = bytearray(superblock.repaired(content[: superblock.SIZE], len(content))[:-4])
    fields[11] = 5 if is_open else 0  # open for writing, and for live reading
    return bytes(fields) + struct.pack("<I", superblock.checksum(bytes(fields))) + content[superblock.SIZE :]


# Bytes.


def _flipped(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    reach = chance.choice((100, 5000, len(data), len(data)))
    for _ in range(chance.choice((1, 3, 30, 300))):
        data[chance.randrange(min(reach, len(data)))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))] + bytes(chance.choice((0, 0, 100, 100_000)))


def _swapped(content: bytes, chance: random.Random) -> bytes:
    blocks = [content[begin : begin + BLOCK] for begin in range(0, len(content), BLOCK)]
    for _ in range(chance.choice((1, 2, 10))):
        first, second = chance.randrange(len(blocks)), chance.randrange(len(blocks))
        match chance.randrange(3):
            case 0:
                blocks[first], blocks[second] = blocks[second], blocks[first]
            case 1:
                blocks[first] = blocks[second]
            case 2:
                blocks[first] = bytes(len(blocks[first]))
    return b"".join(blocks)


def _forged(content: bytes, chance: random.Random) -> bytes:
    """Bytes of HDF5's own bookkeeping changed, and its checksums made right again."""
    data, blocks = bytearray(content), list(_checked_blocks(content))
    for _ in range(chance.choice((1, 1, 2, 5))):
        begin, end = chance.choice(blocks)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(begin + 4, end)
            data[place] = chance.choice((0, 1, 0xFF, 0x80, data[place] ^ (1 << chance.randrange(8))))
        data[end : end + 4] = struct.pack("<I", checksum(bytes(data[begin:end])))
    return bytes(data)


_SIZES = {b"EAHD": 68, b"FAHD": 24, b"BTHD": 34, b"\x89HDF": 44}
"""Bytes before the checksum of blocks whose length is fixed."""


def _checked_blocks(content: bytes) -> Iterator[tuple[int, int]]:
    """(begin, end) of blocks that are followed by their checksum."""
    for signature in (*_SIZES, b"OHDR"):
        begin = content.find(signature)
        while begin >= 0:
            end = begin + (_SIZES.get(signature) or _header_size(content, begin))
            stored = content[end : end + 4]
            if len(stored) == 4 and struct.unpack("<I", stored)[0] == checksum(content[begin:end]):
                yield begin, end
            begin = content.find(signature, begin + 4)


def _header_size(content: bytes, begin: int) -> int:
    """Bytes of an object header of version 2 before its checksum."""
    flags = content[begin + 5]
    place = begin + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    return place + width - begin + int.from_bytes(content[place : place + width], "little")


BYTE_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bytes": _flipped,
    "cut": _cut,
    "swapped blocks": _swapped,
    "changed bytes": mutated_bytes,
    "forged checksums": _forged,
}


# HDF5.


def _header_value(file: h5py.File, chance: random.Random) -> None:
    key = chance.choice(HEADER)
    integers = (-1, 0, 1, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
    new: object = np.int64(chance.choice(integers))
    if key.kind == "text" or chance.random() < 0.1:
        words = str(chance.choice(HOSTILE)).encode("utf-8", "surrogatepass") or b" "
        new = np.bytes_(words[:60_000])
    if chance.random() < 0.2:
        odd = (
            "vlen text",
            np.arange(3),
            h5py.Empty("f4"),
            np.float64("nan"),
            np.zeros((2, 2), "S5"),
            np.bytes_(b"1.0"),
        )
        new = chance.choice(odd)
    file.attrs[key.name] = new


def _header_json(file: h5py.File, chance: random.Random) -> None:
    key = chance.choice(("job", "scales", "schedule", "versions"))
    file.attrs[key] = np.bytes_(mutated_json(json.loads(file.attrs[key]), chance)[:60_000])


def _key_lost(file: h5py.File, chance: random.Random) -> None:
    del file.attrs[chance.choice(list(file.attrs))]


def _many_attributes(file: h5py.File, chance: random.Random) -> None:
    for index in range(chance.choice((10, 200))):
        file.attrs[f"novelty-{index}"] = index


def _other_type(file: h5py.File, chance: random.Random) -> None:
    name = _dropped(file, chance)
    shape = tuple(chance.choice((0, 1, 2, 5, 15)) for _ in range(chance.randint(0, 6)))
    kind = chance.choice(("plain", "plain", "vlen", "reference", "enum", "text"))
    odd = {
        "vlen": h5py.vlen_dtype(np.int32),
        "reference": h5py.ref_dtype,
        "enum": h5py.enum_dtype({"A": 1}, basetype="i4"),
        "text": h5py.string_dtype(),
    }
    file.create_dataset(name, shape, dtype=odd.get(kind, chance.choice(_TYPES)))


def _other_shape(file: h5py.File, chance: random.Random) -> None:
    """The right type in a shape that fits nothing, or that no memory can hold."""
    name = chance.choice(list(TABLES))
    table = TABLES[name]
    del file[name]
    sizes = (0, 1, 2, 3, 5, 15, 65, *_HUGE) if chance.random() < 0.5 else (0, 1, 2, 3, 5, 15)
    axes = len(table.axes) if chance.random() < 0.8 else chance.randint(1, 5)
    shape = tuple(chance.choice(sizes) for _ in range(axes))
    chunks = tuple(chance.choice((1, 16, 1 << 10, 1 << 20)) if chance.random() < 0.3 else 1 for _ in shape)
    file.create_dataset(name, shape, table.stored_dtype, chunks=chunks, maxshape=(None,) * axes)


def _grown(file: h5py.File, chance: random.Random) -> None:
    name = chance.choice([name for name in TABLES if file[name].maxshape[0] is None])
    new = chance.choice((0, 1, 100, *_HUGE))
    if file[name].shape[0] < _HUGE[0]:  # HDF5 takes for ever to shorten what is longer
        file[name].resize(new, axis=0)


def _cells(file: h5py.File, chance: random.Random) -> None:
    """Random content in a table."""
    name = chance.choice(list(TABLES))
    shape, dtype = file[name].shape, file[name].dtype
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytearray(file[name][...].tobytes())
    for _ in range(chance.choice((1, 5, 100))):
        if size:
            content[chance.randrange(size)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    file[name][...] = np.frombuffer(bytes(content), dtype).reshape(shape)


def _commit_counts(file: h5py.File, chance: random.Random) -> None:
    rows = file["commit"][...]
    for _ in range(chance.randint(1, 3)):
        column = chance.choice(rows.dtype.names)
        if rows[column].ndim == 1:
            most = np.iinfo(rows[column].dtype).max
            rows[column][-1] = chance.choice((0, 1, 2, 6, most, most // 2))
    file["commit"][...] = rows


def _hostile_text(file: h5py.File, chance: random.Random) -> None:
    table, column = chance.choice((("log", "text"), ("commit", "message")))
    rows = file[table][...]
    words = "\x1b[2J\x1b]0;owned\x07\r\n\u202eevil\ud83d".encode("utf-8", "surrogatepass").ljust(240, b"\0")
    rows[column][-1] = np.frombuffer(words, "S1")
    rows["status" if table == "commit" else "level"][-1] = chance.choice((0, 1, 2, 3, 200))
    file[table][...] = rows


def _link(file: h5py.File, chance: random.Random) -> None:
    name = _dropped(file, chance)
    match chance.randrange(6):
        case 0:
            file[name] = h5py.ExternalLink(SECRET, "/")
        case 1:
            file[name] = h5py.ExternalLink(file.filename, f"/{name}")
        case 2:
            file[name] = h5py.SoftLink(f"/{name}")
        case 3:
            file[name] = h5py.SoftLink("/nowhere/at/all")
        case 4:
            file[name] = h5py.SoftLink(f"/{chance.choice(_NAMES)}")
        case 5:
            file[name] = file["/"]


def _other_storage(file: h5py.File, chance: random.Random) -> None:
    name = _dropped(file, chance)
    table = TABLES.get(name)
    shape = tuple(chance.choice((1, 2, 5)) for _ in (table.axes if table else "a"))
    dtype = table.stored_dtype if table else np.dtype("i4")
    match chance.randrange(5):
        case 0:
            file.create_dataset(name, shape, dtype, external=[(SECRET, 0, h5py.h5f.UNLIMITED)])
        case 1:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(SECRET if chance.random() < 0.5 else ".", name, shape)
            file.create_virtual_dataset(name, layout)
        case 2:
            code = chance.choice((32008, 32001, 305, 32015))
            made = file.create_dataset(name, shape, dtype, chunks=shape, compression=code, allow_unknown_filter=True)
            made.id.write_direct_chunk((0,) * len(shape), b"nonsense")
        case 3:
            made = file.create_dataset(name, shape, dtype, chunks=shape, compression="gzip")
            made.id.write_direct_chunk((0,) * len(shape), bytes(chance.choice((0, 1, 5000))))
        case 4:
            file.create_group(name)


def _dims(file: h5py.File, chance: random.Random) -> None:
    """References between tables and axes that lead anywhere."""
    dataset = file[chance.choice(_NAMES)]
    for key in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"):
        if key in dataset.attrs and chance.random() < 0.5:
            del dataset.attrs[key]
            if chance.random() < 0.5:
                dataset.attrs[key] = chance.choice((1, "x", np.arange(4)))


def _strangers(file: h5py.File, chance: random.Random) -> None:
    """Tables and groups that a trace does not have."""
    for index in range(chance.choice((1, 5, 300))):
        if chance.random() < 0.5:
            file.create_dataset(f"stranger-{index}", (3,), chance.choice(_TYPES))
        else:
            group = file.create_group(f"group-{index}")
            group["itself"] = group
            group["root"] = file["/"]


def _dropped(file: h5py.File, chance: random.Random) -> str:
    name = chance.choice(_NAMES)
    if name in file:
        del file[name]
    return name


EDITS: dict[str, Callable[[h5py.File, random.Random], None]] = {
    "header value": _header_value,
    "header JSON": _header_json,
    "key lost": _key_lost,
    "many attributes": _many_attributes,
    "other type": _other_type,
    "other shape": _other_shape,
    "grown table": _grown,
    "cells": _cells,
    "commit counts": _commit_counts,
    "hostile text": _hostile_text,
    "link": _link,
    "other storage": _other_storage,
    "dimension references": _dims,
    "strangers": _strangers,
}

KINDS = (*(kind for kind in BYTE_KINDS if kind != "forged checksums"), *EDITS)
"""Every kind of damage by name, but one: HDF5 itself crashes on bookkeeping that was changed with care."""
