"""Online policies in whole runs of a small model: what they keep, what it costs, and who decides for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from heatkv.generate import generate
from heatkv.policies import make_policy
from tests.heatkv.conftest import Recording
from tests.heatkv.policies.measured import supplied

if TYPE_CHECKING:
    from torch import Tensor

    from heatkv.online import OnlinePlan
    from heatkv.scales import ScaleSchedule
    from heatkv.transformer import Infinity

POLICIES = ["scalekv", "hack", "hackpp", "forcing", "h2o", "snapkv", "random"]


def _plan(name: str, model: Infinity, scales: ScaleSchedule, budget: float = 0.3) -> OnlinePlan:
    plan: OnlinePlan = make_policy(name, supplied(model.config, scales)).plan(model.config, scales, budget=budget)
    return plan


def _texts(model: Infinity) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, model.config.text_width, generator=generator) for length in (4, 6, 3)]


@pytest.mark.parametrize("name", POLICIES)
def test_three_prompts_together_are_as_three_alone(
    name: str, small_model: Infinity, small_scales: ScaleSchedule
) -> None:
    plan, texts = _plan(name, small_model, small_scales), _texts(small_model)
    bits = generate(small_model, texts, small_scales, seed=1).bits
    together = Recording()

    generate(small_model, texts, small_scales, online=plan, forced_bits=bits, probe=together)

    for index, text in enumerate(texts):
        alone, own = Recording(), [each[index : index + 1] for each in bits]
        generate(small_model, [text], small_scales, online=plan, forced_bits=own, probe=alone)
        # Products of other shapes add up in another order, in float32; another choice would change far more.
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_holds_what_was_planned_after_every_step(
    name: str, small_model: Infinity, small_scales: ScaleSchedule
) -> None:
    plan, heard = _plan(name, small_model, small_scales), Recording()

    generate(small_model, _texts(small_model), small_scales, online=plan, seed=1, probe=heard)

    rows, dim = 6, small_model.config.head_dim
    held = [step.accounted_bytes for step in heard.steps]
    np.testing.assert_array_equal(held, plan.tokens_held() * rows * dim * 2 * 4)
    assert all(step.kept_tokens.sum() == plan.layer_tokens[step.query_scale, step.layer] for step in heard.steps)


@pytest.mark.parametrize("name", [*POLICIES, "adakv"])
def test_a_budget_of_one_changes_nothing(name: str, small_model: Infinity, small_scales: ScaleSchedule) -> None:
    full, kept, texts = Recording(), Recording(), _texts(small_model)

    bits = generate(small_model, texts, small_scales, seed=1, probe=full).bits
    plan = _plan(name, small_model, small_scales, 1.0)
    generate(small_model, texts, small_scales, online=plan, forced_bits=bits, probe=kept)

    torch.testing.assert_close(kept.logits, full.logits, atol=1e-5, rtol=0)
