"""The world of infinity-tiny: its grammar, every scene it allows, and their pictures.

    caption  = object [relation object | place] "on a" BACKGROUND "background"
    object   = "a" COLOUR SHAPE
    relation = "left of" | "right of" | "above" | "below"
    place    = "at the" PLACE

Two objects of one scene never share a colour. Pictures are 40x40 RGB with one-pixel edges; size and exact position
vary freely and are not in the caption. NumPy only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatkv.errors import HeatKVError, UnknownNameError

IMAGE_SIDE = 40

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (30, 165, 60),
    "blue": (40, 80, 225),
    "yellow": (250, 215, 40),
}
"""Colour of an object by name."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (130, 130, 130),
}
"""Plain background by name."""

SHAPES: dict[str, float] = {"circle": 1.0, "square": 0.886, "triangle": 1.4}
"""Shape → its radius for an object of size 1: half a side for the square, circumradius for the triangle."""

PLACES: dict[str, tuple[float, float]] = {
    "center": (20.0, 20.0),
    "left": (20.0, 10.5),
    "right": (20.0, 29.5),
    "top": (10.5, 20.0),
    "bottom": (29.5, 20.0),
}
"""Where a single object can be: (row, column) in pixels of its centre, before jitter."""

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
"""Relation → places of the first and the second object."""

_SIZES = (6.0, 6.8)
_JITTER_ALONG, _JITTER_ACROSS = 1.2, 2.5
_HELD_OUT_PERCENT = 15
_QUOTED = 80


def shortened(prompt: str) -> str:
    """A prompt as an error quotes it."""
    return prompt if len(prompt) <= _QUOTED else f"{prompt[:_QUOTED]}…"


class PromptError(HeatKVError):
    """A prompt that the grammar does not allow."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One stated object."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What one caption states: one object with a place, or two with a relation, on a background."""

    objects: tuple[SceneObject, ...]
    arrangement: str
    """Place of a single object, or relation of the first to the second."""
    background: str

    @property
    def caption(self) -> str:
        first = self.objects[0]
        if len(self.objects) == 1:
            return f"{first} at the {self.arrangement} on a {self.background} background"
        return f"{first} {self.arrangement} {self.objects[1]} on a {self.background} background"

    @property
    def places(self) -> tuple[str, ...]:
        """Place of each object."""
        return (self.arrangement,) if len(self.objects) == 1 else RELATIONS[self.arrangement]

    @property
    def content(self) -> str:
        """What is to be seen, whatever the wording: "a left of b" and "b right of a" have the same content."""
        stated = sorted(f"{place} {what}" for what, place in zip(self.objects, self.places, strict=True))
        return " | ".join([*stated, self.background])

    @property
    def is_held_out(self) -> bool:
        """Whether its content is kept from training; decided by a hash, so the same for ever."""
        return int.from_bytes(hashlib.sha256(self.content.encode()).digest()[:4], "big") % 100 < _HELD_OUT_PERCENT


def all_scenes() -> tuple[Scene, ...]:
    """Every scene of the grammar, in one fixed order."""
    things = [SceneObject(colour, shape) for colour, shape in product(COLOURS, SHAPES)]
    single = [Scene((thing,), place, back) for thing, place, back in product(things, PLACES, BACKGROUNDS)]
    double = [
        Scene((first, second), relation, back)
        for first, second, relation, back in product(things, things, RELATIONS, BACKGROUNDS)
        if first.colour != second.colour
    ]
    return (*single, *double)


def training_scenes() -> tuple[Scene, ...]:
    """The scenes that training may see."""
    return tuple(scene for scene in all_scenes() if not scene.is_held_out)


def held_out_scenes(count: int | None = None, *, seed: int = 0) -> tuple[Scene, ...]:
    """Scenes whose content training never saw, shuffled by the seed; `count` of them, or all."""
    scenes = [scene for scene in all_scenes() if scene.is_held_out]
    order = np.random.default_rng(seed).permutation(len(scenes))
    return tuple(scenes[index] for index in order[:count])


def sample_scene(rng: np.random.Generator, scenes: tuple[Scene, ...]) -> Scene:
    """One of the scenes, each as likely."""
    return scenes[int(rng.integers(len(scenes)))]


def parse_caption(caption: str) -> Scene:
    """The scene that a caption states.

    Raises UnknownNameError for a word that is not in the grammar, PromptError for a form that is not.
    """
    words = caption_words(caption)
    for word in words:
        if word not in VOCABULARY:
            raise UnknownNameError("word of infinity-tiny", word, VOCABULARY)
    scene = _BY_CAPTION.get(" ".join(words))
    if scene is None:
        example = next(iter(_BY_CAPTION))
        raise PromptError(
            f"prompt {shortened(caption)!r} is not in the grammar of infinity-tiny; expected one like {example!r}"
        )
    return scene


def caption_words(caption: str) -> tuple[str, ...]:
    """Lower-case words without punctuation."""
    return tuple(word for word in (raw.strip(".,;:!?'\"") for raw in caption.lower().split()) if word)


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture of the scene, [40, 40, 3]; size and position drawn from `rng`."""
    image = np.empty((IMAGE_SIDE, IMAGE_SIDE, 3))
    image[:] = BACKGROUNDS[scene.background]
    for what, place in zip(scene.objects, scene.places, strict=True):
        cover = _coverage(what.shape, _jittered(place, rng), float(rng.uniform(*_SIZES)))[..., None]
        image = image * (1 - cover) + np.array(COLOURS[what.colour]) * cover
    return np.asarray(np.rint(image), np.uint8)


def signed_distance(shape: str, rows: NDArray[Any], columns: NDArray[Any], size: float) -> NDArray[Any]:
    """Pixels outside (positive) or inside a shape of this size, at offsets from its centroid."""
    radius = SHAPES[shape] * size
    if shape == "circle":
        return np.asarray(np.hypot(rows, columns) - radius)
    if shape == "square":
        return np.asarray(np.maximum(abs(rows), abs(columns)) - radius)
    slanted = (np.sqrt(3.0) * abs(columns) - rows) / 2  # distance along the normal of an upper edge
    return np.asarray(np.maximum(rows, slanted) - radius / 2)


def _jittered(place: str, rng: np.random.Generator) -> tuple[float, float]:
    row, column = PLACES[place]
    down, across = rng.uniform(-1, 1, 2)
    if place in ("left", "right"):
        return row + down * _JITTER_ACROSS, column + across * _JITTER_ALONG
    return row + down * _JITTER_ALONG, column + across * _JITTER_ACROSS


def _coverage(shape: str, centre: tuple[float, float], size: float) -> NDArray[Any]:
    rows, columns = np.mgrid[:IMAGE_SIDE, :IMAGE_SIDE] + 0.5
    return np.clip(0.5 - signed_distance(shape, rows - centre[0], columns - centre[1], size), 0.0, 1.0)


_BY_CAPTION = {scene.caption: scene for scene in all_scenes()}

VOCABULARY: tuple[str, ...] = tuple(sorted({word for caption in _BY_CAPTION for word in caption.split()}))
"""Every word of the grammar, sorted: the index of a word is its id less one (id 0 ends a prompt)."""
