"""The package's public names: lazy, and all there."""

from __future__ import annotations

import pytest

import kvscope


@pytest.mark.parametrize("name", kvscope.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(kvscope, name)
    assert name in dir(kvscope)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trane'"):
        _ = kvscope.Trane
