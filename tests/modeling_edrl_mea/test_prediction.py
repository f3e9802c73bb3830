"""`predict`: one door, with the scores of `pipeline`, that may also say "nobody speaks" and "one of these"."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from modeling_edrl_mea import Prediction, RecordingError
from tests.conftest import EMOTIONS, every_state, inputs_of, noise_recordings
from tests.support.voice import vowels

RATE = 16_000


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("edrl_mea", coverage_thresholds={"0.8": 0.3, "0.9": 0.2499, "0.95": 0.0})


@pytest.fixture(scope="module")
def voices():
    return [vowels(seconds, pitch) for seconds, pitch in ((0.6, 110), (2.1, 120), (1.0, 150))]


def test_scores_are_those_of_pipeline_and_the_emotion_is_the_likeliest(model, voices):
    classify = pipeline("audio-classification", model=model, feature_extractor=model.feature_extractor())
    for voice, found in zip(voices, model.predict(voices), strict=True):
        expected = {one["label"]: one["score"] for one in classify({"array": voice, "sampling_rate": RATE})}
        assert found.scores == pytest.approx(expected, abs=1e-5)
        assert found.emotion == max(expected, key=expected.get)
        assert found.confidence == max(found.scores.values()) and 0 < found.speech_share < 1


def test_one_recording_gives_one_prediction_whatever_its_form(model, voices, tmp_path):
    (voice, *_), channels = voices, np.stack([voices[0]] * 2)
    expected = model.predict(voice)
    assert isinstance(expected, Prediction)
    soundfile.write(tmp_path / "a.wav", voice, RATE, subtype="FLOAT")
    forms = [tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()]
    forms += [torch.from_numpy(voice), voice.tolist(), channels, channels.T, {"array": voice, "sampling_rate": RATE}]
    for form in forms:
        assert model.predict(form).scores == pytest.approx(expected.scores, abs=1e-5)


def test_a_list_a_generator_and_batches_give_each_what_it_gets_alone(model, voices):
    alone = [model.predict(voice).scores for voice in voices]
    for given, size in ((voices, None), (tuple(voices), 2), (iter(voices), 3)):
        found = model.predict(given, batch_size=size)
        for scores, prediction in zip(alone, found, strict=True):
            assert prediction.scores == pytest.approx(scores, abs=1e-5)
    assert model.predict([]) == []


def test_arrays_are_at_the_rate_that_is_given_and_files_at_their_own(model, voices, tmp_path):
    slow = vowels(1.0, 120, rate=8_000)
    soundfile.write(tmp_path / "slow.wav", slow, 8_000, subtype="FLOAT")
    expected = model.predict(tmp_path / "slow.wav").scores
    assert model.predict([slow, tmp_path / "slow.wav"], sampling_rate=8_000)[0].scores == pytest.approx(expected)
    assert model.predict([slow, tmp_path / "slow.wav"], sampling_rate=8_000)[1].scores == pytest.approx(expected)


def test_where_nobody_speaks_no_emotion_is_named_and_the_scores_stay(model):
    noise = noise_recordings(1, 1.0)[0]
    silent, noisy = model.predict([np.zeros(RATE), noise], coverage=0.9)
    for found in (silent, noisy):
        assert (found.emotion, found.confidence, found.speech_share, found.emotions) == (None, None, 0, [])
    ungated = model.predict(noise, speech_gate=None)
    assert noisy.scores == ungated.scores and ungated.emotion is not None


def test_sets_hold_what_reaches_the_threshold_and_grow_with_the_coverage(model, voices):
    sets = [model.predict(voices[0], coverage=coverage).emotions for coverage in (0.8, 0.85, 0.95)]
    found = model.predict(voices[0], coverage=0.85)
    assert found.emotions == [label for label in found.emotions if found.scores[label] >= 0.2499]
    assert set(sets[0]) <= set(sets[1]) <= set(sets[2]) and len(sets[2]) == 4
    assert sets[2] == sorted(found.scores, key=found.scores.get, reverse=True)
    assert model.predict(voices[0]).emotions is None


@pytest.mark.parametrize("coverage", [0, 1, 0.99, -0.5, float("nan")])
def test_a_coverage_that_the_model_does_not_know_is_refused(model, coverage):
    with pytest.raises(ValueError, match=r"this model knows 0\.8, 0\.9, 0\.95"):
        model.predict("no such file.wav", coverage=coverage)


def test_a_model_without_thresholds_says_how_to_get_them(tiny_model):
    with pytest.raises(ValueError, match=r"no coverage_thresholds. Train it by train/run.py"):
        tiny_model("linear").predict("no such file.wav", coverage=0.9)


def test_thresholds_are_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.coverage_thresholds == model.config.coverage_thresholds


def test_a_temperature_set_later_makes_thresholds_void(tiny_model):
    model = tiny_model("linear", coverage_thresholds={"0.9": 0.1})
    model.set_temperature(2.0)
    assert model.config.coverage_thresholds is None


def test_attributes_are_told_beside_the_emotion(tiny_model, voices):
    assert tiny_model("linear").predict(voices[0]).attributes is None
    model = tiny_model("linear", attribute_names=["arousal", "valence"], attribute_ranges={"arousal": [1, 7]})
    found = model.predict(voices[:2], batch_size=2)[1]
    expected = model(**model.feature_extractor()([voices[1]], sampling_rate=RATE, return_tensors="pt")).attributes[0]
    assert list(found.attributes) == ["arousal", "valence"] and found.emotion is not None
    assert list(found.attributes.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_model_that_rates_attributes_alone_names_no_emotion(tiny_model, voices):
    model = tiny_model("linear", problem_type="regression", id2label={0: "arousal", 1: "valence"})
    found = model.predict(voices[0])
    assert found.emotion is None and found.scores == {} and found.speech_share > 0
    assert list(found.attributes) == ["arousal", "valence"]


def test_what_cannot_be_read_is_named_by_its_place(model, voices):
    with pytest.raises(RecordingError, match=r"recording 1: NaN"):
        model.predict([voices[0], np.full(100, np.nan)])


def test_a_model_in_training_answers_as_in_evaluation(tiny_model, voices):
    model = tiny_model("edrl_mea")
    expected = model.predict(voices[0])
    assert model.train().predict(voices[0]) == expected and model.training


# --- what decided ---


@every_state
def test_contributions_and_bias_sum_to_the_winning_logit(tiny_model, arrangement, fitted):
    model, recording = tiny_model(arrangement, fitted=fitted).train(), noise_recordings(1, seed=5)[0]
    explanation = model.explain(recording)
    assert model.training
    logits = model.eval()(**inputs_of(model, [recording])).logits[0]
    winner = int(logits.argmax())
    head = model.classifier
    if arrangement == "edrl" or model.stage == "disentanglement":
        head = model.edrl_mea.disentanglement.classifier
    contributions = explanation["logit_contributions"]
    assert explanation["label"] == EMOTIONS[winner]
    assert explanation["logits"] == pytest.approx(dict(zip(EMOTIONS.values(), logits.tolist(), strict=True)), abs=1e-4)
    total = sum(contributions.values()) + head.bias[winner].item()
    assert total == pytest.approx(float(logits[winner]), abs=1e-3)
    blocks = {"shared", *EMOTIONS.values()} if "edrl" in arrangement else {"speech"}
    assert set(contributions) == blocks


def test_nothing_decides_on_silence(tiny_model):
    explanation = tiny_model("edrl_mea").explain(np.zeros(16_000))
    assert explanation["label"] is None and set(explanation["logits"].values()) == {0.0}
