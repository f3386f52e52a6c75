"""What each command does: arguments in, a document and its prose out.

A command is a function of the parsed arguments, loaded when it is called: those on files need no
torch, those on models do.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from mpsearch.commands.said import Said

_HOME = {
    "on_files": "solve frontier show diff export list",
    "on_models": "search sensitivity cost verify",
    "profiling": "profile",
}


def command(name: str) -> "Callable[[Namespace], Said]":
    """The function behind a command's name."""
    module = next(module for module, names in _HOME.items() if name in names.split())
    attribute = {"list": "list_"}.get(name, name)
    found: Callable[[Namespace], Said] = getattr(
        import_module(f"mpsearch.commands.{module}"), attribute
    )
    return found
