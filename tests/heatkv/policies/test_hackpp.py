from __future__ import annotations

import numpy as np
import torch

from heatkv.config import MODELS
from heatkv.measurements import Measurements
from heatkv.policies.hackpp import HACKPPPolicy, class_means
from heatkv.seen import pooled
from tests.heatkv.policies.measured import random_measurements
from tests.heatkv.policies.seeing import seen

CONFIG = MODELS["infinity-tiny"]
SCALES = CONFIG.schedule_for()


def test_contextual_heads_go_by_pooled_attention_and_structural_by_prior_and_value() -> None:
    measured = random_measurements(CONFIG, SCALES)
    assert measured.attention_mass is not None
    variance = np.ones((6, 6))
    variance[0, 0] = 0.0
    policy = HACKPPPolicy(Measurements(measured.attention_mass, column_variance=variance), alpha=1 / 36)
    looked_at = seen(SCALES, 4, capacity=10)

    scores = policy.scores(looked_at)

    attention = looked_at.chances(looked_at.uniform_queries(32)).mean(2)
    torch.testing.assert_close(scores[0, 0], pooled(attention, 5, "max")[0, 0])
    source = looked_at.source_scales[0, 1].numpy()
    prior = (measured.attention_mass[4, 0, 1] / SCALES.tokens)[source]
    expected = prior * looked_at.values[0, 1].double().norm(dim=-1).numpy()
    np.testing.assert_allclose(scores[0, 1], expected, rtol=1e-5)


def test_capacities_follow_what_a_class_still_relies_on() -> None:
    measured = random_measurements(CONFIG, SCALES)
    capacity = HACKPPPolicy(measured, tau=1.0).capacities(20, CONFIG, SCALES, 0)
    flat = HACKPPPolicy(measured, tau=0.0).capacities(20, CONFIG, SCALES, 0)

    np.testing.assert_allclose(capacity[4:].mean(axis=(1, 2)), 20)
    np.testing.assert_allclose(flat[4:], 20)
    assert measured.column_variance is not None
    contextual = measured.column_variance <= np.median(measured.column_variance)
    means = class_means(measured.reliance()[None, :, :, 5], contextual)[0]
    np.testing.assert_allclose(capacity[5], 20 * means / means.mean())


def test_class_means_are_of_one_layer_and_one_class() -> None:
    values = np.array([[[1.0, 3.0, 10.0], [2.0, 4.0, 6.0]]])
    contextual = np.array([[True, True, False], [False, False, False]])

    assert class_means(values, contextual).tolist() == [[[2, 2, 10], [4, 4, 4]]]
