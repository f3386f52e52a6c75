"""A saved problem solved for other budgets: the model is needed once, then never again."""

import tempfile
from pathlib import Path

import mpsearch as mp
from mpsearch.demo import digits

task = digits.task()
options = mp.options("w2a8", "w4a8", "w8a8")
found = mp.search(task, options, {"size": "uniform:w4a8"}, method="weight-error")
folder = Path(tempfile.mkdtemp())
mp.save_problem(found.problem, folder / "problem.json")

problem = mp.load_problem(folder / "problem.json")
costs = {cost.name: cost for cost in problem.costs}
for limit in ("3bit", "4bit", "6bit"):
    best = mp.solve(problem.loss, {costs["size"]: limit}, costs=[costs["bitops"]])
    print(f"{limit}: {best.cost['size']} byte, loss {best.loss:.5g}, {best.status.value}")
