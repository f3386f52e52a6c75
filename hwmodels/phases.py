"""Which part of a language model's work is priced: the traced run, or one token after the other."""

from typing import Literal, get_args

Phase = Literal["traced", "decode"]


def check_phase(phase: str) -> None:
    """Refuse an unknown phase by ``ValueError``."""
    if phase not in get_args(Phase):
        raise ValueError(f"no phase is named {phase!r}; there are {' and '.join(get_args(Phase))}")
