"""scripts/benchmark_rejection.py as a whole, on tones and a tiny backbone, and its figures."""

import json

import numpy as np
import pytest
import soundfile

from modeling_edrl_mea import EdrlMeaConfig, EdrlMeaForAudioClassification
from scripts import benchmark_rejection
from tests.support.four_corpora import four_corpora
from tests.support.tones import EMOTIONS


@pytest.mark.slow  # four trainings
def test_every_table_and_picture_is_made_and_a_model_is_calibrated(tmp_path, tiny_backbone_config, tiny_model):
    pytest.importorskip("silero_vad")
    given = four_corpora(tmp_path, tiny_backbone_config, {"arrangement": "linear", "noisy_copies": 1})
    given += ["--output", str(tmp_path / "out")]
    (tmp_path / "sounds" / "music").mkdir(parents=True)
    soundfile.write(tmp_path / "sounds" / "music" / "hold.wav", 0.1 * np.sin(np.arange(16_000) / 5), 16_000)
    sections = benchmark_rejection.main([*given, "--sounds", str(tmp_path / "sounds")])
    gates, sets, signs = sections.values()
    assert {"white noise", "speech: a", "0.wav", "music"} <= {row[0] for row in gates}
    assert [row[0] for row in sets[1:]] == ["a", "b", "c", "d", "mean"] and len(signs) == 3
    assert all((tmp_path / "out" / name).is_file() for name in ("rejection.md", "rejection.png", "timeline.png"))
    assert json.loads((tmp_path / "out" / "rejection.json").read_text())["tables"] == sections

    with pytest.raises(ValueError, match="another backbone than the recipe"):
        tiny_model("linear").save_pretrained(tmp_path / "other")
        benchmark_rejection.main([*given, "--calibrate", str(tmp_path / "other")])
    labels = dict(enumerate(EMOTIONS))
    model = EdrlMeaForAudioClassification.from_backbone(
        str(tmp_path / "backbone"), id2label=labels, arrangement="linear"
    )
    model.save_pretrained(tmp_path / "model")
    before = json.loads((tmp_path / "model" / "config.json").read_text())
    benchmark_rejection.main([*given, "--calibrate", str(tmp_path / "model")])
    found = EdrlMeaConfig.from_pretrained(tmp_path / "model").coverage_thresholds
    assert 0 <= found["0.9"] <= found["0.5"] <= 1
    after = json.loads((tmp_path / "model" / "config.json").read_text())
    assert before | {"coverage_thresholds": found} == after


def test_windows_are_those_of_a_timeline(tiny_model):
    for seconds in (0.3, 3.0, 3.2, 6.5):
        sound = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
        cuts = benchmark_rejection.windows(sound)
        timeline = tiny_model("linear").predict_timeline(sound, speech_gate=None)
        assert [len(cut) / 16_000 for cut in cuts] == pytest.approx([one.end - one.start for one in timeline])


def test_the_risk_rises_with_the_share_that_is_answered():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.55, 0.45]])
    found = benchmark_rejection.risk(probabilities, np.array([0, 0, 0, 1]), np.array([0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == pytest.approx([0, 0, 100 / 3, 50])


def test_sets_are_counted_by_what_they_hold():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    assert benchmark_rejection.held(probabilities, np.array([0, 1, 0]), 0.35) == pytest.approx((200 / 3, 4 / 3))
