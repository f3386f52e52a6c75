"""Mixed-precision search: which number format each layer of a network should have.

Estimators and hardware models write tables, solvers read them, allocations leave, and every
allocation is run for real before anyone is asked to believe it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpsearch import registry

if TYPE_CHECKING:
    from mpsearch import export
    from mpsearch.allocation import Allocation, Infeasible
    from mpsearch.choosing import Choice, choose
    from mpsearch.distilling import distilled
    from mpsearch.documents import load_problem, load_table, save_problem, save_table
    from mpsearch.formats import Format, Option, options
    from mpsearch.fronts import frontier
    from mpsearch.kernels.running import quantize
    from mpsearch.network import Layer, Network, numbered
    from mpsearch.pareto import Frontier
    from mpsearch.pipeline import (
        Allocator,
        Search,
        cost,
        costs,
        estimate,
        search,
        solve,
    )
    from mpsearch.places import finer
    from mpsearch.problem import Budget, Constraint, Interaction, Problem, Solution, Status
    from mpsearch.protocols import Backend, Estimator, HardwareModel, Solver
    from mpsearch.quant.model import quantized_like
    from mpsearch.quant.recipe import Recipe
    from mpsearch.questions import Nested, nested, tolerance, top_k
    from mpsearch.reading import BadDocument
    from mpsearch.split_budget import Grid, Split, split
    from mpsearch.sweep import Sweep
    from mpsearch.tables import Stages, Table
    from mpsearch.task import Task
    from mpsearch.tracing import trace
    from mpsearch.verification import verify

__version__ = "0.1.0"

# Names, not imports: nothing is loaded before it is used, torch last of all.
_HOME = {
    "allocation": "Allocation Infeasible",
    "choosing": "Choice choose",
    "distilling": "distilled",
    "documents": "load_problem load_table save_problem save_table",
    "formats": "Format Option options",
    "network": "Layer Network numbered",
    "pareto": "Frontier",
    "fronts": "frontier",
    "pipeline": "Allocator Search cost costs estimate search solve",
    "questions": "Nested nested tolerance top_k",
    "places": "finer",
    "problem": "Budget Constraint Interaction Problem Solution Status",
    "protocols": "Backend Estimator HardwareModel Solver",
    "kernels.running": "quantize",
    "quant.model": "quantized_like",
    "quant.recipe": "Recipe",
    "reading": "BadDocument",
    "split_budget": "Grid Split split",
    "sweep": "Sweep",
    "tables": "Stages Table",
    "task": "Task",
    "tracing": "trace",
    "verification": "verify",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "Allocation",
    "Allocator",
    "Backend",
    "BadDocument",
    "Budget",
    "Choice",
    "Constraint",
    "Estimator",
    "Format",
    "Frontier",
    "Grid",
    "HardwareModel",
    "Infeasible",
    "Interaction",
    "Layer",
    "Nested",
    "Network",
    "Option",
    "Problem",
    "Recipe",
    "Search",
    "Solution",
    "Solver",
    "Split",
    "Stages",
    "Status",
    "Sweep",
    "Table",
    "Task",
    "choose",
    "cost",
    "costs",
    "distilled",
    "estimate",
    "export",
    "finer",
    "frontier",
    "load_problem",
    "load_table",
    "nested",
    "numbered",
    "options",
    "quantize",
    "quantized_like",
    "registry",
    "save_problem",
    "save_table",
    "search",
    "solve",
    "split",
    "tolerance",
    "top_k",
    "trace",
    "verify",
]


if not TYPE_CHECKING:  # so that a misspelt name stays an error to type checkers

    def __getattr__(name: str) -> Any:
        if name == "export":
            return import_module("mpsearch.export")
        if name not in _MODULE:
            raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
        value = getattr(import_module(f"mpsearch.{_MODULE[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
