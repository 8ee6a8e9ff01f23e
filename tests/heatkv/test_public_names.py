"""The lazy names of the package are real."""

from __future__ import annotations

import pytest

import heatkv


@pytest.mark.parametrize("name", [name for name in dir(heatkv) if name in heatkv._MODULE_OF])
def test_every_public_name_loads_from_its_module(name: str) -> None:
    loaded = getattr(heatkv, name)

    assert getattr(loaded, "__module__", heatkv._MODULE_OF[name]) == heatkv._MODULE_OF[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        heatkv.Nonsense  # noqa: B018  # the access is the test
