from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatkv.probe import PoolStart
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from kvscope.analysis import summarize
from kvscope.commands import compare as command
from kvscope.compare import MEASURES, TOTALS, Comparison, Pair, compare, differences, largest
from kvscope.compare_report import comparison_text, comparisons_text, verdict
from kvscope.conditions import LIKENESSES, parse_condition
from kvscope.errors import UsageError
from kvscope.trace import Trace

Record = Callable[..., Path]


def paired_runs() -> ModuleType:
    """tests/kvscope/paired_runs.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("paired_runs", Path(__file__).with_name("paired_runs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAIRED = paired_runs()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, fake_run: ModuleType) -> Record:
    """record(name, schedule, …): a trace of the fake run."""
    folder = tmp_path_factory.mktemp("pairs")
    return lambda name, *args, **options: PAIRED.record(fake_run, folder / f"{name}.h5", *args, **options)


@pytest.fixture(scope="module")
def full(record: Record, fake_run: ModuleType) -> Path:
    return record("full", PAIRED.full_schedule(fake_run))


@pytest.fixture(scope="module")
def pruned(record: Record, fake_run: ModuleType) -> Path:
    return record("pruned", image=fake_run.fake_image() ^ np.uint8(4))


def compared(a: Path, b: Path, side: str = "B") -> Comparison:
    with Trace.open(a) as first, Trace.open(b) as second:
        return compare(first, second, (summarize(first), summarize(second)), side)


def notes_of(a: Path, b: Path) -> str:
    return " | ".join(note.text for note in compared(a, b).notes)


# Totals and scales.


def test_the_totals_of_whole_runs_are_those_of_their_summaries(full: Path, pruned: Path) -> None:
    comparison = compared(full, pruned)

    with Trace.open(full) as a, Trace.open(pruned) as b:
        summaries = summarize(a), summarize(b)
    assert [pair.name for pair in comparison.totals] == list(TOTALS)
    for pair in comparison.totals:
        assert (pair.a, pair.b) == tuple(getattr(summary, pair.name) for summary in summaries), pair.name
    for scale, of_a, of_b in zip(comparison.scales, *(summary.scales for summary in summaries), strict=True):
        for pair in scale.numbers:
            assert (pair.a, pair.b) == (getattr(of_a, pair.name), getattr(of_b, pair.name))


def test_differences_are_b_less_a_and_ratios_b_over_a() -> None:
    pair = Pair("storage_peak_bytes", "stored peak", "bytes", 200, 50, "measured")

    assert (pair.difference, pair.ratio, pair.change) == (-150, 0.25, -0.75)


@pytest.mark.parametrize("values", [(None, 1), (1, None), (0, 1)])
def test_a_ratio_that_cannot_be_told_is_none(values: tuple[int | None, int | None]) -> None:
    pair = Pair("seconds", "", "seconds", *values, "measured")

    assert pair.ratio is None
    assert pair.change is None


def test_a_run_beside_itself_differs_in_nothing(full: Path) -> None:
    comparison = compared(full, full)

    assert all(pair.difference in (0, None) for pair in comparison.totals)
    assert comparison.likeness.bit_agreement == 1
    assert verdict(comparison) == "A and B are one run"
    with Trace.open(full) as trace:
        assert largest(MEASURES["mass"](trace), MEASURES["mass"](trace), 5) == []


def test_only_scales_that_both_have_are_compared(full: Path, record: Record) -> None:
    comparison = compared(full, record("part", scales=2, status="cancelled"))

    with Trace.open(full) as trace:
        early = trace.steps[trace.steps["query_scale"] < 2]
        assert comparison.total("accounted_peak_bytes").a == early["accounted_bytes"].max()
    assert comparison.scales_shared == len(comparison.scales) == 2
    assert not comparison.whole
    assert comparison.total("process_rss_peak_bytes").difference is None
    assert verdict(comparison).startswith("B, scales 0 to 1 only: ")
    assert "A done with 5, B cancelled with 2" in comparison.notes[0].text


def test_runs_without_a_scale_in_common_are_told_so(full: Path, record: Record) -> None:
    comparison = compared(full, record("empty", scales=0, status="failed"))

    assert verdict(comparison) == "no scale that both have yet"
    assert comparison.scales == ()
    assert comparison.total("storage_peak_bytes").b is None


# What can be compared.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 8}, "head dimension 4 in A and 8 in B"),
        ({"scales": ScaleSchedule.custom(((1, 1), (2, 2), (3, 3), (4, 4), (5, 5)))}, "4x4 6x6 in A and 1x1 2x2"),
    ],
)
def test_runs_of_other_shapes_are_refused_by_the_name_of_what_differs(
    full: Path, record: Record, fake_run: ModuleType, change: dict[str, object], words: str
) -> None:
    made = PAIRED.full_schedule(fake_run)
    schedule = PruningSchedule(made.drop_step, "fake", change.get("scales", made.scales), 1, "full")
    path = record(words.split()[0], schedule, scales=0, status="failed", start=change)

    with pytest.raises(UsageError, match=words):
        compared(full, path)


def test_another_seed_leaves_memory_but_not_pictures_and_bits(full: Path, record: Record) -> None:
    comparison = compared(full, record("seed", seed=8))

    assert comparison.total("storage_peak_bytes").change is not None
    assert comparison.likeness.psnr is None
    assert comparison.likeness.bit_agreement is None
    assert comparison.likeness.reason == "seed differs"
    assert "seed not the same" in " ".join(note.text for note in comparison.notes)


def test_other_bytes_per_token_are_a_note(full: Path, record: Record) -> None:
    path = record("half", start={"dtype": "bfloat16", "dtype_bytes": 2})

    assert "A 64 B (float32, 2 rows), B 32 B (bfloat16, 2 rows)" in notes_of(full, path)


def test_other_codecs_are_a_note(full: Path, record: Record) -> None:
    pools = (PoolStart("model", 64, 100), PoolStart("int4", 28, 300))
    path = record("coded", start={"pools": pools})

    assert "A stores tokens in the model's dtype, B in model and int4" in notes_of(full, path)


def test_a_perturbed_run_beside_a_clean_one_is_a_note(full: Path, record: Record) -> None:
    assert "perturbed differently (A attention mass" in notes_of(full, record("clean", attention_mass=False))
    assert "each was perturbed" in notes_of(full, record("again"))


def test_a_forced_run_is_told_and_its_numbers_are_tagged(full: Path, record: Record) -> None:
    path = record("forced", mode="forced", parent="full.h5")

    assert "B is forced" in notes_of(full, path)
    assert compared(full, path).total("storage_peak_bytes").tag == "A measured, B forced"


def test_random_weights_and_other_sampling_and_machines_are_notes(full: Path, record: Record) -> None:
    text = notes_of(full, record("odd", random_weights=True, cfg=4.0, start={"device": "cuda"}))

    assert "random weights in B" in text
    assert "cfg 3.0 in A, 4.0 in B" in text
    assert "A ran on cpu, B on cuda: times do not compare" in text


# Pictures and bits.


def test_pictures_are_measured_and_equal_ones_said_to_be_the_same(full: Path, pruned: Path, record: Record) -> None:
    other, same = compared(full, pruned), compared(full, record("same"))

    assert other.likeness.psnr == pytest.approx(20 * np.log10(255 / 4))
    assert 0.9 < other.likeness.ssim < 1
    assert "PSNR to A 36.1 dB" in verdict(other)
    assert "the same picture as A" in verdict(same)
    assert same.to_json()["pictures"]["pictures_equal"] is True
    assert same.to_json()["pictures"]["psnr_db"] is None


def test_a_run_without_a_picture_says_which(full: Path, record: Record) -> None:
    assert compared(full, record("no-picture", status="failed")).likeness.reason == "no picture in B"


def test_bits_agree_scale_by_scale(full: Path, pruned: Path) -> None:
    comparison = compared(full, pruned)

    assert [scale.bit_agreement for scale in comparison.scales] == [1.0] * 5


# Cells.


def test_a_dropped_head_scale_differs_by_all_its_tokens(full: Path, pruned: Path, fake_run: ModuleType) -> None:
    with Trace.open(full) as a, Trace.open(pruned) as b:
        found = largest(MEASURES["kept"](a), MEASURES["kept"](b), 10)

    assert [(cell.layer, cell.head, cell.source_scale) for cell in found] == [
        (1, 1, 3),
        (1, 0, 2),
        (0, 1, 1),
        (2, 0, 1),
    ]
    assert (found[0].query_scale, found[0].a, found[0].b, found[0].difference) == (3, 16, 0, -16)


def test_mass_is_compared_where_both_have_it(full: Path, pruned: Path) -> None:
    with Trace.open(full) as a, Trace.open(pruned) as b:
        both = differences(MEASURES["mass"](a), MEASURES["mass"](b))

        assert np.array_equal(np.isnan(both), np.isnan(b.attention_mass) | np.isnan(a.attention_mass))


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan]), min_size=24, max_size=24))
def test_the_largest_come_first_once_a_head_scale_and_equal_ones_in_order(values: list[float]) -> None:
    b = np.array(values).reshape(2, 2, 3, 2)

    found = largest(np.zeros_like(b), b, 100)

    sizes = [abs(cell.difference) for cell in found]
    places = [(cell.layer, cell.head, cell.source_scale) for cell in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(places)) == len(places)
    assert all(size > 0 for size in sizes)
    for (size, place), (next_size, next_place) in zip(
        zip(sizes, places, strict=True), list(zip(sizes, places, strict=True))[1:], strict=False
    ):
        assert size > next_size or place < next_place
    with np.errstate(invalid="ignore"):
        assert len(found) == int((np.nan_to_num(np.abs(b)).max(axis=0) > 0).sum())


# Words.


def test_the_text_fits_a_terminal_and_says_what_is_measured(full: Path, pruned: Path) -> None:
    comparison = compared(full, pruned)
    with Trace.open(full) as a, Trace.open(pruned) as b:
        cells = largest(MEASURES["kept"](a), MEASURES["kept"](b), 10)

    text = comparison_text(comparison, cells, "kept")

    assert verdict(comparison) in " ".join(text.split())
    assert "measured" in text
    assert "query 3 L1 h1 source 3" in text
    assert "-16 tokens" in text


def test_several_runs_are_a_line_each_and_notes_name_their_runs(full: Path, pruned: Path, record: Record) -> None:
    third = compared(full, record("third", seed=9, tau=0.7), side="C")

    text = comparisons_text([compared(full, pruned), third])

    assert "note: each was perturbed" in text
    assert "note on A and C: seed not the same" in text
    assert "0.7 in C: pictures differ for that too" in text


def test_a_difference_of_fractions_is_in_points(full: Path, pruned: Path) -> None:
    with Trace.open(full) as a, Trace.open(pruned) as b:
        text = comparison_text(compared(full, pruned), largest(MEASURES["mass"](a), MEASURES["mass"](b), 3), "mass")

    assert text.count(" pp") == 3


# Conditions.


def test_a_condition_on_a_total_is_of_its_difference(full: Path, pruned: Path) -> None:
    comparison = compared(full, pruned)
    change, difference = (
        comparison.total("storage_peak_bytes").change,
        comparison.total("storage_peak_bytes").difference,
    )
    assert change is not None
    assert difference is not None
    assert change < 0

    held = {
        text: parse_condition(text).holds(comparison)
        for text in (
            "storage_peak_bytes>+2%",
            "storage_peak_bytes<-2%",
            f"storage_peak_bytes > {change * 100 - 1:.3f}%",
            "storage_peak_bytes<0",
            f"storage_peak_bytes>-{abs(difference) + 1:.0f}",
            f"storage_peak_bytes<-{abs(difference):.0f}",
            "storage_peak_bytes<-1KiB",
            "psnr<30",
            "psnr < 40.5",
            "ssim>2",
            "bit_agreement<1",
        )
    }

    assert list(held.values()) == [
        False,
        True,
        True,
        True,
        True,
        False,
        abs(difference) > 1024,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stored>2", f"no field stored; there are {', '.join((*TOTALS, *LIKENESSES))}"),
        ("psnr", "expected a field, > or <, and a number"),
        ("psnr<+3", "give a plain number"),
        ("ssim<3%", "give a plain number"),
        ("layer_seconds>3KiB", "layer_seconds is not in bytes"),
        ("psnr<nan", "expected a field"),
        ("psnr<٣", "expected a field"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_condition(text)

    assert words in str(refused.value)


def test_a_condition_on_what_is_not_known_is_an_error_and_no_pass(full: Path, record: Record) -> None:
    with pytest.raises(UsageError, match=r"psnr is not known of .* \(seed differs\); leave the condition out"):
        parse_condition("psnr<30").holds(compared(full, record("other-seed", seed=11)))


def test_the_command_offers_the_measures_that_there_are() -> None:
    assert tuple(MEASURES) == command.MEASURES
