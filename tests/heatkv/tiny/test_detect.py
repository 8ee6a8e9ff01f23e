"""The detector against pictures whose content is known."""

from __future__ import annotations

import numpy as np

from heatkv.tiny.detect import align, detect, mean_alignment
from heatkv.tiny.scenes import BACKGROUNDS, COLOURS, IMAGE_SIDE, all_scenes, held_out_scenes, parse_caption, render


def test_rendered_ground_truth_is_read_back() -> None:
    scenes, rng = all_scenes()[::7], np.random.default_rng(0)

    scores = mean_alignment(align(render(scene, rng), scene) for scene in scenes)

    assert scores.colour >= 0.99
    assert scores.shape >= 0.95
    assert min(scores.position, scores.background, scores.no_extra) >= 0.99


def test_shuffled_prompts_score_near_chance() -> None:
    scenes, rng = held_out_scenes(), np.random.default_rng(0)
    pictures = [render(scene, rng) for scene in scenes]

    scores = mean_alignment(align(*pair) for pair in zip(pictures, scenes[1:] + scenes[:1], strict=True))

    # By chance: two of four colours in common, one shape of three, one arrangement of four where all are there.
    assert 0.35 < scores.colour < 0.6
    assert scores.shape < 0.3
    assert scores.position < 0.2
    assert scores.all_right < 0.03


def test_noise_on_a_picture_does_not_change_what_is_seen() -> None:
    scenes, rng = held_out_scenes(40), np.random.default_rng(0)

    def noisy(picture: np.ndarray) -> np.ndarray:
        return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)

    scores = mean_alignment(align(noisy(render(scene, rng)), scene) for scene in scenes)

    assert min(scores.colour, scores.shape, scores.position) >= 0.95


def test_an_empty_picture_shows_nothing() -> None:
    empty = np.full((IMAGE_SIDE, IMAGE_SIDE, 3), BACKGROUNDS["black"], np.uint8)
    scene = parse_caption("a red circle at the top on a black background")

    scores = align(empty, scene)

    assert detect(empty) == ("black", ())
    assert (scores.colour, scores.shape, scores.position) == (0, 0, 0)
    assert (scores.background, scores.no_extra) == (1, 1)


def test_a_smudge_is_no_object() -> None:
    picture = np.full((IMAGE_SIDE, IMAGE_SIDE, 3), BACKGROUNDS["white"], np.uint8)
    picture[3:7, 3:7] = COLOURS["red"]

    assert detect(picture)[1] == ()


def test_an_object_that_was_not_stated_is_extra() -> None:
    two = parse_caption("a red circle left of a blue square on a white background")
    one = parse_caption("a red circle at the left on a white background")

    scores = align(render(two, np.random.default_rng(0)), one)

    assert scores.no_extra == 0
    assert scores.all_right == 0
