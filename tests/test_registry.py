"""Names: ours, and those of installed packages."""

from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch import registry

THEIRS = """[mpsearch.solvers]
cheapest = theirs_for_mpsearch:Cheapest
milp = theirs_for_mpsearch:Cheapest
"""
CODE = """
import math
from mpsearch.problem import Solution, Status

class Cheapest:
    def solve(self, problem):
        choice = tuple(0 for _ in problem.loss.layers)
        return Solution(choice, problem.total(choice), Status.FEASIBLE, -math.inf)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's, as pip leaves it."""
    (tmp_path / "theirs_for_mpsearch.py").write_text(CODE)
    info = tmp_path / "theirs_for_mpsearch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirs-for-mpsearch\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_third_party_s_solver_is_found_by_its_name() -> None:
    assert registry.load("solvers", "cheapest").__module__ == "theirs_for_mpsearch"
    layers, options = (mp.Layer("a"),), mp.options("w4a8", "w8a8")
    loss = mp.Table(layers, options, np.array([[2.0, 1.0]]), "loss")
    best = mp.solve(loss, solver="cheapest")
    assert "uniform int8/int8 is predicted better" in best.provenance["guard"]


@pytest.mark.usefixtures("installed")
def test_a_third_party_does_not_replace_ours() -> None:
    assert registry.load("solvers", "milp").__module__ == "mpsearch.solvers.milp"


def test_unknown_kinds_and_names_say_what_there_is() -> None:
    with pytest.raises(
        LookupError, match="no kind is named 'solver'; kinds are sensitivity, data, hwmodels"
    ):
        registry.names("solver")
    with pytest.raises(LookupError, match="no device is named 'h9000'; there are "):
        registry.load("devices", "h9000")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry._OURS[kind]]
)
def test_every_name_of_ours_stands_for_something(kind: str, name: str) -> None:
    found = registry.load(kind, name)
    module, _, attribute = registry.names(kind)[name].partition(":")
    assert callable(found)
    assert (found.__module__, found.__name__) == (module, attribute)
