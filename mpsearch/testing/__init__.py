"""Laws that every solver, hardware model, format and estimator keeps, as suites to inherit.

Subclass one in your own tests and name your member; pytest finds the laws::

    class TestMine(SolverSuite):
        solver = Mine()

Neither pytest nor torch is imported here; laws that need torch are skipped without it.
"""

from mpsearch.testing.estimators import EstimatorSuite
from mpsearch.testing.formats import FormatSuite
from mpsearch.testing.hardware import HardwareSuite
from mpsearch.testing.solver import SolverSuite

__all__ = ["EstimatorSuite", "FormatSuite", "HardwareSuite", "SolverSuite"]
