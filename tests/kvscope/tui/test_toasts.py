"""A toast that expires while it is mounted must not stop the viewer."""

from __future__ import annotations

import asyncio

from textual.app import App
from textual.widgets._toast import Toast as Widget

from kvscope.tui.toasts import Toast, toast


def test_a_toast_that_has_expired_has_a_moment_left_and_is_gone() -> None:
    late = Toast("late", timeout=-1)

    assert late.has_expired
    assert late.time_left > 0
    assert not Toast("now", timeout=5).has_expired


def test_mounting_one_that_has_no_time_left_ends() -> None:
    async def main() -> None:
        app: App[None] = App()
        async with app.run_test(notifications=True) as pilot:
            await app.screen.mount(Widget(Toast("late", timeout=-1)))
            toast(app, "[b]as it is", seconds=500)
            await pilot.pause()
            await pilot.pause(0.1)
            assert [one.message for one in app._notifications] == ["[b]as it is"]

    asyncio.run(asyncio.wait_for(main(), 60))
