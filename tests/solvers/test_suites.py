"""Every solver of ours, against the laws that third parties inherit too."""

from mpsearch.solvers import Exhaustive, Milp
from mpsearch.testing import SolverSuite


class TestExhaustive(SolverSuite):
    solver = Exhaustive()


class TestMilp(SolverSuite):
    solver = Milp()


class TestMilpOnCbc(SolverSuite):
    solver = Milp(engine="cbc")
