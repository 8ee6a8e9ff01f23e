"""The grammar and the pictures of infinity-tiny's world."""

from __future__ import annotations

import numpy as np
import pytest

from heatkv.errors import UnknownNameError
from heatkv.tiny.scenes import (
    IMAGE_SIDE,
    VOCABULARY,
    PromptError,
    Scene,
    SceneObject,
    all_scenes,
    held_out_scenes,
    parse_caption,
    render,
    training_scenes,
)


def test_every_caption_is_parsed_back_to_its_scene() -> None:
    assert all(parse_caption(scene.caption) == scene for scene in all_scenes())


def test_captions_are_read_without_regard_to_case_and_punctuation() -> None:
    scene = parse_caption("A red circle left of a blue square, on a white background.")

    assert scene == Scene((SceneObject("red", "circle"), SceneObject("blue", "square")), "left of", "white")


def test_an_unknown_word_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownNameError, match=r"'sqare'.*nearest first: square"):
        parse_caption("a red sqare at the top on a white background")


def test_known_words_in_another_form_are_refused_with_an_example() -> None:
    with pytest.raises(PromptError, match="expected one like 'a red circle"):
        parse_caption("a red red circle")


def test_held_out_content_is_never_trained_in_any_wording() -> None:
    trained = {scene.content for scene in training_scenes()}

    assert trained.isdisjoint(scene.content for scene in held_out_scenes())


def test_two_wordings_of_one_picture_have_the_same_content() -> None:
    first = parse_caption("a red circle left of a blue square on a white background")
    second = parse_caption("a blue square right of a red circle on a white background")

    assert first.content == second.content


def test_there_are_at_least_two_hundred_held_out_prompts_with_all_words_among_them() -> None:
    scenes = held_out_scenes()

    assert len(scenes) >= 200
    assert {word for scene in scenes for word in scene.caption.split()} == set(VOCABULARY)


def test_held_out_scenes_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    assert held_out_scenes(20, seed=3) == held_out_scenes(20, seed=3)
    assert held_out_scenes(20, seed=3) != held_out_scenes(20, seed=4)


def test_a_picture_depends_on_the_seed_alone() -> None:
    scene = held_out_scenes(1)[0]
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert first.shape == (IMAGE_SIDE, IMAGE_SIDE, 3)
    assert (first == again).all()
    assert (first != other).any()
