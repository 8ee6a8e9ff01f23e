"""What every policy in POLICIES promises; a new one is tested by being in the table.

Policies are made with random measurements, and online ones choose among random queries, keys and values on the real
cache: what they promise holds for any numbers.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.budget import budget_tokens
from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.errors import BudgetError, OptionError, UnknownNameError
from heatkv.online import OnlinePlan
from heatkv.policies import GIVEN, POLICIES, load_policy, make_policy, needs_of, parameters
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from tests.heatkv.policies.driven import driven
from tests.heatkv.policies.measured import supplied

ROOT = Path(__file__).resolve().parents[2]
CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()
BUDGETS = [1.0, 0.5, 0.2, 0.1]
KEEP_LESS = {"sinks-only"}
"""Policies whose point it is not to use their budget."""

Plan = PruningSchedule | OnlinePlan


def _online(name: str) -> bool:
    return hasattr(load_policy(name), "scores")


ONLINE = [name for name in POLICIES if _online(name)]


def _plan(
    name: str,
    budget: float,
    *,
    config: ModelConfig = CONFIG,
    scales: ScaleSchedule = SCALES,
    sinks: int | None = None,
    seed: int = 0,
) -> Plan:
    """The plan at this budget, or at the policy's minimum if that is above it."""
    first_source = min(config.sink_scales, scales.num_scales - 1) if sinks is None else 0
    policy = make_policy(name, supplied(config, scales, first_source=first_source, seed=seed))
    try:
        plan: Plan = policy.plan(config, scales, budget=budget, sink_scales=sinks)
    except BudgetError as error:
        plan = policy.plan(config, scales, budget=error.minimum, sink_scales=sinks)
    return plan


def _same(one: Plan, other: Plan) -> bool:
    if isinstance(one, OnlinePlan) and isinstance(other, OnlinePlan):
        return np.array_equal(one.capacity, other.capacity) and one.provenance == other.provenance
    return one == other


@pytest.mark.parametrize("name", POLICIES)
class TestEveryPolicy:
    def test_is_a_frozen_dataclass_of_its_own_name(self, name: str) -> None:
        kind = load_policy(name)
        fields = {field.name for field in dataclasses.fields(kind)}

        assert kind.name == name
        assert kind.frees_memory is True
        assert ("orders" in kind.needs) == ("orders" in fields)
        assert bool(set(kind.needs) - {"orders"}) == ("measurements" in fields)
        assert kind.__dataclass_params__.frozen
        assert kind.__doc__
        source = sys.modules[kind.__module__].__doc__
        assert any(word in source for word in ("Source: ", "arXiv", "Ours")) or name == "full"

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_plans_within_its_budget_after_every_step(self, name: str, budget: float) -> None:
        plan = _plan(name, budget)

        allowed = 1.0 if plan.budget is None else plan.budget
        assert plan.tokens_held().max() <= budget_tokens(allowed, CONFIG, SCALES)

    @pytest.mark.parametrize("budget", [0.5, 0.2, 0.1, 0.05, 0.02])
    def test_uses_its_budget_to_one_hundredth(self, name: str, budget: float) -> None:
        plan = _plan(name, budget)

        if _online(name):
            assert plan.tokens_held().max() >= 0.99 * budget_tokens(plan.budget, CONFIG, SCALES)

    def test_an_infeasible_budget_carries_a_feasible_minimum(self, name: str) -> None:
        policy = make_policy(name, supplied(CONFIG, SCALES))

        with pytest.raises(BudgetError) as caught:
            policy.plan(CONFIG, SCALES, budget=0.0, sink_scales=2)

        assert 0 < caught.value.minimum <= 1
        policy.plan(CONFIG, SCALES, budget=caught.value.minimum, sink_scales=2)

    def test_keeps_everything_at_a_budget_of_one(self, name: str) -> None:
        plan = _plan(name, 1.0)

        history = SCALES.history_tokens * CONFIG.num_layers * CONFIG.num_heads
        assert plan.tokens_held()[-1] == history or name in KEEP_LESS

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_plans_the_same_twice(self, name: str, budget: float) -> None:
        assert _same(_plan(name, budget), _plan(name, budget))

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_its_plan_survives_a_file(self, name: str, budget: float, tmp_path: Path) -> None:
        plan = _plan(name, budget)
        schedule = plan.bound() if isinstance(plan, OnlinePlan) else plan

        path = schedule.save(tmp_path / "plan.json")

        assert PruningSchedule.load(path) == schedule
        schedule.validate(CONFIG, SCALES)
        assert schedule.policy == name
        assert schedule.online == _online(name)

    @pytest.mark.parametrize("budget", [-0.1, 1.5, float("nan")])
    def test_refuses_a_budget_that_is_no_fraction(self, name: str, budget: float) -> None:
        with pytest.raises(BudgetError):
            make_policy(name, supplied(CONFIG, SCALES)).plan(CONFIG, SCALES, budget=budget)

    def test_its_parameters_are_given_by_name_and_others_refused(self, name: str) -> None:
        policy = make_policy(name, supplied(CONFIG, SCALES))
        given = ",".join(f"{key}={str(value).lower()}" for key, value in parameters(policy).items())

        assert make_policy(f"{name}:{given}" if given else name, supplied(CONFIG, SCALES)).name == name
        with pytest.raises((UnknownNameError, OptionError), match=r"no parameters|known, nearest first"):
            make_policy(f"{name}:windw=3", {})

    def test_keeps_its_sinks_at_every_step(self, name: str) -> None:
        for step in driven(_plan(name, 0.1, sinks=2), CONFIG):
            sinks = SCALES.offsets[min(2, step.query_scale + 1)]
            assert step.alive[:, :, :sinks].all()

    def test_equals_a_dense_twin_that_masks_what_is_gone(self, name: str) -> None:
        for step in driven(_plan(name, 0.2), CONFIG):
            torch.testing.assert_close(step.out, step.twin_out, atol=1e-5, rtol=0)

    def test_chooses_the_same_twice(self, name: str) -> None:
        first, second = (list(driven(_plan(name, 0.1), CONFIG)) for _ in range(2))

        assert all(
            torch.equal(a.alive, b.alive) and torch.equal(a.out, b.out) for a, b in zip(first, second, strict=True)
        )

    def test_rows_choose_for_themselves_where_it_says_so(self, name: str) -> None:
        if _online(name) and load_policy(name).rows == "run":
            return
        plan = _plan(name, 0.1)

        together = driven(plan, CONFIG, row_seeds=(0, 1, 2))
        alone = [driven(plan, CONFIG, row_seeds=(seed,)) for seed in range(3)]

        for step, *others in zip(together, *alone, strict=True):
            assert torch.equal(step.alive, torch.cat([each.alive for each in others]))


