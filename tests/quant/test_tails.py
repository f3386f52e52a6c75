"""Ends of runs of samples: literally, whatever the batches, and in bounded memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.quant import tails
from mpsearch.quant.tails import Tails


def literal(rows: list[tuple[float, float]], most: int) -> tuple[int, list[float]]:
    """The length of a run, and the ends of each: one sample at a time."""
    length, runs, rest = 1, [], []
    for row in rows:
        rest.append(row)
        if len(rest) == length:
            runs.append((min(r[0] for r in rest), max(r[1] for r in rest)))
            rest = []
        if len(runs) == most:
            pairs = zip(runs[::2], runs[1::2], strict=True)
            runs = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs]
            length *= 2
    if rest:
        runs.append((min(r[0] for r in rest), max(r[1] for r in rest)))
    return length, [low for low, _ in runs] + [high for _, high in runs]


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 8))
def test_runs_are_those_of_one_sample_at_a_time(count: int, batch: int, half: int) -> None:
    most = 2 * half
    ends = torch.randn(count, 2).sort(1).values
    found = Tails()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tails, "_MOST", most)
        for part in ends.split(batch):
            found.add(part.T)
    length, values = literal([(a, b) for a, b in ends.tolist()], most)
    assert (found.length, found.values().tolist()) == (length, values)
    assert len(values) <= 2 * most


def test_few_samples_are_kept_one_by_one() -> None:
    ends = torch.arange(8.0).reshape(2, 4)
    found = Tails()
    found.add(ends)
    assert found.length == 1
    assert torch.equal(found.values(), ends.flatten())


def test_nothing_seen_is_nothing_kept() -> None:
    assert Tails().values().numel() == 0
