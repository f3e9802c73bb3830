"""Adaptation to anybody's recordings: without labels, with a handful, by speaker, saved, and on line."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from modeling_edrl_mea import Adapter, EdrlMeaForAudioClassification
from modeling_edrl_mea.adaptation import Evidence, correct
from modeling_edrl_mea.correction import class_biases, expected_mix, sharpness, softmax
from tests.conftest import EMOTIONS, noise_recordings

LABELS = list(EMOTIONS.values())
EVEN = np.full(4, 0.25)


def elsewhere(count: int = 12, seed: int = 3) -> list:
    return [3 * recording for recording in noise_recordings(count, seconds=1.5, seed=seed)]


def shifted_logits(count: int, mix=EVEN, seed: int = 0, shift=(2.0, 0, -1, -1)) -> tuple[np.ndarray, np.ndarray]:
    """(ids, logits) of recordings of a mix, heard by a model that is as sure as it is right, but for the shift."""
    generator = np.random.default_rng(seed)
    ids = generator.choice(4, count, p=mix)
    return ids, 1.8 * (1.8 * np.eye(4)[ids] + generator.normal(size=(count, 4))) + np.array(shift)


def predicted_mix(model, recordings) -> np.ndarray:
    with torch.no_grad():
        return model(layer_statistics=model.embed_recordings(recordings)).logits.softmax(-1).mean(0).numpy()


def uar(ids, logits) -> float:
    found = logits.argmax(1)
    return np.mean([(found[ids == one] == one).mean() for one in np.unique(ids)])


# The biases


@pytest.mark.parametrize("mix", [EVEN, np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.9, 0.05, 0.05, 0.0])])
def test_without_a_prior_the_answers_meet_the_expected_mix(mix):
    logits = shifted_logits(200)[1]
    assert softmax(sharpness(mix) * (logits + class_biases(logits, mix))).mean(0) == pytest.approx(mix, abs=2e-3)


def test_a_shift_is_found_and_undone():
    ids, logits = shifted_logits(400, shift=(4.0, 0, 0, 0))
    unshifted = uar(ids, logits - np.array([4.0, 0, 0, 0]))
    assert uar(ids, logits) < unshifted - 0.1 < unshifted - 0.02 < uar(ids, logits + class_biases(logits, EVEN, 4.0))


def test_an_even_mix_is_met_by_the_mean_probability_since_it_varies_less_over_a_few_recordings():
    def error(mix) -> float:  # of the biases that 8 recordings of an even mix give, against those of very many
        wanted = class_biases(shifted_logits(4000)[1], mix)
        return np.mean([np.abs(class_biases(shifted_logits(8, seed=n)[1], mix) - wanted).mean() for n in range(20)])

    nearly_even = EVEN + np.array([1e-4, -1e-4, 0, 0])
    assert error(EVEN) < 0.9 * error(nearly_even)


def test_a_model_that_is_right_already_is_left_alone():
    ids, _ = shifted_logits(4000, shift=(0, 0, 0, 0))
    logits = 8 * np.eye(4)[ids]
    assert np.abs(class_biases(logits, np.bincount(ids) / len(ids), 4.0)).max() < 0.1


def test_few_recordings_move_the_biases_less_than_many_and_none_not_at_all():
    logits = shifted_logits(200)[1]
    norms = [np.linalg.norm(class_biases(logits[:n], EVEN, 4.0)) for n in (0, 1, 4, 200)]
    assert norms[0] == pytest.approx(0, abs=1e-6) and norms[0] < norms[1] < norms[2] < norms[3]


def test_the_order_of_recordings_does_not_matter():
    logits = shifted_logits(50)[1]
    turned = class_biases(logits[::-1], EVEN, 4.0)
    np.testing.assert_allclose(class_biases(logits, EVEN, 4.0), turned, atol=1e-6)


def test_predictions_beyond_doubt_give_finite_biases():
    logits = np.tile([1000.0, -1000, -1000, -1000], (20, 1))
    assert np.isfinite(class_biases(logits, EVEN)).all()


# A model adapts


@pytest.mark.parametrize("arrangement", ["linear", "edrl", "mea", "edrl_mea", "mea_edrl"])
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
    assert changed == {"output_adaptation.biases"}
    model.forget_adaptation()
    assert model.adaptation is None and predicted_mix(model, recordings) == pytest.approx(mix, abs=1e-6)


def test_an_open_mix_concludes_nothing_from_recordings_without_labels(tiny_model):
    model = tiny_model().adapt(elsewhere(), expected=None)
    assert model.output_adaptation.is_idle and model.adaptation.strength == {}


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
    expected = float(model.output_adaptation.biases[winner])
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


def test_labels_that_the_expected_mix_leaves_out_have_the_rest():
    assert expected_mix({"neutral": 0.7}, LABELS) == pytest.approx([0.1, 0.1, 0.7, 0.1])


# Labels of the user's own


def labeled_evidence(per_label: int, new: bool, seed: int = 0) -> Evidence:
    """Embeddings in which the label is plain to see, and logits that know nothing."""
    generator = np.random.default_rng(seed)
    names = [*LABELS, "bored"] if new else LABELS
    ids = np.repeat(np.arange(len(names)), per_label)
    centers = np.random.default_rng(9).normal(size=(5, 12))
    embedding = centers[ids] + 0.3 * generator.normal(size=(len(ids), 12))
    return Evidence(np.zeros((len(ids), 4)), [embedding], np.ones(len(ids)), [names[one] for one in ids])


SETTINGS = SimpleNamespace(
    labels=LABELS, n_trained_labels=4, adaptation_prior=4.0, balanced_strength=0.75, speaker_prior=4.0, label_ridge=0.1
)


@pytest.mark.parametrize("new", [False, True], ids=["known words", "a new word"])
def test_four_examples_a_label_teach_what_the_embedding_shows(new):
    found = correct(labeled_evidence(4, new), SETTINGS, "balanced")
    test = labeled_evidence(20, new, seed=1)
    answers = np.array(found.labels)[found.apply(test.logits, test.embedding).argmax(1)]
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


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_told_the_true_mix_a_skewed_set_is_not_harmed(share):
    mix = np.array([share, *3 * [(1 - share) / 3]])
    for shift in ((0, 0, 0, 0), (2, 0, -1, -1), (-2, 0, 1, 1)):
        ids, logits = shifted_logits(300, mix, shift=shift)
        adapted = logits + class_biases(logits, mix, 4.0)
        assert (adapted.argmax(1) == ids).mean() > (logits.argmax(1) == ids).mean() - 0.01


def test_speakers_of_few_recordings_stay_with_everybodys_biases():
    ids, logits = shifted_logits(64)
    few = Evidence(logits, [np.zeros((64, 1))], np.ones(64), [None] * 64, [str(n) for n in range(64)])
    many = Evidence(logits, [np.zeros((64, 1))], np.ones(64), [None] * 64, ["a"] * 32 + ["b"] * 32)
    own = [np.abs(correct(one, SETTINGS, "balanced").speaker_biases).mean() for one in (few, many)]
    plain = uar(ids, logits)
    adapted = [uar(ids, correct(one, SETTINGS, "balanced").apply(logits, np.zeros((64, 1)), one.speakers))
               for one in (few, many)]  # fmt: skip
    assert own[0] < 1.0 and min(adapted) >= plain


# On line


def test_without_forgetting_a_stream_ends_where_the_batch_does():
    logits = shifted_logits(60)[1]
    adapter = Adapter(LABELS)
    for row in logits:
        corrected = adapter.learn(row)
    batch = class_biases(logits, EVEN, adapter.prior, strength=adapter.strength)
    np.testing.assert_allclose(adapter.biases, batch, atol=1e-5)
    np.testing.assert_allclose(corrected, logits[-1] + adapter.biases)


def test_with_forgetting_the_adapter_follows_another_device():
    adapter, rigid = Adapter(LABELS, half_life=20), Adapter(LABELS)
    for row in (*shifted_logits(100)[1], *shifted_logits(100, shift=(-2, 0, 1, 1), seed=1)[1]):
        adapter.learn(row)
        rigid.learn(row)
    assert adapter.biases[0] > 0.8 > 0.4 > rigid.biases[0]


def test_a_restored_adapter_goes_on_as_if_nothing_had_happened(tmp_path):
    logits, speakers = shifted_logits(40)[1], ["anna", None, "bert", "anna"] * 10
    adapter = Adapter(LABELS, {"neutral": 0.4}, half_life=50, memory=30)
    for row, speaker in zip(logits[:20], speakers[:20], strict=True):
        adapter.learn(row, speaker)
    adapter.save(tmp_path / "adapter.json")
    restored = Adapter.load(tmp_path / "adapter.json")
    for row, speaker in zip(logits[20:], speakers[20:], strict=True):
        np.testing.assert_allclose(restored.learn(row, speaker), adapter.learn(row, speaker), atol=1e-9)


def test_every_speaker_has_biases_of_their_own():
    adapter = Adapter(LABELS)
    for one, other in zip(shifted_logits(60)[1], shifted_logits(60, shift=(-2, 0, 1, 1))[1], strict=True):
        adapter.learn(one, "anna")
        adapter.learn(other, "bert")
    assert adapter.speaker_biases["anna"][0] < adapter.biases[0] < adapter.speaker_biases["bert"][0]
    np.testing.assert_array_equal(adapter.correct(np.zeros(4), "nobody"), adapter.biases)


def test_a_window_costs_little_however_long_the_call():
    adapter, rows = Adapter(LABELS), shifted_logits(600)[1]
    for row in rows[:500]:
        adapter.learn(row)
    times = []
    for row in rows[500:]:
        start = time.perf_counter()
        adapter.learn(row)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002 and len(adapter.logits) == adapter.memory


def test_a_stream_adapts_as_it_comes_and_silence_teaches_nothing(tiny_model):
    model, adapter = tiny_model(), Adapter(LABELS)
    stream = model.stream_timeline(16_000, window_s=0.5, hop_s=0.5, adapter=adapter, speech_gate=None)
    stream.push(np.zeros(16_000, np.float32))
    assert not len(adapter.logits)
    speech = np.concatenate(elsewhere(8))
    for start in range(0, len(speech), 4000):
        stream.push(speech[start : start + 4000], speaker="anna")
    stream.finish()
    plain = model.predict_timeline(np.concatenate([np.zeros(16_000, np.float32), speech]), window_s=0.5, hop_s=0.5)
    adapted = stream.timeline.probabilities[len(plain) // 2 :].mean(0)
    assert np.abs(adapted - 0.25).max() < np.abs(plain.probabilities[len(plain) // 2 :].mean(0) - 0.25).max()


def test_an_adapter_of_other_labels_or_of_no_mix_is_refused(tiny_model):
    with pytest.raises(ValueError, match="The adapter has the labels"):
        tiny_model().stream_timeline(adapter=Adapter(["yes", "no"]))
    with pytest.raises(ValueError, match="needs a mix"):
        Adapter(LABELS, None)
