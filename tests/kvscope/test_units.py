"""Text from numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvscope.units import (
    age_text,
    bytes_text,
    duration_text,
    fraction_text,
    head_tokens_text,
    parse_bytes,
    printable,
    seconds_text,
    tokens_text,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (3_371_549_327, "3.14 GiB"),
        (150 * 1024**3, "150 GiB"),
        (1000 * 1024**2, "1000 MiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0 ns"),
        (850, "850 ns"),
        (1_250, "1.25 µs"),
        (12_345_678, "12.3 ms"),
        (999_999_999, "1.00 s"),
        (4_560_000_000, "4.56 s"),
        (59_990_000_000, "1 min 00 s"),
        (185_000_000_000, "3 min 05 s"),
    ],
)
def test_durations_are_printed_in_the_unit_that_fits(duration_ns: int, text: str) -> None:
    assert duration_text(duration_ns) == text
    assert seconds_text(duration_ns / 1e9) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0, "0 %"), (0.1, "10.0 %"), (1.0, "100 %"), (0.00123, "0.123 %"), (0.9999, "100 %")]
)
def test_fractions_are_printed_in_percent(fraction: float, text: str) -> None:
    assert fraction_text(fraction) == text


@pytest.mark.parametrize(("tokens", "text"), [(0, "0 tokens"), (1, "1 token"), (10521, "10,521 tokens")])
def test_tokens_are_counted_in_words(tokens: int, text: str) -> None:
    assert tokens_text(tokens) == text


def test_tokens_summed_over_heads_have_a_word_of_their_own() -> None:
    assert head_tokens_text(1) == "1 head-token"
    assert head_tokens_text(5386752) == "5,386,752 head-tokens"


@pytest.mark.parametrize(
    "text_of", [bytes_text, head_tokens_text, duration_text, seconds_text, fraction_text, tokens_text]
)
@pytest.mark.parametrize("value", [None, math.nan])
def test_an_unknown_is_never_printed_as_a_number(text_of: object, value: float | None) -> None:
    assert callable(text_of)
    assert text_of(value) == "not measured"
    assert text_of(value, absent="–") == "–"


@given(st.integers(0, 1 << 60))
def test_printed_bytes_are_within_one_percent_of_the_truth(num_bytes: int) -> None:
    number, unit = bytes_text(num_bytes).split()

    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    # Three digits are kept, so the error is at most half of the third: 0.5 %.
    assert float(number) * 1024**power == pytest.approx(num_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red circle — ünïcode 日本 👩\u200d🚀", "a red circle — ünïcode 日本 👩\u200d🚀"),
        ("AAA\x1b]0;PWNED\x07BBB", "AAA\\x1b]0;PWNED\\x07BBB"),
        ("one\ntwo\rthree\tfour", "one\\ntwo\\rthree\\tfour"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj\u202egnp.exe", "gpj\\u202egnp.exe"),
        ("\u2066x\u2069 \u2028", "\\u2066x\\u2069 \\u2028"),
        ("name\udcff", "name\\udcff"),
    ],
)
def test_foreign_text_cannot_steer_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_is_one_line_that_can_be_encoded_and_stays_as_it_is(text: str) -> None:
    shown = printable(text)

    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86_399, "23 h"),
     (86_400, "1 d"), (86_400 * 400, "400 d")],
)  # fmt: skip
def test_an_age_has_one_unit_and_is_rounded_down(seconds: float, text: str) -> None:
    assert age_text(seconds * 1e9) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("512", 512), ("512B", 512), ("321MiB", 321 << 20), ("40MB", 40_000_000), ("1.5 gib", 3 << 29), ("2k", 2000)],
)
def test_amounts_of_bytes_are_read_in_binary_and_in_decimal_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "3 apples", "1.MiB"])
def test_what_is_no_amount_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of bytes"):
        parse_bytes(text)
