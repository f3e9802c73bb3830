"""Figures that the studies of adaptation and rejection share."""

import numpy as np

from train.benchmark.adaptation_study import gain_interval


def test_the_interval_holds_the_gain_and_no_gain_has_none():
    generator = np.random.default_rng(0)
    worse = generator.integers(1, 9, (20, 4, 4)).astype(float)
    better = worse + 5 * np.eye(4)
    mean, low, high = gain_interval([(worse, better), (worse, better)])
    assert 0 < low < mean < high
    assert gain_interval([(worse, worse)]) == (0, 0, 0)
