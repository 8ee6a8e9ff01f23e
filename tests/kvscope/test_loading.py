from __future__ import annotations

import gc

import pytest

from kvscope.loading import loading


def test_collections_rest_meanwhile_and_leave_out_what_was_loaded() -> None:
    with loading():
        assert not gc.isenabled()

    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_collections_go_on_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError("no such module")

    assert gc.isenabled()
