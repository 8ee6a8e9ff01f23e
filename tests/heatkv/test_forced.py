"""Forced runs on a small model in float32, held against a model that keeps everything and masks what was pruned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatkv.config import ModelConfig
from heatkv.errors import ScheduleError
from heatkv.forced import Prompt, Reference, attention_error, bit_flips, bit_kl, forced_error
from heatkv.generate import Sampling
from heatkv.online import OnlinePlan
from heatkv.policies.full import FullPolicy
from heatkv.policies.snapkv import SnapKVPolicy
from heatkv.policies.window import WindowPolicy
from heatkv.scales import ScaleSchedule
from heatkv.schedule import PruningSchedule
from heatkv.transformer import Infinity
from tests.heatkv.conftest import random_schedule
from tests.heatkv.test_equality import MaskedTwin, masked_attention, seen_tokens

SAMPLINGS = {
    "logits": Sampling(cfg=2.5),
    "no guidance": Sampling(cfg=1.0),
    "hidden state": Sampling(cfg=2.5, cfg_insertion_layers=(-2,)),
}


@dataclass
class ErrorTwin(MaskedTwin):
    """A masked twin of the reference that also asks what another schedule would have given."""

    other: PruningSchedule | None = None
    errors: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().__call__(layer, q, k, v).double()
        assert self.other is not None
        seen = seen_tokens(self.other, self.query_scale, layer)
        pruned = masked_attention(q, self.keys[layer], self.values[layer], seen)
        gap, size = (((x**2).sum(dim=(0, 2, 3)).sqrt()).numpy() for x in (out - pruned, out))
        self.errors[self.query_scale, layer] = gap / size
        return out.to(q.dtype)


@pytest.fixture(scope="module", params=list(SAMPLINGS))
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return SAMPLINGS[request.param]


@pytest.fixture(scope="module", params=[False, True], ids=["learned", "negative"])
def prompt(
    request: pytest.FixtureRequest,
    small_model: Infinity,
    small_texts: list[Tensor],
    small_scales: ScaleSchedule,
    sampling: Sampling,
) -> Prompt:
    """With the learned unconditional text, or a negative prompt."""
    if request.param and not sampling.guided:
        pytest.skip("without guidance there is no unconditional row")
    return Prompt(small_model, small_texts[0], small_scales, sampling, small_texts[1] if request.param else None)


@pytest.fixture(scope="module")
def reference(prompt: Prompt) -> Reference:
    return Reference.of(prompt, full(prompt), seed=3)


def full(prompt: Prompt) -> PruningSchedule:
    return FullPolicy().plan(prompt.model.config, prompt.scales)


def pruned(prompt: Prompt, *, seed: int = 0) -> PruningSchedule:
    return random_schedule(prompt.model.config, prompt.scales, seed=seed)


def negatives(prompt: Prompt) -> list[Tensor] | None:
    return None if prompt.negative is None else [prompt.negative]


def test_the_same_schedule_at_its_own_bits_has_no_error_at_all(reference: Reference, prompt: Prompt) -> None:
    error = forced_error(reference, full(prompt))

    assert error.mean_kl == 0
    assert error.mean_flips == 0
    assert not attention_error(reference, full(prompt)).any()


def test_a_run_at_given_bits_is_the_run_that_made_them(reference: Reference, prompt: Prompt) -> None:
    again = Reference.of(prompt, full(prompt), bits=reference.bits)

    assert all(torch.equal(a, b) for a, b in zip(reference.logits, again.logits, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(reference.bits, again.bits, strict=True))


def test_kl_and_flips_are_those_of_a_masked_dense_model(reference: Reference, prompt: Prompt) -> None:
    schedule = pruned(prompt)
    bits = list(reference.bits)

    with torch.inference_mode():
        ours, theirs = (
            MaskedTwin(prompt.model, one, prompt.sampling).logits([prompt.text], negatives(prompt), bits)
            for one in (full(prompt), schedule)
        )

    error = forced_error(reference, schedule)
    pairs = zip(ours.split(prompt.scales.tokens, dim=1), theirs.split(prompt.scales.tokens, dim=1), strict=True)
    expected = np.array([(bit_kl(a, b), bit_flips(a, b)) for a, b in pairs])
    # float32 against a twin whose attention is in float64.
    np.testing.assert_allclose(error.kl, expected[:, 0], rtol=1e-3, atol=1e-7)
    bits_of_a_scale = np.array(prompt.scales.tokens) * prompt.model.config.bits_per_token
    assert (np.abs(error.flips - expected[:, 1]) * bits_of_a_scale <= 1).all()
    assert error.mean_kl > 0
    assert error.kl[0] == 0


def test_attention_error_is_that_of_a_masked_dense_attention(reference: Reference, prompt: Prompt) -> None:
    schedule = pruned(prompt, seed=1)
    twin = ErrorTwin(prompt.model, full(prompt), prompt.sampling, other=schedule)

    with torch.inference_mode():
        twin.logits([prompt.text], negatives(prompt), list(reference.bits))

    found = attention_error(reference, schedule)
    for (query_scale, layer), expected in twin.errors.items():
        np.testing.assert_allclose(found[query_scale, layer], expected, rtol=1e-3, atol=1e-6)


def test_attention_is_off_exactly_where_something_is_not_read(reference: Reference, prompt: Prompt) -> None:
    schedule = pruned(prompt, seed=2)

    found = attention_error(reference, schedule)

    for query_scale in range(prompt.scales.num_scales):
        lacks = ~schedule.visible(query_scale)[:, :, : query_scale + 1].all(axis=-1)
        assert (found[query_scale][lacks] > 0).all()
        # Equal heads may be gathered in other groups, which rounds otherwise.
        np.testing.assert_allclose(found[query_scale][~lacks], 0, atol=1e-5)


def test_means_weigh_scales_by_their_tokens(reference: Reference, prompt: Prompt) -> None:
    error = forced_error(reference, pruned(prompt))

    assert error.mean_kl == pytest.approx(np.average(error.kl, weights=prompt.scales.tokens))
    assert error.mean_flips == pytest.approx(np.average(error.flips, weights=prompt.scales.tokens))


def test_a_schedule_of_another_model_is_refused(reference: Reference, prompt: Prompt) -> None:
    other: ModelConfig = replace(prompt.model.config, name="other")
    schedule = FullPolicy().plan(other, prompt.scales)

    with pytest.raises(ScheduleError, match="the schedule is for other"):
        forced_error(reference, schedule)
    with pytest.raises(ScheduleError, match="the schedule is for other"):
        attention_error(reference, schedule)


class TestMeasures:
    def test_kl_of_known_logits(self) -> None:
        ours = torch.tensor([[[0.0, 0.0, 0.0, 0.0]]])
        theirs = torch.log(torch.tensor([[[0.25, 0.75, 0.5, 0.5]]]))

        expected = (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)) / 2
        assert bit_kl(ours, theirs) == pytest.approx(expected, rel=1e-6)
        assert bit_kl(theirs, theirs) == 0

    def test_logits_of_another_offset_are_the_same_distribution(self) -> None:
        logits = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))

        assert bit_kl(logits, logits + 7) == pytest.approx(0, abs=1e-12)
        assert bit_flips(logits, logits + 7) == 0

    def test_a_tie_counts_as_bit_0(self) -> None:
        tie, one, zero = (torch.tensor([[list(pair)]]) for pair in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)))

        assert bit_flips(tie, one) == 1
        assert bit_flips(tie, zero) == 0


@pytest.fixture
def online(prompt: Prompt) -> OnlinePlan:
    """A policy that keeps a third, other tokens in every row."""
    return SnapKVPolicy(window=4).plan(prompt.model.config, prompt.scales, budget=0.4)


def test_an_online_policy_that_lets_everything_stay_has_no_error(prompt: Prompt, reference: Reference) -> None:
    everything = WindowPolicy().plan(prompt.model.config, prompt.scales, budget=1.0)

    found = forced_error(reference, everything)

    # Rounding of float32 sums in another order is all that there is.
    assert found.mean_kl < 1e-9
    assert attention_error(reference, everything).max() < 1e-5


def test_an_online_policy_errs_only_once_something_is_gone(reference: Reference, online: OnlinePlan) -> None:
    held = online.bound().tokens_held().reshape(online.scales.num_scales, -1)
    whole = (
        held[:, -1]
        == np.minimum(np.cumsum(online.scales.tokens), online.scales.history_tokens)
        * online.config.num_layers
        * online.config.num_heads
    )

    found, errors = forced_error(reference, online), attention_error(reference, online)

    first = int(np.argmin(whole)) + 1  # the scale after the first that let something go
    assert found.kl[:first].max() < 1e-9
    assert found.kl[first:].min() > 1e-9
    assert errors[:first].max() < 1e-5
    assert errors[first:].max() > 1e-3


def test_a_run_of_an_online_policy_is_a_reference_too(prompt: Prompt, online: OnlinePlan) -> None:
    reference = Reference.of(prompt, online, seed=3)

    assert forced_error(reference, online).mean_kl == 0.0
    assert attention_error(reference, online).max() == 0.0
    assert forced_error(reference, full(prompt)).mean_kl > 0


@pytest.mark.parametrize("budget", [0.0, 0.02])
def test_heads_that_keep_nothing_still_choose_at_the_next_scale(reference: Reference, budget: float) -> None:
    scarce = WindowPolicy().plan(reference.prompt.model.config, reference.prompt.scales, budget=budget, sink_scales=0)

    assert scarce.capacity.min() == 0
    assert forced_error(reference, scarce).mean_kl > 0
