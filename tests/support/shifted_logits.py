"""Logits of a model that is as sure as it is right, but for a shift: what adaptation is to undo."""

import numpy as np

from tests.conftest import EMOTIONS

LABELS = list(EMOTIONS.values())
EVEN = np.full(4, 0.25)


def shifted_logits(count: int, mix=EVEN, seed: int = 0, shift=(2.0, 0, -1, -1)) -> tuple[np.ndarray, np.ndarray]:
    """(ids, logits) of recordings of a mix, heard by a model that is as sure as it is right, but for the shift."""
    generator = np.random.default_rng(seed)
    ids = generator.choice(4, count, p=mix)
    return ids, 1.8 * (1.8 * np.eye(4)[ids] + generator.normal(size=(count, 4))) + np.array(shift)


def uar(ids, logits) -> float:
    found = logits.argmax(1)
    return np.mean([(found[ids == one] == one).mean() for one in np.unique(ids)])
