"""Hessians of what a task's layers read: see :mod:`mpsearch.quant.input_hessian`."""

import copy
from collections.abc import Sequence

from mpsearch.quant.attention import explicit
from mpsearch.quant.input_hessian import InputHessians
from mpsearch.sensitivity.weights import Stored
from mpsearch.task import Task


def input_hessians(task: Task, layers: Sequence[Sequence[Stored]]) -> InputHessians:
    """Of some layers' weights, on a copy of the task's model and all of its batches."""
    model = explicit(copy.deepcopy(task.model)).eval().requires_grad_(False)
    return InputHessians.of(model, task.batches, [one.name for layer in layers for one in layer])
