"""Spending: what is kept fits, and what goes is what costs least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heatkv.budget import budget_bytes
from heatkv.codecs import CODECS
from heatkv.config import model_config
from heatkv.errors import BudgetError, OptionError, UnknownNameError
from heatkv.measurements import Measurements
from heatkv.policies import make_policy
from heatkv.policies.full import keep_everything
from heatkv.policies.knapsack import KnapsackPolicy
from heatkv.schedule import PruningSchedule
from heatkv.spending import NOISE, Costs, Spent, bytes_of, noise_of, spend
from heatkv.steps import own_steps

CONFIG = model_config("infinity-tiny")
SCALES = CONFIG.schedule_for()
L, H, S = CONFIG.num_layers, CONFIG.num_heads, SCALES.num_scales
LAST = L * S - 1


def errors(seed: int = 0) -> NDArray[np.float64]:
    """What each query scale would lose without each head-scale before it; NaN where there is none."""
    lost = np.random.default_rng(seed).lognormal(-6, 2, (S, L, H, S))
    for query_scale in range(S):
        lost[query_scale, ..., query_scale:] = np.nan
    return lost


def spent(paid: NDArray[np.float64], limit: int, codecs: tuple[str, ...] = ("model",), exponent: float = 1.0) -> Spent:
    sizes = bytes_of(codecs, CONFIG.head_dim, dtype_bytes=2)
    plain = int(bytes_of(("model",), CONFIG.head_dim, dtype_bytes=2)[0])
    costs = Costs(np.nan_to_num(paid), sizes, noise_of(codecs), plain, exponent)
    start = keep_everything(CONFIG, SCALES)
    able = np.broadcast_to(np.arange(S) >= 1, start.shape)
    return spend(costs, start, able, SCALES, limit=limit, sinks=1)


def allowed_bytes(budget: float) -> int:
    return budget_bytes(budget, CONFIG, SCALES, rows=1)


@given(
    st.integers(0, 1000),
    st.floats(0.015, 1.0),
    st.sampled_from(["model", "int8", "int4", "k4v2", "int2", "int8+int4", "model+k4v2", "int8+int4+k4v2+int2"]),
    st.floats(0.5, 2.0),
)
@settings(max_examples=60)
def test_bytes_and_pools_fit_the_budget_at_every_step_in_any_codecs(
    seed: int, budget: float, codecs: str, exponent: float
) -> None:
    policy = KnapsackPolicy(Measurements(output_error=errors(seed)), codecs=codecs, exponent=exponent)

    schedule = policy.plan(CONFIG, SCALES, budget=budget)

    held = schedule.bytes_held(CONFIG.head_dim, rows=1, dtype_bytes=2)
    assert held.max() <= allowed_bytes(budget)
    assert schedule.capacity_bytes(CONFIG.head_dim, rows=1, dtype_bytes=2) <= allowed_bytes(budget)
    assert (schedule.drop_step[..., :1] == LAST).all()


def test_what_nobody_pays_for_goes_first() -> None:
    paid = np.zeros((S, L, H, S))
    paid[:, 2, 3] = 1.0

    kept = spent(paid, allowed_bytes(0.2))

    assert (kept.drop_step[2, 3, :-1] == LAST).all()


def test_a_head_scale_is_judged_by_what_is_still_to_come() -> None:
    paid = np.zeros((S, L, H, S))
    paid[: S - 2, 0] = 10.0  # of past scales, at the last step that frees anything
    paid[S - 1, 1] = 1.0

    kept = spent(paid, allowed_bytes(0.3))

    assert (kept.drop_step[1, :, 4] == LAST).sum() > (kept.drop_step[0, :, 4] == LAST).sum()


def test_more_bytes_never_lose_more() -> None:
    losses = [spent(errors(), allowed_bytes(budget)).loss for budget in (0.02, 0.05, 0.1, 0.3, 1.0)]

    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_coarser_codecs_are_taken_where_they_lose_less() -> None:
    plain, mixed = (spent(errors(), allowed_bytes(0.1), codecs) for codecs in (("model",), ("model", "int4")))

    assert mixed.loss < plain.loss
    assert set(np.unique(mixed.codec)) == {0, 1}


def test_with_room_for_all_nothing_is_dropped_nor_coarser() -> None:
    kept = spent(errors(), allowed_bytes(1.0), ("model", "int4", "int2"))

    assert (kept.drop_step == keep_everything(CONFIG, SCALES)).all()
    assert not kept.codec.any()


def test_too_little_says_where_and_the_least_budget() -> None:
    with pytest.raises(BudgetError, match=r"sinks and pins alone need about .* after scale 0, layer") as refused:
        spent(errors(), 100)

    assert 0 < refused.value.minimum < 0.01


def test_the_noise_of_every_codec_is_known_and_grows_as_bytes_shrink() -> None:
    assert NOISE.keys() == CODECS.keys()
    sizes = bytes_of(tuple(NOISE), 128, dtype_bytes=2)
    order = np.argsort(-sizes, kind="stable")
    codes = [name for name in np.array(list(NOISE))[order] if name != "fp8"]
    assert [NOISE[name] for name in codes] == sorted(NOISE[name] for name in codes)


def test_both_guidance_rows_count() -> None:
    cond, uncond = errors(1), errors(2)
    alone = KnapsackPolicy(Measurements(output_error=cond)).plan(CONFIG, SCALES, budget=0.1)
    both = KnapsackPolicy(Measurements(output_error=cond, output_error_uncond=uncond)).plan(CONFIG, SCALES, budget=0.1)

    assert alone.content_hash != both.content_hash


def test_a_mixed_plan_survives_being_written() -> None:
    policy = make_policy("knapsack:codecs=int8+int4", {"measurements": Measurements(output_error=errors())})
    schedule = policy.plan(CONFIG, SCALES, budget=0.1)

    again = PruningSchedule.from_json(schedule.to_json())

    assert again == schedule
    assert (again.drop_step >= own_steps(L, S)[:, None]).all()


@pytest.mark.parametrize(
    ("codecs", "error", "words"),
    [
        ("int5", UnknownNameError, "unknown KV codec 'int5'"),
        ("int4+int8", OptionError, "each coarser than the one before"),
        ("int4+int4", OptionError, "each coarser than the one before"),
    ],
)
def test_codecs_that_make_no_sense_are_refused(codecs: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_policy(f"knapsack:codecs={codecs}", {"measurements": Measurements(output_error=errors())})


@pytest.mark.parametrize("codecs", ["model", "k4v2", "int8+int4"])
def test_a_policy_tells_what_any_plan_loses_by_its_score(codecs: str) -> None:
    policy = KnapsackPolicy(Measurements(output_error=errors()), codecs=codecs)
    own, other = (policy.plan(CONFIG, SCALES, budget=budget) for budget in (0.1, 0.3))

    assert policy.loss_of(own, CONFIG) == pytest.approx(own.provenance["loss"], rel=1e-5)
    assert policy.loss_of(other, CONFIG) < policy.loss_of(own, CONFIG)
