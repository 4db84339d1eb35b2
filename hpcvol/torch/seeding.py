"""Random numbers of a unit: every generator seeded by (seed, step, unit), so that any worker computes the same unit."""

import random

import numpy as np
import torch

# What a seed is drawn for; each has a stream of its own.
UNIT = 0
TRANSFORM = 1
BETWEEN_STEPS = 2
EVALUATION = 3


def stream(seed: int, step: int, unit: int, purpose: int) -> np.random.SeedSequence:
    """Return the seed sequence of `(seed, step, unit)` for one purpose (UNIT, TRANSFORM, BETWEEN_STEPS, EVALUATION)."""
    return np.random.SeedSequence(seed, spawn_key=(purpose, step, unit))


def seed_generators(seed: int, step: int, unit: int, purpose: int = UNIT) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) for one unit. Local."""
    words = stream(seed, step, unit, purpose).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]) & 0xFFFFFFFF)
    torch.default_generator.manual_seed(int(words[1]))
    # torch.manual_seed keeps a traceback for each GPU that is not in use yet: a millisecond a unit on the CPU.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(int(words[1]))


def unit_generator(seed: int, step: int, unit: int, purpose: int = TRANSFORM) -> np.random.Generator:
    """Return a NumPy generator of its own for one unit: the `rng` that `data.transform` is given."""
    return np.random.Generator(np.random.PCG64(stream(seed, step, unit, purpose)))
