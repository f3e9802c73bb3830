"""Adaptation to anybody's recordings: without labels, with a handful, by speaker, and saved."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from modeling_edrl_mea import EdrlMeaForAudioClassification, correction
from modeling_edrl_mea.correction import Evidence, correct
from tests.conftest import noise_recordings
from tests.support.shifted_logits import LABELS, shifted_logits, uar


def elsewhere(count: int = 12, seed: int = 3) -> list:
    return [3 * recording for recording in noise_recordings(count, seconds=1.5, seed=seed)]


def predicted_mix(model, recordings) -> np.ndarray:
    with torch.no_grad():
        return model(layer_statistics=model.embed_recordings(recordings)).logits.softmax(-1).mean(0).numpy()


# A model adapts


@pytest.mark.parametrize("arrangement", ["linear", "edrl", "edrl_mea"])
def test_adapting_brings_the_predicted_mix_to_the_expected_and_changes_nothing_that_was_trained(
    tiny_model, arrangement
):
    model, recordings = tiny_model(arrangement).train(), elsewhere()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    mix = predicted_mix(model.eval(), recordings)
    assert model.train().adapt(recordings) is model and model.training
    after = predicted_mix(model.eval(), recordings)
    assert np.abs(after - 0.25).max() < np.abs(mix - 0.25).max()
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == {
        "edrl_mea.speech_embedding.adapted_shift",
        "edrl_mea.speech_embedding.adapted_log_spread",
        "output_adaptation.biases",
        "output_adaptation.speech_weights",
    }
    model.forget_adaptation()
    assert model.adaptation is None and predicted_mix(model, recordings) == pytest.approx(mix, abs=1e-6)


def test_an_open_mix_concludes_nothing_from_recordings_without_labels(tiny_model):
    model = tiny_model().adapt(elsewhere(), expected=None)
    assert model.output_adaptation.is_idle and model.adaptation.strength == {}
    assert not model.edrl_mea.speech_embedding.adapted_shift.any()


def test_adapting_again_gives_the_same(tiny_model):
    model, recordings = tiny_model(), elsewhere()
    once = model.adapt(recordings).output_adaptation.biases.clone()
    assert torch.equal(model.adapt(recordings).output_adaptation.biases, once)


def test_copies_of_one_recording_count_as_one(tiny_model):
    one = elsewhere(1)
    assert tiny_model().adapt(8 * one).adaptation.evidence == pytest.approx(1)


def test_a_saved_adapted_model_comes_back_with_its_answers_and_its_report(tiny_model, tmp_path):
    recordings, labels = elsewhere(6), ["anger", "bored", None, "bored", "sadness", None]
    model = tiny_model().adapt(recordings, speakers=list("aabbcc"), labels=labels)
    model.save_pretrained(tmp_path)
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path)
    statistics, speakers = model.embed_recordings(recordings), torch.tensor([0, 0, 1, 1, 2, -1])
    for who in (None, speakers):
        expected = model(layer_statistics=statistics, speakers=who).logits
        assert torch.equal(loaded(layer_statistics=statistics, speakers=who).logits, expected)
    assert loaded.config.labels == [*LABELS, "bored"] and loaded.config.adapted_speakers == ["a", "b", "c"]
    assert loaded.adaptation == model.adaptation
    assert json.loads(json.dumps(loaded.adaptation.to_dict())) == model.adaptation.to_dict()
    assert "bored" in str(loaded.adaptation) and "3 speakers" in str(loaded.adaptation)


def test_a_model_saved_before_there_was_adaptation_loads_unadapted(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name: values for name, values in weights.items() if "output_adaptation" not in name}
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, report = EdrlMeaForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and loaded.output_adaptation.is_idle


def test_the_explanation_shows_what_the_adaptation_adds(tiny_model):
    model, recordings = tiny_model("linear"), elsewhere()
    assert "adaptation" not in model.explain(recordings[0])["logit_contributions"]
    told = model.adapt(recordings).explain(recordings[0])
    winner = LABELS.index(told["label"])
    u = model.edrl_mea.speech_embedding(model.embed_recordings(recordings[:1]))[0]
    expected = float(model.output_adaptation.biases[winner] + model.output_adaptation.speech_weights[winner] @ u)
    assert told["logit_contributions"]["adaptation"] == pytest.approx(expected, abs=1e-5)


# What it is given


def test_generators_paths_folders_and_datasets_are_taken_alike(tiny_model, tmp_path):
    from datasets import Audio, Dataset

    recordings = elsewhere(4)
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for path, recording in zip(paths, recordings, strict=True):
        wavfile.write(path, 16_000, recording)
    dataset = Dataset.from_dict({"audio": [str(path) for path in paths]}).cast_column("audio", Audio(decode=False))
    model = tiny_model()
    expected = model.adapt(recordings).output_adaptation.biases
    for given in ((one for one in recordings), paths, tmp_path, str(tmp_path), dataset):
        torch.testing.assert_close(model.adapt(given).output_adaptation.biases, expected)


def test_silent_and_too_short_recordings_are_left_out_and_counted(tiny_model):
    silent, short = np.zeros(16_000, np.float32), elsewhere(1)[0][:1600]
    model = tiny_model().adapt([*elsewhere(4), silent, short], labels=["anger", None, None, None, "sadness", None])
    assert (model.adaptation.n_recordings, model.adaptation.n_left_out, model.adaptation.n_labeled) == (4, 2, 1)


BAD = [
    ({"expected": {"angr": 0.5}}, "Did you mean 'anger'"),
    ({"expected": {"anger": 0.8, "sadness": 0.7}}, "add up to 1.5"),
    ({"expected": {name: 0.1 for name in LABELS}}, "add up to 0.4"),
    ({"expected": {"anger": -0.1}}, "no share"),
    ({"expected": {"anger": "much"}}, "no share"),
    ({"expected": "uniform"}, "balanced"),
    ({"labels": ["anger"]}, "1 labels for 4 recordings"),
    ({"labels": ["anger", 3, None, None]}, "a word"),
    ({"labels": {"other.wav": "anger"}}, "none of the 4 recordings"),
    ({"speakers": ["a"]}, "1 speakers for 4 recordings"),
    ({"labels": ["bored"] * 4}, "has only bored"),
    ({"labels": ["bored", "bored", None, None], "expected": None}, "has only bored"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message for _, message in BAD])
def test_what_does_not_fit_is_refused_before_anything_is_embedded(tiny_model, monkeypatch, given, message):
    model = tiny_model()
    monkeypatch.setattr(model, "embed_recordings", None)
    with pytest.raises(ValueError, match=message):
        model.adapt(elsewhere(4), **given)


@pytest.mark.parametrize("recordings", [[], [np.zeros(16_000, np.float32)]], ids=["none", "silence"])
def test_without_one_usable_recording_there_is_nothing_to_adapt_to(tiny_model, recordings):
    with pytest.raises(ValueError, match="can be used"):
        tiny_model().adapt(recordings)


@pytest.mark.parametrize("recordings", ["speech.wav", b"RIFF", {"path": "x"}, 3])
def test_one_recording_is_no_list_of_them(tiny_model, recordings):
    with pytest.raises(ValueError, match="Give a list of recordings"):
        tiny_model().adapt(recordings)


# Labels of the user's own


def labeled_evidence(per_label: int, new: bool, seed: int = 0) -> Evidence:
    """Embeddings in which the label is plain to see, and logits that know nothing."""
    generator = np.random.default_rng(seed)
    names = [*LABELS, "bored"] if new else LABELS
    ids = np.repeat(np.arange(len(names)), per_label)
    centers = np.random.default_rng(9).normal(size=(5, 12))
    embedding = centers[ids] + 0.3 * generator.normal(size=(len(ids), 12))
    return Evidence(np.zeros((len(ids), 4)), [embedding], embedding, np.ones(len(ids)), [names[one] for one in ids])


SETTINGS = SimpleNamespace(
    labels=LABELS,
    n_trained_labels=4,
    adaptation_prior=4.0,
    balanced_strength=0.75,
    self_training=0.5,
    speaker_prior=4.0,
    label_ridge=0.1,
)


@pytest.mark.parametrize("new", [False, True], ids=["known words", "a new word"])
def test_four_examples_a_label_teach_what_the_embedding_shows(new):
    found = correct(labeled_evidence(4, new), SETTINGS, "balanced")
    test = labeled_evidence(20, new, seed=1)
    answers = np.array(found.labels)[found.apply(test).argmax(1)]
    assert (answers == np.array(test.labels)).mean() > 0.9


def test_what_the_model_knew_is_kept_where_labels_agree():
    evidence = labeled_evidence(2, False)
    evidence.logits = 6 * np.eye(4)[np.repeat(np.arange(4), 2)]
    found = correct(evidence, SETTINGS, "balanced")
    assert np.abs(found.weights).max() < 0.1


def test_labels_are_learned_in_milliseconds():
    evidence = labeled_evidence(4, True)
    correct(evidence, SETTINGS, "balanced")
    start = time.perf_counter()
    correct(evidence, SETTINGS, "balanced")
    assert time.perf_counter() - start < 0.5


def test_a_label_of_ones_own_stays_when_the_model_adapts_again(tiny_model):
    recordings = elsewhere(6)
    model = tiny_model().adapt(recordings, labels=["bored", "anger", "bored", None, None, "sadness"])
    weights = model.output_adaptation.weights.clone()
    model.adapt(elsewhere(5, seed=8))
    assert model.config.labels == [*LABELS, "bored"] and torch.equal(model.output_adaptation.weights, weights)


# Harm


def test_speakers_of_few_recordings_stay_with_everybodys_biases():
    ids, logits = shifted_logits(64)
    silent = np.zeros((64, 1))

    def spoken_by(speakers):
        return Evidence(logits, [silent], silent, np.ones(64), [None] * 64, speakers)

    both = spoken_by([str(n) for n in range(64)]), spoken_by(["a"] * 32 + ["b"] * 32)
    own = [np.abs(correct(one, SETTINGS, "balanced").speaker_biases).mean() for one in both]
    plain = uar(ids, logits)
    adapted = [uar(ids, correct(one, SETTINGS, "balanced").apply(one, one.speakers)) for one in both]
    assert own[0] < 1.0 and min(adapted) >= plain


# Standardization and self-training


def test_another_level_and_spread_of_every_statistic_are_standardized_away(tiny_model):
    """Elsewhere every statistic is another times one number plus another."""
    speech, generator = tiny_model().edrl_mea.speech_embedding, torch.Generator().manual_seed(0)
    here = torch.randn(50, *speech.mean.shape, generator=generator)
    elsewhere = here * torch.rand(speech.mean.shape, generator=generator).add(0.5) + 3 * torch.randn(speech.mean.shape)
    found = []
    for statistics in (here, elsewhere):
        speech.adapt(statistics, torch.ones(50), share=1.0)
        found.append(speech(statistics))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("expected", "moves"), [("balanced", True), ({"anger": 0.25}, True), ({"anger": 0.7}, False)])
def test_standardization_moves_where_the_mix_is_that_of_training(tiny_model, expected, moves):
    model = tiny_model().adapt(elsewhere(), expected=expected)
    assert bool(model.edrl_mea.speech_embedding.adapted_shift.any()) == moves
    assert ("standardization" in model.adaptation.strength) == moves


def test_recordings_teach_what_else_tells_their_emotions_apart():
    """Logits that are right more often than not, and an embedding in which emotions are plain to see."""
    evidence = labeled_evidence(100, False)
    ids = np.repeat(np.arange(4), 100)
    evidence.labels = [None] * len(ids)
    evidence.logits = 2 * np.eye(4)[ids] + 2 * np.random.default_rng(1).normal(size=(len(ids), 4))
    taught = uar(ids, correct(evidence, SETTINGS, "balanced").apply(evidence))
    alone = SimpleNamespace(**vars(SETTINGS) | {"self_training": 0.0})
    untaught = uar(ids, correct(evidence, alone, "balanced").apply(evidence))
    assert taught > untaught + 0.1


def test_labels_teach_more_than_predictions_do(monkeypatch):
    """A model that takes the first two emotions for each other, and three of each with a label."""
    settings = SimpleNamespace(**vars(SETTINGS) | {"self_training": 1.0, "label_ridge": 1.0})
    evidence = labeled_evidence(100, False)
    ids = np.repeat(np.arange(4), 100)
    evidence.labels = [label if row % 100 < 3 else None for row, label in enumerate(evidence.labels)]
    evidence.logits = 2 * np.eye(4)[[1, 0, 2, 3]][ids] + 0.5 * np.random.default_rng(1).normal(size=(len(ids), 4))
    recalls = []
    for weight in (1.0, correction.LABELED_WEIGHT):
        monkeypatch.setattr(correction, "LABELED_WEIGHT", weight)
        recalls.append(uar(ids, correct(evidence, settings, "balanced").apply(evidence)))
    assert recalls[1] > recalls[0] + 0.02


def test_a_label_for_one_recording_of_many_does_not_teach_alone():
    """One that is wrong: of the second emotion, said to be the first."""
    settings = SimpleNamespace(**vars(SETTINGS) | {"self_training": 1.0, "label_ridge": 1.0})
    evidence = labeled_evidence(100, False)
    ids = np.repeat(np.arange(4), 100)
    evidence.labels = [None] * len(ids)
    without = uar(ids, correct(evidence, settings, "balanced").apply(evidence))
    evidence.labels[150] = LABELS[0]
    assert uar(ids, correct(evidence, settings, "balanced").apply(evidence)) > without - 0.05


def test_a_model_adapts_to_the_same_by_whatever_it_was_adapted_to_before(tiny_model):
    model, recordings = tiny_model(), elsewhere()
    once = {name: values.clone() for name, values in model.adapt(recordings).state_dict().items()}
    model.adapt(elsewhere(7, seed=8))
    again = model.adapt(recordings).state_dict()
    assert all(torch.equal(values, once[name]) for name, values in again.items())
