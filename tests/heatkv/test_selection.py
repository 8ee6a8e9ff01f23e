from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.config import ModelConfig, VAEConfig
from heatkv.online import OnlinePlan
from heatkv.policies.window import WindowPolicy
from heatkv.scales import ScaleSchedule
from heatkv.selection import Selector, best, shared_counts, with_sinks
from heatkv.token_cache import Candidates

SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (3, 3)))
CONFIG = ModelConfig("small", 1, 48, 3, 1, VAEConfig(16, 16))


def _no_queries(layer: int, index: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the window asks for none")


class TestBest:
    def test_ties_go_to_the_lower_position(self) -> None:
        scores = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])

        assert best(scores, 2).tolist() == [[1, 2], [0, 1]]
        assert best(scores, 4).tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]

    def test_of_none_nothing_stays(self) -> None:
        assert best(torch.ones(2, 5), 0).shape == (2, 0)

    def test_sinks_are_above_all_and_numbers_that_are_none_below(self) -> None:
        scores = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf, 5.0])

        raised = with_sinks(scores, torch.tensor([0, 1, 2, 3, 4]), 2)

        assert best(raised, 4).tolist() == [0, 1, 2, 4]


class TestSharedCounts:
    def test_the_highest_of_all_heads_win_and_every_head_is_sure_of_its_least(self) -> None:
        scores = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0])]

        assert shared_counts(scores, 4, least=0) == [3, 0, 1]
        assert shared_counts(scores, 4, least=1) == [2, 1, 1]

    def test_ties_go_to_the_lower_head(self) -> None:
        assert shared_counts([torch.zeros(3), torch.zeros(3)], 4, least=0) == [3, 1]

    @given(
        lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
        share=st.floats(0, 1),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=60)
    def test_all_of_the_total_is_dealt_out_as_far_as_there_are_tokens(
        self, lengths: list[int], share: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(length, generator=generator) for length in lengths]
        total = round(share * 12 * len(lengths))
        least = int(0.2 * total / len(lengths))

        counts = shared_counts(scores, total, least=least)

        assert sum(counts) == min(total, sum(lengths))
        assert all(min(least, length) <= count <= length for count, length in zip(counts, lengths, strict=True))


def test_heads_of_unequal_capacity_are_chosen_for_in_groups() -> None:
    capacity = np.array([[[1, 1, 1]], [[2, 4, 2]], [[2, 4, 2]]])
    selector = Selector(OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, capacity), _no_queries)
    keys = torch.randn(2, 3, 5, 4)
    group = Candidates((0, 1, 2), keys, keys, torch.arange(5).expand(2, 3, -1), None)

    chosen = selector.choose(0, 1, torch.randn(2, 3, 4, 4), [group])

    kept = {head: keep[0, place].tolist() for one, keep in chosen for place, head in enumerate(one.heads)}
    assert kept == {0: [3, 4], 1: [1, 2, 3, 4], 2: [3, 4]}
    assert [one.heads for one, _ in chosen] == [(0, 2), (1,)]


def test_where_all_fit_all_stay() -> None:
    selector = Selector(OnlinePlan(WindowPolicy(), CONFIG, SCALES, 0, np.full((3, 1, 3), 9)), _no_queries)
    keys = torch.randn(1, 3, 5, 4)
    group = Candidates((0, 1, 2), keys, keys, torch.arange(5).expand(1, 3, -1), None)

    ((_, keep),) = selector.choose(0, 1, torch.randn(1, 3, 4, 4), [group])

    assert keep.tolist() == [[[0, 1, 2, 3, 4]] * 3]