NUMBERS = [
    (name, field.name)
    for name in POLICIES
    for field in dataclasses.fields(load_policy(name))
    if field.name not in GIVEN and any(kind in field.type.split(" | ") for kind in ("int", "float"))
]


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "1e9", "1000000000"])
@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_a_number_makes_a_policy_that_plans_and_selects_or_is_refused(name: str, parameter: str, value: str) -> None:
    try:
        policy = make_policy(f"{name}:{parameter}={value}", supplied(CONFIG, SCALES))
        plan = policy.plan(CONFIG, SCALES, budget=0.3)
    except (OptionError, BudgetError):
        return

    assert plan.tokens_held().max() <= budget_tokens(0.3, CONFIG, SCALES)
    assert len(list(driven(plan, CONFIG))) == CONFIG.num_layers * SCALES.num_scales


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelConfig, ScaleSchedule, int, int, float]:
    """A model, scales of any aspect, sinks, a seed, and how far the budget lies between its minimum and 1."""
    heads = draw(st.integers(1, 4))
    layers = draw(st.integers(1, 4))
    config = ModelConfig("odd", layers, 16 * heads, heads, layers, VAEConfig(16, 16))
    sizes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=6))
    scales = ScaleSchedule.custom(tuple(sizes))
    sinks = draw(st.integers(0, len(sizes) - 1))
    share = draw(st.floats(0, 1) | st.sampled_from([0.0, 0.02, 1.0]))
    return config, scales, sinks, draw(st.integers(0, 1000)), share


@pytest.mark.parametrize("name", POLICIES)
@given(case=cases())
@settings(max_examples=25)
def test_true_bytes_are_what_was_planned_at_every_step(
    name: str, case: tuple[ModelConfig, ScaleSchedule, int, int, float]
) -> None:
    config, scales, sinks, seed, share = case
    least = _minimum(name, config, scales, sinks, seed)
    budget = least + share * (1 - least)

    plan = _plan(name, budget, config=config, scales=scales, sinks=sinks, seed=seed)

    allowed = 1.0 if plan.budget is None else plan.budget
    bytes_per_token = config.kv_bytes_per_token(dtype_bytes=4, rows=2) // config.head_dim * 4
    held = (plan.tokens_held() * bytes_per_token).tolist()
    assert max(held) <= budget_tokens(allowed, config, scales) * bytes_per_token
    assert [step.accounted_bytes for step in driven(plan, config, row_seeds=(seed, seed + 1))] == held


