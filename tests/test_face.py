"""What ``import mpsearch`` offers."""

import pytest

import mpsearch as mp
from mpsearch import registry


@pytest.mark.parametrize("name", mp.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mp, name) is not None
    assert name in dir(mp)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mpsearch' has no attribute 'slove'"):
        getattr(mp, "slove")  # noqa: B009  so that type checkers let it pass


@pytest.mark.parametrize("kind", [k for k in registry.KINDS if registry.names(k)])
def test_everything_in_the_registry_can_be_loaded(kind: str) -> None:
    for name in registry.names(kind):
        found = registry.load(kind, name)
        assert callable(found) or found.name == name  # a device is data
