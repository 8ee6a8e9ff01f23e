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
from heatkv.token_cache import Candidates

_LEAST = torch.finfo(torch.float32).min

RawQueries = Callable[[int, Tensor], Tensor]
"""Layer and indices of current tokens [n] → their queries as projected only, [R, H, n, D]."""


class Selector:
    """Asks the policy of a plan what stays after each step."""

    def __init__(self, plan: OnlinePlan, raw_queries: RawQueries) -> None:
        self.plan = plan
        self._raw_queries = raw_queries

    def choose(
        self, layer: int, query_scale: int, q: Tensor, candidates: list[Candidates]
    ) -> tuple[list[Candidates], list[Tensor]]:
        """What stays of the candidates: per head, [R, n] ascending positions; q [R, H, L, D].

        Also the candidates with what travels on with them.
        """
        capacity = self.plan.capacity[query_scale, layer].tolist()
        scored: dict[int, Tensor] = {}
        kept = []
        for group in candidates:
            seen = self._seen(layer, query_scale, q, group, capacity)
            if self.plan.policy.carries:
                seen = dataclasses.replace(seen, carried=self.plan.policy.carry(seen))
            scores = with_sinks(self.plan.policy.scores(seen), group.tokens, self._num_sink_tokens)
            if self.plan.policy.rows == "run":
                scores = scores.mean(0, keepdim=True).expand_as(scores)
            scored.update(dict(zip(group.heads, scores.unbind(1), strict=True)))
            kept.append(dataclasses.replace(group, carried=seen.carried))
        by_head = [scored[head] for head in range(len(capacity))]
        counts = self._counts(by_head, capacity)
        return kept, [best(each, min(count, each.shape[1])) for each, count in zip(by_head, counts, strict=True)]

    @property
    def _num_sink_tokens(self) -> int:
        return self.plan.scales.offsets[self.plan.sink_scales]

    def _counts(self, scores: list[Tensor], capacity: list[int]) -> list[int]:
        if not self.plan.policy.shares_layer:
            return capacity
        total = sum(capacity)
        least = max(self._num_sink_tokens, int(self.plan.policy.floor * total / len(capacity)))
        return shared_counts([each.mean(0) for each in scores], total, least=least)

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


def best(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest scores [..., T], ascending: [..., count] int64; ties to the lower position."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return order.sort(dim=-1).values


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
