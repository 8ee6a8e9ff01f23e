"""Schedule: the plan in force, head by head: when each head-scale leaves the cache, and what that comes to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Vertical
from textual.widget import Widget

from kvscope.tui.actions import bindings
from kvscope.tui.lanes import PINS, Change, changes
from kvscope.tui.screens.base import Record, TraceScreen
from kvscope.tui.view import View
from kvscope.tui.widgets.canvas import Canvas
from kvscope.tui.widgets.lanes import (
    cell_line,
    lanes,
    lanes_hit,
    plan_head,
    plan_head_height,
    schedule_of,
    totals,
    totals_hit,
)

if TYPE_CHECKING:
    from heatkv.schedule import PruningSchedule
    from kvscope.tui.editing import EditState

_HEAD = (
    "The plan that the run obeys. The budget is a fraction of the history: the tokens of all scales but the last, over "
    "all layers and heads. The peak is the most that is held after any step; headroom is what the budget leaves there, "
    "and it is nowhere less. The hash is of the drop steps, the scales and the sinks: equal hashes drop alike. While "
    "it is edited this is the staged plan: tokens and bytes follow from it, what is lost is estimated from the "
    "attention that the run measured, and nothing runs before it is reviewed on Plan."
)
_LANES = (
    "One line per head, one column per source scale. A bar is the share of the steps left, from the one that writes "
    "it to the last, through which a head-scale lives: full, to the end; a dot alone, it is read at its own step and "
    "never kept. Thin lines are sink scales, never evicted; the last scale is never cached. Dropped counts the heads "
    "that do not keep the scale to the end. A letter at the begin of a bar is the codec that it is stored in: f fp8, "
    "8 int8, 4 int4, k k4v2, 2 int2; without one, the model's own numbers. While it is edited, the sign before a bar "
    "says what differs from the recorded plan: pinned, dropped by hand, changed by the policy that fills in, or stored "
    "in another codec (a ring). Of a policy that chooses single tokens during the run there is no such plan: one line "
    "per layer, one column per query scale, and how many tokens the layer then holds, over all its heads."
)
_TOTALS = (
    "The most that is held after any step of each query scale, over all layers and heads, as a share of the budget, "
    "or without one of the full history: by the plan, and as the run measured it. While it is edited: the estimated "
    "peak, and the estimated share of attention that goes to what is dropped, by query scale and by layer."
)


def edited_record(edit: EditState, layer: int, head: int, source_scale: int) -> Record:
    """What editing adds to the record of a head-scale."""
    change = Change(changes(edit.draft)[layer, head, source_scale])
    return {
        "recorded_drop_step": int(edit.draft.start.drop_step[layer, head, source_scale]),
        "pinned": int(change in PINS),
    }


def capacity_records(schedule: PruningSchedule, token_bytes: int) -> list[Record]:
    """What each layer holds after its step, where an online policy chooses."""
    assert schedule.layer_tokens is not None  # the caller asks
    return [
        {"query_scale": scale, "layer": layer, "tokens": tokens, "bytes": tokens * token_bytes}
        for scale, layers in enumerate(schedule.layer_tokens.tolist())
        for layer, tokens in enumerate(layers)
    ]


class ScheduleScreen(TraceScreen):
    """When each head drops what."""

    NAME = "schedule"
    BINDINGS: ClassVar = bindings("schedule")

    DEFAULT_CSS = """
    ScheduleScreen {
        #plan { height: auto; }
        #lanes { height: 1fr; min-height: 6; }
        #cell { height: 1; }
        #totals { height: 4; }
        &.-tall #totals { height: 6; }
        &.-editing #totals { height: 5; }
        &.-editing.-tall #totals { height: 8; }
    }
    """

    def parts(self) -> Iterable[Widget]:
        with Vertical(classes="body"):
            yield Canvas(plan_head, id="plan", height=plan_head_height, about=_HEAD)
            yield Canvas(lanes, id="lanes", hit=lanes_hit, about=_LANES)
            yield Canvas(cell_line, id="cell")
            yield Canvas(totals, id="totals", hit=totals_hit, about=_TOTALS)

    def show(self, view: View) -> None:
        self.set_class(view.edit is not None, "-editing")
        super().show(view)

    def records(self, view: View) -> list[Record]:
        """One per head-scale of the plan that is shown; `dropped_after_…`: None for what is kept to the end.

        While it is edited, `recorded_drop_step` and `pinned` too. Of an online policy, which drops by no plan, one per
        query scale and layer: how many tokens it holds.
        """
        if view.snapshot is None:
            return []
        edit, schedule = view.edit, schedule_of(view, view.snapshot)
        token_bytes = view.snapshot.header.bytes_of(schedule).tolist()
        if schedule.online:
            return capacity_records(schedule, token_bytes[0][0][0])  # one codec for all
        records: list[Record] = []
        for layer, heads in enumerate(schedule.drop_step.tolist()):
            for head, drop_steps in enumerate(heads):
                for source, drop_step in enumerate(drop_steps):
                    is_last = source == schedule.scales.num_scales - 1
                    is_kept = drop_step == schedule.num_steps - 1 and not is_last
                    scale, after = divmod(drop_step, schedule.num_layers)
                    tokens = schedule.scales.tokens[source]
                    records.append(
                        {
                            "layer": layer,
                            "head": head,
                            "source_scale": source,
                            "drop_step": drop_step,
                            "dropped_after_scale": None if is_kept else scale,
                            "dropped_after_layer": None if is_kept else after,
                            "tokens": tokens,
                            "bytes": tokens * token_bytes[layer][head][source],
                            **({} if edit is None else edited_record(edit, layer, head, source)),
                        }
                    )
        return records
