import numpy as np
import torch

from tests.support.pretraining import CONFIG, tone
from train.pretraining.mixtures import normalize
from train.pretraining.targets import FrameTargets


def test_the_pitch_target_is_high_at_the_period_of_a_voice_and_low_off_it():
    targets = FrameTargets(CONFIG)
    lags = 1 / torch.logspace(np.log10(60), np.log10(500), 48).flip(0)
    for hz in (120.0, 200.0):
        voice = tone(hz, 0.5) + tone(2 * hz, 0.5) / 2
        frame = targets({"clean": torch.from_numpy(normalize(voice))[None]})[0, 10, 80:]
        at_period, off_period = ((lags * hz - periods).abs().argmin() for periods in (1.0, 0.6))
        assert frame[at_period] > 0.8 and frame[off_period] < 0.2
