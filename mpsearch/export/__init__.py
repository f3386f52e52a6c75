"""Allocations in other tools' words: one module a tool, each a function of an allocation."""

from mpsearch.export.onnx import onnx
from mpsearch.export.torchao import torchao

__all__ = ["onnx", "torchao"]
