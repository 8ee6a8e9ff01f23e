from __future__ import annotations

import numpy as np
import pytest

from kvscope.edits import Budget, Clear, Drop, Pin, Policy, Sinks, Store, Target, parse_edit
from kvscope.errors import UsageError

SHAPE = (4, 3, 5)


@pytest.mark.parametrize(
    ("line", "edit"),
    [
        ("budget 10%", Budget(fraction=0.1)),
        ("budget 0.25", Budget(fraction=0.25)),
        ("budget 642t", Budget(tokens=642)),
        ("budget 321MiB", Budget(num_bytes=321 << 20)),
        ("BUDGET none", Budget()),
        ("sinks 3  # as the paper", Sinks(3)),
        ("policy heatkv", Policy("heatkv")),
        ("policy none", Policy(None)),
        ("drop l12 h3 s5-7 after q8", Drop(Target((12, 12), (3, 3), (5, 7)), 8)),
        ("drop s5", Drop(Target(source_scale=(5, 5)))),
        ("pin l1 h* s2", Pin(Target((1, 1), None, (2, 2)))),
        ("codec INT4 l1 s2-3", Store("int4", Target((1, 1), None, (2, 3)))),
        ("policy knapsack:codecs=int4+k4v2", Policy("knapsack:codecs=int4+k4v2")),
        ("clear l*", Clear(Target())),
    ],
)
def test_a_line_is_an_edit_and_an_edit_is_its_line_again(line: str, edit: object) -> None:
    parsed = parse_edit(line)

    assert parsed == edit
    assert parsed is not None
    assert parse_edit(parsed.text) == edit


@pytest.mark.parametrize("line", ["", "   ", "# a remark"])
def test_empty_lines_and_remarks_are_no_edits(line: str) -> None:
    assert parse_edit(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "drop",
        "drop x3",
        "drop l3 l4",
        "drop l5-3",
        "pin",
        "codec int4",
        "codec s5",
        "budget",
        "budget ten",
        "sinks -1",
        "undo l3",
        "drop l1 after 8",
    ],
)
def test_what_is_no_edit_is_refused_with_examples(line: str) -> None:
    with pytest.raises(UsageError, match=r"is no edit; expected one like budget 10%"):
        parse_edit(line)


@pytest.mark.parametrize("line", ["budget 120%", "budget 1.2", "budget -1%"])
def test_a_budget_beyond_the_history_names_the_range(line: str) -> None:
    with pytest.raises(UsageError, match="is no part of the history; give 0 to 1, or 0% to 100%"):
        parse_edit(line)


def test_a_target_means_the_ranges_it_names_and_all_of_what_it_does_not() -> None:
    mask = Target(layer=(1, 2), source_scale=(4, 4)).mask(SHAPE)

    assert mask.sum() == 2 * 3 * 1
    assert mask[1:3, :, 4].all()


def test_an_index_there_is_not_is_named() -> None:
    with pytest.raises(UsageError, match="there is no head 3; there are 3, from 0"):
        Target(head=(3, 3)).mask(SHAPE)


def test_text_of_any_budget_keeps_its_exact_value() -> None:
    for fraction in np.random.default_rng(0).random(200):
        edit = parse_edit(Budget(fraction=float(fraction)).text)
        assert isinstance(edit, Budget)
        assert edit.fraction == pytest.approx(fraction, rel=1e-15)
