"""Selection: from a policy's scores to the tokens that stay. Ties go to the lower position; sinks always stay.

The one place that decides between candidates; policies score, the cache obeys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from heatkv.online import OnlinePlan
from heatkv.seen import Seen
from heatkv.token_cache import Candidates, Chosen

_LEAST = torch.finfo(torch.float32).min

RawQueries = Callable[[int, Tensor], Tensor]
"""Layer and indices of current tokens [n] → their queries as projected only, [R, H, n, D]."""


class Selector:
    """Asks the policy of a plan what stays after each step."""

    def __init__(self, plan: OnlinePlan, raw_queries: RawQueries) -> None:
        self.plan = plan
        self._raw_queries = raw_queries

    def choose(self, layer: int, query_scale: int, q: Tensor, candidates: list[Candidates]) -> list[Chosen]:
        """What stays of the candidates, and what travels on with them; q [R, H, L, D]."""
        capacity = self.plan.capacity[query_scale, layer].tolist()
        scored = [self._scored(self._seen(layer, query_scale, q, group, capacity), group) for group in candidates]
        counts = self._counts(scored, capacity)
        return [each for group, scores in scored for each in _split(group, scores, counts)]

    def _scored(self, seen: Seen, group: Candidates) -> tuple[Candidates, Tensor]:
        """The candidates with what the policy has them carry, and their scores [R, G, T]."""
        policy = self.plan.policy
        if policy.carries:
            seen = dataclasses.replace(seen, carried=policy.carry(seen))
            group = dataclasses.replace(group, carried=seen.carried)
        scores = with_sinks(policy.scores(seen), group.tokens, self._num_sink_tokens)
        if policy.rows == "run":
            scores = scores.mean(0, keepdim=True).expand_as(scores)
        return group, scores

    @property
    def _num_sink_tokens(self) -> int:
        return self.plan.scales.offsets[self.plan.sink_scales]

    def _counts(self, scored: list[tuple[Candidates, Tensor]], capacity: list[int]) -> list[int]:
        """How many tokens each head keeps, or all that there are: [H]."""
        if not self.plan.policy.shares_layer:
            return capacity
        means = {head: mean for group, scores in scored for head, mean in zip(group.heads, scores.mean(0), strict=True)}
        total = sum(capacity)
        least = max(self._num_sink_tokens, int(self.plan.policy.floor * total / len(capacity)))
        return shared_counts([means[head] for head in range(len(capacity))], total, least=least)

    def _seen(self, layer: int, query_scale: int, q: Tensor, group: Candidates, capacity: list[int]) -> Seen:
        heads = list(group.heads)
        return Seen(
            layer,
            query_scale,
            group.heads,
            self.plan.scales,
            self.plan.sink_scales,
            q[:, heads],
            group.keys,
            group.values,
            group.tokens,
            torch.tensor([capacity[head] for head in heads], device=q.device),
            lambda index: self._raw_queries(layer, index)[:, heads],
            group.carried,
        )


def _split(group: Candidates, scores: Tensor, counts: list[int]) -> list[Chosen]:
    """What stays of a group, heads that keep equally many together."""
    by_count: dict[int, list[int]] = {}
    for place, head in enumerate(group.heads):
        by_count.setdefault(min(counts[head], scores.shape[2]), []).append(place)
    if list(by_count) == [scores.shape[2]]:
        everything = torch.arange(scores.shape[2], device=scores.device).expand(scores.shape)
        return [(group, everything)]
    order = _order(scores)
    return [(group.of(places), order[:, places, :count].sort(dim=-1).values) for count, places in by_count.items()]


def best(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores [..., T], ascending: [..., count] int64; ties to the lower position."""
    return _order(scores)[..., :count].sort(dim=-1).values


def _order(scores: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, the lower position first where they are equal."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def with_sinks(scores: Tensor, tokens: Tensor, num_sink_tokens: int) -> Tensor:
    """Scores, finite, with those of the first tokens of the sequence above all others'."""
    finite = scores.float().nan_to_num(_LEAST, posinf=torch.finfo(torch.float32).max, neginf=_LEAST)
    return finite.masked_fill(tokens < num_sink_tokens, torch.inf)


def shared_counts(scores: list[Tensor], total: int, *, least: int) -> list[int]:
    """How many tokens each head keeps where heads share `total`: [H]; scores of each head, [T] (AdaKV).

    Every head is sure of its `least` best; the rest goes to the highest scores of all. Ties go to the lower head.
    """
    longest = max(len(each) for each in scores)
    table = torch.full((len(scores), longest), -torch.inf)
    for head, each in enumerate(scores):
        table[head, : len(each)] = each.cpu()
    sure = [min(least, len(each)) for each in scores]
    ranks = table.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    raised = torch.where(ranks < torch.tensor(sure)[:, None], torch.inf, table)
    raised[table == -torch.inf] = -torch.inf
    chosen = best(raised.flatten(), min(total, sum(len(each) for each in scores)))
    return torch.bincount(chosen // longest, minlength=len(scores)).tolist()