def _minimum(name: str, config: ModelConfig, scales: ScaleSchedule, sinks: int, seed: int) -> float:
    policy = make_policy(name, supplied(config, scales, seed=seed))
    try:
        policy.plan(config, scales, budget=0.0, sink_scales=sinks)
    except BudgetError as error:
        return error.minimum
    return 0.0


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from heatkv.config import MODELS\n"
        "from heatkv.policies import POLICIES, make_policy\n"
        "from tests.heatkv.policies.measured import supplied\n"
        "config = MODELS['infinity-tiny']; scales = config.schedule_for()\n"
        "for name in POLICIES:\n"
        "    make_policy(name, supplied(config, scales)).plan(config, scales, budget=1.0).tokens_held()\n"
        "print('torch' in sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )

    assert done.stdout == "False\n"


class TestMaking:
    def test_unknown_policy_lists_the_known_nearest_first(self) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown policy 'heat-kv'; known, nearest first: heatkv, "):
            load_policy("heat-kv")

    def test_unknown_parameter_lists_the_valid_nearest_first(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"unknown parameter of policy scalekv 'windw'; known, nearest first: window, "
        ):
            make_policy("scalekv:windw=3", {})

    def test_values_come_from_text(self) -> None:
        policy = make_policy("scalekv:window=9,pooling=average,start=none,drafters=0.2", {})

        expected = {"window": 9, "kernel": 5, "pooling": "average", "start": None, "drafters": 0.2, "budget_file": None}
        assert parameters(policy) == expected

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("scalekv:window=x", r"policy scalekv: window='x'; expected a whole number"),
            ("scalekv:pooling=mean", r"pooling='mean'; expected max or average"),
            ("scalekv:window=0", r"window=0; expected 1 to 65,536"),
            ("full:window=1", r"policy full has no parameters; leave 'window' out"),
            ("snapkv:window", r"'window' is not name=value; write it as in"),
            ("snapkv:window=1,window=2", r"window is given twice, as 1 and 2; leave one out"),
            ("h2o:", r"nothing behind the colon; write h2o"),
            ("pyramidkv:window=0", r"policy pyramidkv: window=0; expected 1 to"),
            ("adakv:window=-4", r"policy adakv: window=-4; expected 1 to"),
            ("snapkv:kernel=0", r"policy snapkv: kernel=0; expected 1 to"),
            ("random:seed=-1", r"policy random: seed=-1; expected 0 to 4,294,967,295"),
            ("h2o:recent=2", r"recent=2.0; expected 0 to 1"),
            ("pyramidkv:beta=0.5", r"beta=0.5; expected 1 to 1,000,000"),
        ],
    )
    def test_what_cannot_be_is_refused_with_what_can(self, text: str, found: str) -> None:
        with pytest.raises(OptionError, match=found):
            make_policy(text, {})

    def test_a_parameter_can_take_the_place_of_what_is_needed(self) -> None:
        assert needs_of("scalekv") == ("selectivity",)
        assert needs_of("scalekv:budget_file=x.json") == ()

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("hack:observed=0", r"policy hack: observed=0; expected 1 to"),
            ("hackpp:observed=-3", r"policy hackpp: observed=-3; expected 1 to"),
            ("hackpp:tau=nan", r"tau=nan; expected 0 to 10"),
            ("forcing:threshold=nan", r"threshold=nan; expected 0 to 1"),
            ("knapsack:exponent=nan", r"exponent=nan; expected 0 to 10"),
            ("knapsack:exponent=-1", r"exponent=-1.0; expected 0 to 10"),
            ("knapsack:late=inf", r"late=inf; expected -10 to 10"),
            ("knapsack:uncond=-1", r"uncond=-1.0; expected 0 to 1,000,000"),
        ],
    )
    def test_so_is_what_cannot_be_beside_a_calibration(self, text: str, found: str) -> None:
        with pytest.raises(OptionError, match=found):
            make_policy(text, supplied(CONFIG, SCALES))

    def test_knapsack_by_mass_needs_attention_mass_alone(self) -> None:
        assert needs_of("knapsack") == needs_of("knapsack:score=output") == ("output_error",)
        assert needs_of("knapsack:exponent=1.8,score=mass") == ("attention_mass",)

    def test_what_calibration_supplies_is_no_parameter(self) -> None:
        for name in POLICIES:
            assert not set(parameters(make_policy(name, supplied(CONFIG, SCALES)))) & set(GIVEN)
