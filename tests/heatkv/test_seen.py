from __future__ import annotations

import pytest
import torch

from heatkv.scales import ScaleSchedule
from heatkv.seen import pooled
from tests.heatkv.policies.seeing import seen

SCALES = ScaleSchedule.custom(((1, 1), (2, 2), (4, 4), (9, 9), (3, 6)))


class TestQueries:
    def test_the_grid_takes_the_token_nearest_each_cells_middle(self) -> None:
        looked_at = seen(SCALES, 3, capacity=10)  # 9 x 9: cells of 2, the last row and column left over

        index = looked_at.grid_queries(16)

        assert index.tolist() == [row * 9 + column for row in (0, 2, 4, 6) for column in (0, 2, 4, 6)]

    @pytest.mark.parametrize(("scale", "count"), [(1, 16), (4, 16), (2, 5)])
    def test_a_map_that_no_grid_fits_gives_its_last_queries(self, scale: int, count: int) -> None:
        looked_at = seen(SCALES, scale, capacity=10)

        expected = list(range(looked_at.num_current))[-count:]
        assert looked_at.grid_queries(count).tolist() == expected

    def test_uniform_queries_are_equally_far_apart(self) -> None:
        looked_at = seen(SCALES, 2, capacity=10)

        assert looked_at.uniform_queries(4).tolist() == [2, 6, 10, 14]
        assert looked_at.uniform_queries(32).tolist() == list(range(16))


class TestAttention:
    def test_chances_are_softmax_over_all_candidates(self) -> None:
        looked_at = seen(SCALES, 2, capacity=10)

        chances = looked_at.chances(torch.tensor([3, 7]))

        expected = (looked_at.q[:, :, [3, 7]].double() @ looked_at.keys.double().mT).softmax(-1)
        torch.testing.assert_close(chances.double(), expected, atol=1e-6, rtol=0)

    def test_mass_is_the_mean_over_all_queries(self) -> None:
        looked_at = seen(SCALES, 3, capacity=10, rows=2)

        mass = looked_at.mass()

        torch.testing.assert_close(mass, looked_at.chances(torch.arange(81)).mean(2), atol=1e-6, rtol=0)


class TestTokens:
    def test_source_scales_are_those_of_the_tokens(self) -> None:
        looked_at = seen(SCALES, 2, capacity=10, stored=torch.tensor([0, 4]))

        assert looked_at.source_scales[0, 0].tolist() == [0, 1, *[2] * 16]
        assert looked_at.num_stored == 2

    def test_values_of_scales_are_spread_over_their_tokens(self) -> None:
        looked_at = seen(SCALES, 1, capacity=10)

        spread = looked_at.of_scales(torch.tensor([[1.0, 2.0, 0, 0, 0], [3.0, 4.0, 0, 0, 0]]))

        assert spread.tolist() == [[[1, 2, 2, 2, 2], [3, 4, 4, 4, 4]]]

    def test_the_last_candidates_of_each_head(self) -> None:
        looked_at = seen(SCALES, 1, capacity=10)

        assert looked_at.is_last(torch.tensor([2, 0])).sum(1).tolist() == [2, 0]
        assert looked_at.is_last(torch.tensor([2, 9]))[0].tolist() == [False, False, False, True, True]


class TestPooling:
    scores = torch.tensor([[[1.0, 5.0, 2.0, 0.0]]])

    def test_keeps_the_length(self) -> None:
        assert pooled(self.scores, 3, "max").tolist() == [[[5, 5, 5, 2]]]
        assert pooled(self.scores, 1, "max") is self.scores
        assert pooled(self.scores, 4, "mean").shape == self.scores.shape

    def test_what_is_outside_counts_only_where_asked_for(self) -> None:
        torch.testing.assert_close(pooled(self.scores, 3, "mean")[0, 0, 0], torch.tensor(3.0))
        torch.testing.assert_close(pooled(self.scores, 3, "zero-padded mean")[0, 0, 0], torch.tensor(2.0))
