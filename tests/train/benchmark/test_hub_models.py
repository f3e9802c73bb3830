import shutil

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from tests.support.tones import write_corpus
from train.benchmark.hub_models import HubModel, map_labels, under_classes
from train.data.corpora import load_corpus
from train.data.emotions import LabelError
from train.data.leaks import heard_recordings
from train.evaluation.report import model_entry, new_report, training_entry, write_report

CLASSES = ["anger", "happiness", "neutral", "sadness"]


def stock_model(folder, labels):
    """A tiny wav2vec 2.0 classifier as anybody would save one."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def predict(contender, audio, rows, mode="plain", speakers=None):
    return contender.probabilities(contender.cache.embed(audio)[torch.from_numpy(rows)], mode, speakers)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    corpus = load_corpus(str(write_corpus(tmp_path_factory.mktemp("c") / "tones", 2)), label_scheme="four_emotions")
    return list(corpus["audio"])


def test_labels_map_by_what_they_mean():
    assert map_labels(["neu", "hap", "ang", "sad"], CLASSES, "four_emotions", None, "m") == [2, 1, 0, 3]
    assert map_labels(["Angry", "fear", "calm"], ["low", "high"], "arousal", None, "m") == [1, 1, 0]


def test_labels_outside_the_scheme_are_left_out():
    places = map_labels(["ang", "excited", "happy", "neu", "sad", "fear"], CLASSES, "four_emotions", None, "m")
    assert places == [0, 1, 1, 2, 3, None]
    found = under_classes(np.array([[0.1, 0.2, 0.1, 0.1, 0.0, 0.5], [0, 0, 0, 0, 0, 1.0]]), places, 4)
    assert found[0] == pytest.approx([0.2, 0.6, 0.2, 0.0])
    assert found[1] == pytest.approx([0.25] * 4)  # all its belief lies outside


@pytest.mark.parametrize(
    "labels, label_map, named",
    [
        (["LABEL_0", "LABEL_1"], {}, r"LABEL_0.*--label_map LABEL_0="),
        (["angry", "happy", "sad"], {}, "cannot predict neutral"),
        (["ang", "hap", "neu", "sad"], {"anger": "sadness"}, "no label anger"),
    ],
)
def test_labels_that_do_not_map_are_refused_by_name_and_remedy(labels, label_map, named):
    with pytest.raises(LabelError, match=named):
        map_labels(labels, CLASSES, "four_emotions", label_map, "m")


def test_a_stock_model_predicts_what_its_pipeline_predicts(tmp_path, audio):
    from transformers import pipeline

    from modeling_edrl_mea import load_recording

    folder = stock_model(tmp_path / "stock", ["LABEL_0", "b", "hap", "neutral", "sad"])
    label_map = {"LABEL_0": "anger", "b": ""}
    contender = HubModel("stock", folder, CLASSES, "four_emotions", label_map, tmp_path / "cache")
    found = predict(contender, audio, np.arange(3))
    classifier = pipeline("audio-classification", model=str(folder), top_k=5)
    for path, row in zip(audio, found, strict=False):
        scores = {score["label"]: score["score"] for score in classifier(load_recording(path))}
        kept = np.array([scores["LABEL_0"], scores["hap"], scores["neutral"], scores["sad"]])
        assert row == pytest.approx(kept / kept.sum(), abs=1e-5)


def test_scores_are_computed_once(tmp_path, audio, monkeypatch):
    folder = stock_model(tmp_path / "stock", ["ang", "hap", "neu", "sad"])
    arguments = ("stock", folder, CLASSES, "four_emotions", None, tmp_path / "cache")
    first = predict(HubModel(*arguments), audio, np.arange(len(audio)))
    again = HubModel(*arguments)
    monkeypatch.setattr(again.model, "forward", None)
    assert (predict(again, audio, np.arange(len(audio))) == first).all()


def test_speakers_that_a_model_was_trained_on_and_its_temperature_come_from_its_report(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "ours")
    training = training_entry([], "four_emotions", splits={"train": ["x_Ann"], "validation": ["x_Bo"], "test": ["x_C"]})
    model = model_entry("ours", CLASSES, source="ours", temperature=1.7)
    write_report(new_report("x", seed=0, models=[model], results=[], training=training), tmp_path / "ours")
    contender = HubModel("ours", tmp_path / "ours", CLASSES, "four_emotions", None, tmp_path / "cache")
    assert contender.trained_speakers == {"x_ann", "x_bo"}
    probabilities, speakers = np.full((4, 4), 0.25), np.array(["x_3"] * 4)
    assert (contender.temperatures(np.zeros(4, int), probabilities, speakers) == 1.7).all()


def test_what_a_model_was_trained_on_is_known_again_under_another_name(tmp_path, tiny_model):
    trained = load_corpus(str(write_corpus(tmp_path / "tones", 3)))
    tiny_model().save_pretrained(tmp_path / "ours")
    training = training_entry(
        [trained], "native", splits={"train": trained["speaker"]}, heard=heard_recordings(trained)
    )
    model = model_entry("ours", CLASSES, source="ours")
    write_report(new_report("x", seed=0, models=[model], results=[], training=training), tmp_path / "ours")
    contender = HubModel("ours", tmp_path / "ours", CLASSES, "four_emotions", None, tmp_path / "cache")
    shutil.copytree(tmp_path / "tones", tmp_path / "copy")
    (tmp_path / "copy" / "anger_0_0.wav").write_bytes((tmp_path / "tones" / "anger_0_0.wav").read_bytes() + b"\0\0")
    corpora = {"mine": load_corpus(f"mine={tmp_path / 'copy'}"), "b": load_corpus(str(write_corpus(tmp_path / "b", 2)))}
    tests = {name: rows for trial in contender.trials([], corpora, {}) for name, rows in trial.tests.items()}
    assert len(tests["mine"]) == 0 and len(tests["b"]) == 24
    assert contender.notes(corpora) == ["ours: was trained on speakers of 36 of 36 recordings of mine; not tested"]


def test_a_model_that_says_nothing_of_its_training_is_said_to(tmp_path):
    folder = stock_model(tmp_path / "stock", ["ang", "hap", "neu", "sad"])
    contender = HubModel("stock", folder, CLASSES, "four_emotions", None, tmp_path / "cache")
    assert "nothing says what it was trained on" in contender.notes({})[0]


def test_an_edrl_mea_model_adapts_for_one_test_and_stays_as_it_was(tmp_path, audio, tiny_model):
    tiny_model().save_pretrained(tmp_path / "ours")
    contender = HubModel("ours", tmp_path / "ours", CLASSES, "four_emotions", None, tmp_path / "cache")
    rows = np.arange(len(audio))
    before = predict(contender, audio, rows)
    adapted = predict(contender, audio, rows, mode="test")
    assert not np.allclose(before, adapted)
    assert (predict(contender, audio, rows) == before).all()
    assert unevenness(adapted) < unevenness(before)


def test_adapting_by_speaker_also_evens_out_each_speakers_own_mix(tmp_path, audio, tiny_model):
    tiny_model().save_pretrained(tmp_path / "ours")
    contender = HubModel("ours", tmp_path / "ours", CLASSES, "four_emotions", None, tmp_path / "cache")
    rows, speakers = np.arange(len(audio)), np.arange(len(audio)) % 2
    together = predict(contender, audio, rows, "speaker", speakers)
    alike = predict(contender, audio, rows, "test")
    for speaker in (0, 1):
        assert unevenness(together[speakers == speaker]) < unevenness(alike[speakers == speaker])


def unevenness(probabilities) -> float:
    """How far the predicted mix is from an equal one."""
    return np.abs(probabilities.mean(0) - 1 / probabilities.shape[1]).max()
