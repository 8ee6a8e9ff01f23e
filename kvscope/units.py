"""Text from numbers: the only place where bytes, times, fractions and tokens become words; and text made safe to show.

Every function of a number takes None or NaN for a value that was not measured, and then gives `absent`.
"""

from __future__ import annotations

import math
import re
import unicodedata

NOT_MEASURED = "not measured"

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal obeys or cannot draw: controls, bidi marks, lone surrogates, line separators."""
_JOINERS = "\u200c\u200d"
"""Of those, what scripts and emoji are spelled with."""

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtTpP]?)([iI])?[bB]?")
_AGES = ((60, 1, "s"), (3_600, 60, "min"), (86_400, 3_600, "h"))
_SHORT_TIMES = ((1_000, 1, "ns"), (1_000_000, 1_000, "µs"), (1_000_000_000, 1_000_000, "ms"), (60e9, 1e9, "s"))


def bytes_text(num_bytes: float | None, *, absent: str = NOT_MEASURED) -> str:
    """Bytes in binary units, three digits or more: `512 B`, `1.50 KiB`, `3.14 GiB`."""
    if num_bytes is None or math.isnan(num_bytes):
        return absent
    value, unit = float(num_bytes), 0
    # 1023.5, not 1024: what would print as 1024 belongs to the next unit.
    while abs(value) >= 1023.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {_BYTE_UNITS[unit]}"


def parse_bytes(text: str) -> int:
    """The bytes that a text like `512`, `321MiB`, `1.5 gib` or `40MB` says. Raises ValueError for any other."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no amount of bytes; expected one like 321MiB, 40MB or 512B")
    prefix = found[2].lower()
    base = 1024 if found[3] else 1000
    power = " kmgtp".index(prefix) if prefix else 0
    return round(float(found[1]) * float(base**power))


def duration_text(duration_ns: float | None, *, absent: str = NOT_MEASURED) -> str:
    """Nanoseconds as `850 ns`, `1.25 µs`, `12.3 ms`, `4.56 s` or `3 min 05 s`."""
    if duration_ns is None or math.isnan(duration_ns):
        return absent
    for below, divisor, unit in _SHORT_TIMES:
        # 0.9995: what would round up to the next unit's 1.00 is printed there.
        if abs(duration_ns) < below * 0.9995:
            return f"{duration_ns:.0f} ns" if unit == "ns" else f"{_three_digits(duration_ns / divisor)} {unit}"
    minutes, seconds = divmod(round(duration_ns / 1e9), 60)
    return f"{minutes} min {seconds:02d} s"


def seconds_text(seconds: float | None, *, absent: str = NOT_MEASURED) -> str:
    """Seconds, worded as `duration_text` words nanoseconds."""
    return absent if seconds is None or math.isnan(seconds) else duration_text(seconds * 1e9)


def age_text(age_ns: float) -> str:
    """How long ago something was, in one unit, rounded down: `45 s`, `12 min`, `3 h`, `20 d`."""
    seconds = max(0, int(age_ns / 1e9))
    for below, divisor, unit in _AGES:
        if seconds < below:
            return f"{seconds // divisor} {unit}"
    return f"{seconds // 86_400} d"


def fraction_text(fraction: float | None, *, absent: str = NOT_MEASURED) -> str:
    """A fraction in percent: `10.0 %`, `0.123 %`, `100 %`."""
    return absent if fraction is None or math.isnan(fraction) else f"{_three_digits(fraction * 100)} %"


def tokens_text(tokens: int | None, *, noun: str = "token", absent: str = NOT_MEASURED) -> str:
    """Tokens with thousands marked: `1 token`, `10,521 tokens`. Counts over heads and layers are `head-token`s."""
    if tokens is None or math.isnan(tokens):
        return absent
    return f"{tokens:,.0f} {noun}" + ("" if tokens == 1 else "s")


def head_tokens_text(tokens: int | None, *, absent: str = NOT_MEASURED) -> str:
    """Tokens summed over layers and heads: `5,386,752 head-tokens`."""
    return tokens_text(tokens, noun="head-token", absent=absent)


def scales_text(done: int, total: int) -> str:
    """How many scales are finished: `3 of 7 scales`. A scale alone is named by its index, from 0."""
    return f"{done} of {total} scales"


def printable(text: str) -> str:
    """Foreign text on one line: what would steer a terminal is spelled out, as in `\\x1b`, `\\n` or `\\u202e`.

    For every prompt, name, message and log line on its way to a screen: a trace may come from anybody.
    """
    # The quick check is stricter than ours, so what passes it needs no other.
    return text if text.isprintable() else "".join(map(_seen, text))


def _seen(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _three_digits(value: float) -> str:
    """Three significant digits, never rounded above the point: 0.123, 1.50, 12.3, 123, 1234."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.3g}"))))
    return f"{value:.{min(max(2 - magnitude, 0), 6)}f}"
