"""Says from a picture alone which objects it shows, and how far that agrees with a prompt: the GenEval of this world.

A pixel takes its nearest palette colour; an object is the largest connected patch of one colour; its shape is the
template of equal area that overlaps it best. NumPy only; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatkv.tiny.scenes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, Scene, signed_distance

_NAMES = (*COLOURS, *BACKGROUNDS)
_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float64)
_LEAST_PIXELS = 30
"""A smaller patch is a smudge; a true object covers 100 pixels or more."""
_UNIT_AREA = {"circle": np.pi, "square": 4.0, "triangle": 3 * np.sqrt(3) / 4}


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found."""

    colour: str
    shape: str
    row: float
    column: float
    pixels: int


@dataclass(frozen=True, slots=True)
class Alignment:
    """Agreement of one picture with one scene, each in [0, 1]; over many pictures, the means."""

    colour: float
    """Share of the stated objects whose colour is found."""
    shape: float
    """Share of the stated objects found with their shape as well."""
    position: float
    """Share of the stated objects at the stated place, or in the stated relation."""
    background: float
    no_extra: float
    """1 if nothing is found that was not stated."""
    all_right: float

    def to_json(self) -> dict[str, float]:
        return {part.name: round(float(getattr(self, part.name)), 4) for part in fields(self)}


def detect(image: NDArray[np.uint8]) -> tuple[str, tuple[Detection, ...]]:
    """(background, objects) of a picture [height, width, 3]; at most one object of each colour."""
    names = _nearest_names(image)
    counts = {name: int((names == _NAMES.index(name)).sum()) for name in BACKGROUNDS}
    found = []
    for index, colour in enumerate(COLOURS):
        patch = _largest_patch(names == index)
        if patch.sum() >= _LEAST_PIXELS:
            found.append(_describe(colour, patch))
    return max(counts, key=lambda name: counts[name]), tuple(found)


def align(image: NDArray[np.uint8], scene: Scene) -> Alignment:
    """How far a picture shows what a scene states."""
    background, found = detect(image)
    by_colour = {one.colour: one for one in found}
    matches = [by_colour.get(stated.colour) for stated in scene.objects]
    shapes = [one is not None and one.shape == stated.shape for one, stated in zip(matches, scene.objects, strict=True)]
    parts = (
        float(np.mean([one is not None for one in matches])),
        float(np.mean(shapes)),
        float(_in_position(matches, scene)),
        float(background == scene.background),
        float({one.colour for one in found} <= {stated.colour for stated in scene.objects}),
    )
    return Alignment(*parts, all_right=float(min(parts) == 1.0))


def mean_alignment(alignments: Iterable[Alignment]) -> Alignment:
    """The mean of each part."""
    rows = [[getattr(one, part.name) for part in fields(Alignment)] for one in alignments]
    return Alignment(*(float(value) for value in np.mean(rows, axis=0)))


def _in_position(matches: list[Detection | None], scene: Scene) -> bool:
    present = [one for one in matches if one is not None]
    if len(present) < len(matches):
        return False
    if len(present) == 1:
        return _nearest_place(present[0]) == scene.arrangement
    return _relation(present[0], present[1]) == scene.arrangement


def _nearest_place(one: Detection) -> str:
    return min(PLACES, key=lambda place: np.hypot(one.row - PLACES[place][0], one.column - PLACES[place][1]))


def _relation(first: Detection, second: Detection) -> str:
    down, across = second.row - first.row, second.column - first.column
    left, right, above, below = RELATIONS
    if abs(across) >= abs(down):
        return left if across > 0 else right
    return above if down > 0 else below


def _nearest_names(image: NDArray[np.uint8]) -> NDArray[np.intp]:
    distance = ((image[:, :, None, :].astype(np.float64) - _PALETTE) ** 2).sum(-1)
    return np.asarray(distance.argmin(-1))


def _largest_patch(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected patch of the mask, thin rims (one pixel wide) aside."""
    opened = _dilate(~_dilate(~mask)) & mask
    labels = np.where(opened, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(opened, _neighbours(labels).max(0), 0)
        if (spread == labels).all():
            break
        labels = spread
    if not opened.any():
        return opened
    values, counts = np.unique(labels[opened], return_counts=True)
    return np.asarray(labels == values[counts.argmax()])


def _dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(_neighbours(mask).any(0))


def _neighbours(grid: NDArray[Any]) -> NDArray[Any]:
    """The grid and its four shifts, [5, height, width]; outside counts as 0."""
    padded = np.pad(grid, 1)
    return np.stack([padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])


def _describe(colour: str, patch: NDArray[np.bool_]) -> Detection:
    rows, columns = np.nonzero(patch)
    row, column = float(rows.mean()), float(columns.mean())
    grid_rows, grid_columns = np.mgrid[: patch.shape[0], : patch.shape[1]]

    def overlap(shape: str) -> float:
        size = np.sqrt(patch.sum() / _UNIT_AREA[shape]) / SHAPES[shape]
        template = signed_distance(shape, grid_rows - row, grid_columns - column, float(size)) <= 0
        return float((template & patch).sum() / (template | patch).sum())

    return Detection(colour, max(SHAPES, key=overlap), row, column, int(patch.sum()))
