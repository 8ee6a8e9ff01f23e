"""The header: what a run says of itself at its start, and what older traces do not say."""

from __future__ import annotations

from types import ModuleType

import pytest

from kvscope.header import header_of, read_header

KNOWN = {"run_id": "r", "versions": "{}", "parent_run_id": None}


def attributes_of(fake_run: ModuleType, *, has_previews: bool = False, **changes: object) -> dict[str, str | int]:
    """The header of a fake run, as the writer completes it."""
    job = fake_run.fake_job(**changes)
    return header_of(job, fake_run.fake_start(), KNOWN, has_previews=has_previews) | {"liveness": "lock"}


def test_a_header_says_how_attention_is_computed_and_what_the_cache_has_room_for(fake_run: ModuleType) -> None:
    header = read_header(attributes_of(fake_run))

    assert header.attention == fake_run.ATTENTION
    assert header.capacity_tokens == fake_run.fake_schedule().peak_tokens
    assert header.parent_run_id is None


@pytest.mark.parametrize(
    ("changes", "tiers", "changed"),
    [
        ({"attention_mass": False}, ("occupancy",), None),
        ({}, ("occupancy", "mass"), "attention mass: time and scratch memory"),
        (
            {"attention_mass_uncond": True, "attention_map": "uint8"},
            ("occupancy", "mass", "mass_uncond", "maps"),
            "attention mass: time and scratch memory; attention mass of unconditional rows: time and scratch memory; "
            "attention maps: time and memory",
        ),
        (
            {"bit_exact": False},
            ("occupancy", "mass"),
            "attention mass: time and scratch memory; fast capture: rounding of the image",
        ),
        ({"attention_mass": False, "bit_exact": False}, ("occupancy",), None),
        ({"attention_mass": False, "has_previews": True}, ("occupancy",), "previews: time and memory"),
    ],
)
def test_tiers_are_listed_and_each_says_what_it_changed(
    fake_run: ModuleType, changes: dict[str, object], tiers: tuple[str, ...], changed: str | None
) -> None:
    header = read_header(attributes_of(fake_run, **changes))

    assert header.tiers == tiers
    assert header.perturbed_by == changed
    assert header.perturbed is (changed is not None)


def test_a_header_without_the_keys_of_later_versions_is_read(fake_run: ModuleType) -> None:
    attributes = attributes_of(fake_run)
    for key in ("attention", "capacity_tokens", "tiers", "perturbed_by"):
        del attributes[key]

    header = read_header(attributes)

    assert (header.attention, header.capacity_tokens, header.perturbed_by) == (None, None, None)
    assert header.tiers == ("occupancy", "mass")
    assert header.perturbed


def test_a_missing_key_is_named(fake_run: ModuleType) -> None:
    attributes = attributes_of(fake_run)
    del attributes["num_heads"]

    with pytest.raises(ValueError, match="num_heads"):
        read_header(attributes)
