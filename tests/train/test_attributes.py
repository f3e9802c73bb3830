"""Attributes through train/run.py: beside emotions and alone, in both stages, to a model that loads."""

import csv
import json

import numpy as np
import pytest
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification, closed_form, load_recording
from modeling_edrl_mea.embeddings import Embeddings
from tests.support.tones import EMOTIONS, write_backbone, write_corpus
from train import run
from train.arguments import parse_arguments
from train.data.corpora import load_corpus
from train.data.dataset import SpeechDataset
from train.data.embeddings import EmbeddingCache
from train.evaluation.metrics import mean_concordance


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones, whose height is rated from 1 to 4; a third have no emotion, another no rating."""
    folder = write_corpus(tmp_path_factory.mktemp("corpora") / "tones", n_speakers=6)
    rows = list(csv.DictReader((folder / "metadata.csv").open()))
    for number, row in enumerate(rows):
        height = 4 - list(EMOTIONS).index(row["emotion"])
        row["height"] = "" if number % 3 == 1 else height
        row["emotion"] = "" if number % 3 == 2 else row["emotion"]
    write(folder / "metadata.csv", rows)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config):
    return write_backbone(tmp_path_factory.mktemp("backbone"), tiny_backbone_config)


def write(path, rows):
    with open(path, "w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def train(corpus, backbone, folder, *flags):
    return run.main(
        [
            *("--model_name_or_path", str(backbone), "--dataset_name", str(corpus), "--attributes", "height"),
            *("--output_dir", str(folder), "--num_train_epochs", "8", "--use_cpu", "True", "--report_to", "none"),
            *("--disable_tqdm", "True", "--per_device_train_batch_size", "32", *flags),
        ]
    )


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["--arrangement", "edrl"], "both"),
        (["--arrangement", "edrl_mea", "--learning_rate", "0.01", "--problem_type", "regression"], "alone"),
    ],
    ids=["both", "alone"],
)
def test_one_command_rates_attributes_and_saves_what_loads(tmp_path, corpus, backbone, flags, kind, capsys):
    report = train(corpus, backbone, tmp_path / "out", *flags)
    row = report["results"][0]
    found = row["attributes"]["height"]
    assert found["ccc"]["value"] > 0.6 and found["rmse"]["value"] < 1 and found["scale"] == [1, 4]
    assert found["ccc"]["low"] <= found["ccc"]["value"] <= found["ccc"]["high"]
    assert (found["n_recordings"] < row["n_recordings"]) == (kind == "both")
    assert (row["metrics"]["uar"]["value"] is None) == (kind == "alone")
    assert 0 < row["n_labeled"] < row["n_recordings"] if kind == "both" else row["n_labeled"] == 0
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()):
        assert "| height | 1–4 |" in text and text.count("Of attributes, CCC") == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["results"][0] == row
    model = EdrlMeaForAudioClassification.from_pretrained(tmp_path / "out")
    assert model.config.attribute_scales == {"height": (1, 4)}
    wave = load_recording(corpus / "anger_0_0.wav")
    inputs = model.feature_extractor()([wave], sampling_rate=16_000, return_tensors="pt")
    output = model(**inputs)
    assert 2.5 < float(output.attributes[0, 0]) < 5.5
    assert output.logits.shape[1] == (4 if kind == "both" else 1)


def test_a_run_on_soft_labels_ends_well(tmp_path, backbone):
    corpus = write_corpus(tmp_path / "tones", n_speakers=6)
    rows = list(csv.DictReader((corpus / "metadata.csv").open()))
    for row in rows:
        row["emotion"] = {name: 0.7 if name == row["emotion"] else 0.1 for name in EMOTIONS}
    (corpus / "metadata.csv").unlink()
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["--model_name_or_path", str(backbone), "--dataset_name", str(corpus), "--soft_labels", "True"]
    command += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "2", "--use_cpu", "True"]
    report = run.main([*command, "--report_to", "none", "--disable_tqdm", "True"])
    assert report["results"][0]["metrics"]["uar"]["value"] > 0.5


def test_attributes_alone_need_a_name():
    with pytest.raises(SystemExit, match="say which"):
        parse_arguments(["--use_cpu", "True", "--problem_type", "regression"])


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.mark.slow
def test_a_planted_attribute_is_recovered_from_real_speech(shared_data, embeddings):
    """A direction of the embeddings of EMO-DB, on speakers that were held out."""
    corpus = load_corpus(shared_data / "emodb").shuffle(seed=0).select(range(400))
    settings = {"problem_type": "regression", "id2label": {0: "planted"}, "attribute_ranges": {"planted": [1, 7]}}
    model = EdrlMeaForAudioClassification.from_backbone("checkpoints/wavlm-compact", arrangement="linear", **settings)
    data = SpeechDataset(corpus, "speech").embed(EmbeddingCache(model, embeddings))
    model.edrl_mea.speech_embedding.fit(data.layer_statistics)
    u = model.edrl_mea.speech_embedding(data.layer_statistics).detach()
    planted = u @ torch.randn(u.shape[1], 1, generator=torch.Generator().manual_seed(0))
    data.attributes = 4 + planted / planted.std()
    held_out = np.isin(data.speakers, sorted(set(data.speakers))[:3])
    seen, unseen = (rows_of(data, np.flatnonzero(rows)) for rows in (~held_out, held_out))
    closed_form.train_classifier(model, seen)
    found = mean_concordance(unseen.attributes, model(layer_statistics=unseen.layer_statistics).attributes.detach())
    print(f"CCC {found:.3f} on {len(unseen)} recordings of 3 speakers held out, of {len(data)}")
    assert found >= 0.95


AROUSAL = {"anger": 6, "happiness": 6, "fear": 5, "disgust": 4, "neutral": 3, "boredom": 2, "sadness": 2}  # of 1 to 7


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ["linear", "edrl"])
def test_arousal_as_emotions_have_it_is_rated_of_speakers_held_out(shared_data, embeddings, tmp_path, arrangement):
    """EMO-DB as a table of ratings, without its emotions."""
    folder = shared_data / "emodb"
    rows = list(csv.DictReader((folder / "metadata.csv").open()))
    picked = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:250]]
    about = [(folder / row["file_name"], row["speaker"], AROUSAL[row["emotion"]]) for row in picked]
    write(tmp_path / "emodb.csv", [dict(zip(("path", "speaker", "arousal"), row, strict=True)) for row in about])
    flags = ["--problem_type", "regression", "--attributes", "arousal", "--arrangement", arrangement]
    flags += ["--embedding_cache", str(embeddings)]
    report = train(tmp_path / "emodb.csv", "checkpoints/wavlm-compact", tmp_path / "out", *flags)
    row = report["results"][0]  # clean speech
    found = row["attributes"]["arousal"]["ccc"]
    speakers = f"{row['n_recordings']} recordings of {row['n_speakers']} speakers held out"
    print(f"{arrangement}: CCC {found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}) on {speakers}")
    assert found["value"] > 0.8


def rows_of(data: Embeddings, rows) -> Embeddings:
    speakers = [data.speakers[row] for row in rows]
    known = data.labels[rows], speakers, torch.arange(len(rows))
    return Embeddings(data.layer_statistics[rows], *known, attributes=data.attributes[rows])
