"""Advice: what is chosen of what was tried, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvscope.advice import advice, pareto
from kvscope.advisor import DROPPED, Candidate, Part, verified
from kvscope.errors import UsageError
from kvscope.trace import Trace

TRACES = Path(__file__).parents[2] / "traces"


def candidate(
    name: str, peak_bytes: int, lost: float | None, kl: float | None = None, *, codec: str = "model"
) -> Candidate:
    """With HeatKV's schedule if it has that name or a codec, else with one that keeps everything."""
    recorded = "heatkv-10" if name == "heatkv" or codec != "model" else "full"
    with Trace.open(TRACES / f"infinity-tiny-{recorded}.h5") as trace:
        schedule = trace.schedule.in_codec(codec)
    parts = (Part(DROPPED, 1, 2048), Part("model", 36, 4608), *([Part(codec, 7, 1024)] if codec != "model" else []))
    return Candidate(name, schedule, peak_bytes, lost, None, parts, kl, kl)


def test_the_front_has_what_none_beats_in_bytes_and_error() -> None:
    small, large = candidate("small", 10, 0.5), candidate("large", 30, 0.1)
    worse = candidate("worse", 20, 0.6)

    assert [one.name for one in pareto([large, worse, small])] == ["small", "large"]


def test_what_was_verified_is_preferred_and_compared_by_what_was_measured() -> None:
    guess = candidate("guess", 10, 0.01)
    first, second = candidate("first", 10, 0.1, kl=0.5), candidate("second", 12, 0.2, kl=0.3)

    assert advice([guess, first, second], by_bytes=True).chosen.name == "second"
    assert advice([guess, first, second], by_bytes=False).chosen.name == "first"
    assert advice([guess], by_bytes=True).chosen.name == "guess"


def test_unverified_an_unknown_loss_is_never_chosen_over_a_known_one() -> None:
    known, unknown = candidate("known", 10, 0.3), candidate("unknown", 5, None, codec="int2")

    assert advice([unknown, known], by_bytes=True).chosen.name == "known"
    assert advice([unknown, known], by_bytes=False).chosen.name == "known"


def test_verified_an_unknown_loss_counts_by_what_was_measured_but_keeps_to_no_target() -> None:
    known, unknown = candidate("known", 10, 0.1, kl=0.3), candidate("unknown", 5, None, kl=0.1, codec="int2")

    assert advice([known, unknown], by_bytes=True).chosen.name == "unknown"
    found = advice([known, unknown], by_bytes=False)
    assert found.chosen.name == "known"
    assert [one.name for one in found.front] == ["unknown"]


def test_the_words_say_what_it_takes_and_how_it_differs_from_heatkv() -> None:
    words = advice([candidate("heatkv", 20, 0.2, kl=0.2), candidate("ours", 10, 0.2, kl=0.1)], by_bytes=True).words

    assert words[0].startswith("ours: 10 B at peak (est.), 20.0 % of attention lost (est.), forced KL 0.1 nats")
    assert words[1] == "against heatkv: KL -50.0% at -50.0% bytes, both forced on the same runs"
    assert "head-scales to the end, heatkv" in words[-1]


def test_the_words_say_what_is_dropped_what_is_fine_and_what_is_coarse() -> None:
    coarse = candidate("coarse", 10, None, kl=0.1, codec="k4v2")
    words = advice([coarse, candidate("heatkv", 10, 0.2, kl=0.4), candidate("plain", 10, 0.1, kl=0.2)], by_bytes=True)

    told = "\n".join(words.words)
    assert "10 B at peak (est.), attention lost unknown" in told
    assert "against the best without codecs (plain): KL -50.0% at +0.0% bytes" in told
    assert "dropped by its peak: 1 head-scale, which would take 2.00 KiB; by the end: 136 of 216" in told
    assert "fine, in the model's dtype: 36 head-scales, 4.50 KiB at its peak" in told
    assert "coarse, in k4v2: 7 head-scales, 1.00 KiB at its peak" in told


def test_advice_is_json_with_what_is_unknown_as_null() -> None:
    tried = [verified(candidate("coarse", 10, None, codec="k4v2"), [0.1, 0.3], [0.2, 0.4]), candidate("no", 9, 0.1)]

    record = json.loads(json.dumps(advice(tried, by_bytes=True).to_json(), allow_nan=False))

    assert record["chosen"]["codecs"] == ["model", "k4v2"]
    assert record["chosen"]["at_peak"]["k4v2"] == {"head_scales": 7, "bytes": 1024}
    assert record["chosen"]["lost"] is None
    assert record["chosen"]["kl"] == pytest.approx(0.2)
    assert record["tried"][1]["kl"] is None


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(UsageError, match="none takes so few bytes; allow more"):
        advice([], by_bytes=True)
    with pytest.raises(UsageError, match="nothing but the full history loses so little; allow more"):
        advice([], by_bytes=False)
