"""Randomness that depends on what it is for and on nothing that was drawn before."""

import numpy as np
import torch


def seeded(*seeds: int) -> torch.Generator:
    """A generator for one unit of work, named by numbers: a seed, a batch, a first sample, say."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
