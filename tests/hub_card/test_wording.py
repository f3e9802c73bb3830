import math

import pytest

from hub_card.wording import condition_and_setting, figures_explained, percent


def test_an_interval_of_one_speaker_is_not_shown():
    assert percent({"value": 0.5, "low": None, "high": None}) == "50.0"
    assert percent({"value": -0.021, "low": -0.064, "high": 0.013}, signed=True) == "−2.1 (−6.4 to +1.3)"


@pytest.mark.parametrize("unknown", [None, math.nan, {"value": None, "low": None, "high": None}])
def test_what_is_not_known_is_a_dash(unknown):
    assert percent(unknown) == "–"


@pytest.mark.parametrize(
    ("condition", "level", "setting", "expected"),
    [
        ("clean", None, None, "clean"),
        ("noise_esc_10", 2, {"snr_db": 10.0, "recordings": 16}, "esc 10 noise, 10 dB"),
        ("opus", 3, {"kbits": 6}, "opus, 6 kbit/s"),
        ("room_and_noise", 1, {"rt60_s": [0.1, 0.5], "snr_db": 20}, "room and noise, 20 dB, RT60 0.1 to 0.5 s"),
        ("unheard of", 2, {"depth": 3}, "unheard of, level 2"),
    ],
)
def test_a_condition_is_named_with_what_its_level_means(condition, level, setting, expected):
    assert condition_and_setting({"condition": condition, "level": level, "setting": setting}) == expected


def test_intervals_over_two_speakers_come_with_a_caution():
    assert "2 or 4 speakers are too narrow" in figures_explained([{"n_speakers": n} for n in (1, 2, 4, 12)])
    assert "Caution" not in figures_explained([{"n_speakers": n} for n in (1, 12)])
