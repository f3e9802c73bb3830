"""Ratings of attributes and soft labels: from the corpora's own files and from tables, on their own scales."""

import json
import math

import pytest
import torch

from tests.support.corpus_folders import labels_of, load, make_iemocap, make_msp_podcast, write_manifest, write_table
from train.data.corpora import concatenate_corpora
from train.data.dataset import SpeechDataset
from train.data.ratings import attributes_of, scales_of
from train.data.recordings import CorpusError

ALL = ("arousal", "valence", "dominance")


def ratings(dataset, name: str = "arousal") -> list:
    return [None if math.isnan(value) else round(value, 4) for value in dataset[name]]


def test_msp_podcast_is_rated_from_one_to_seven_without_an_agreed_emotion_too(tmp_path):
    dataset = load(make_msp_podcast(tmp_path), attributes=ALL)
    assert [ratings(dataset, name) for name in ALL] == [[2.2, 5.8, 4.6], [4.0, 2.4, 5.2], [3.6, 5.5, 4.8]]
    assert labels_of(dataset.filter(lambda row: row["label"] >= 0)) == ["neutral", "happiness"]
    assert list(dataset["label"]).count(-1) == 1
    assert scales_of(dataset) == dict.fromkeys(ALL, [1, 7])
    assert len(load(tmp_path)) == 2 and attributes_of(load(tmp_path)) == []


def test_iemocap_is_rated_from_one_to_five_in_its_own_order(tmp_path):
    dataset = load(make_iemocap(tmp_path), attributes=ALL)
    assert len(dataset) == 3 and list(dataset["label"]).count(-1) == 1
    assert [set(ratings(dataset, name)) for name in ALL] == [{3.0}, {2.5}, {3.5}]
    assert scales_of(dataset)["valence"] == [1, 5]


def test_corpora_of_different_scales_are_not_mixed(tmp_path):
    one = load(make_iemocap(tmp_path / "iemocap"), attributes=("arousal",))
    other = load(make_msp_podcast(tmp_path / "msp"), attributes=("arousal",))
    with pytest.raises(CorpusError, match="iemocap from 1 to 5, msppodcast from 1 to 7"):
        scales_of(concatenate_corpora([one, other]))


DETAILS = {
    "2.0": ("EmoClass_Major", ["Neutral", "Neutral", "Sad", "Happy"]),
    "1.11": ("EmoDetail", [f"WORKER01; {word}; {word},Other; A:1.0; V:4.0; D:4.0;" for word in ("Neutral", "Sad")]),
}


@pytest.mark.parametrize("release", DETAILS)
def test_msp_podcasts_listeners_are_shares_of_the_classes_there_are(tmp_path, release):
    column, votes = DETAILS[release]
    make_msp_podcast(tmp_path)
    rows = [{"FileName": "MSP-PODCAST_0001_0008.wav", "Worker": i, column: vote} for i, vote in enumerate(votes)]
    write_table(tmp_path / "Labels" / "labels_detailed.csv", rows)
    dataset = load(tmp_path, soft_labels=True, label_scheme="four_emotions")
    shares = [share and json.loads(share) for share in dataset["shares"]]
    expected = {"happiness": 0.25, "neutral": 0.5, "sadness": 0.25} if release == "2.0" else None
    assert shares == [expected or {"neutral": 0.5, "sadness": 0.5}, None]
    soft = SpeechDataset(dataset, "speech").shares
    assert soft.sum(1).tolist() == [1, 1] and soft[1].tolist() == [0, 1, 0, 0]


def test_a_tables_shares_are_soft_labels_where_they_are_asked_for(tmp_path):
    rows = [
        {"file_name": "a.wav", "emotion": {"Angry": 0.6, "sad": 0.4, "neutral": None}, "speaker": "x"},
        {"file_name": "b.wav", "emotion": {"sad": 3, "Angry": 1}, "speaker": "y"},
    ]
    path = write_manifest(tmp_path / "rows.jsonl", rows)
    assert "shares" not in load(path).column_names
    dataset = load(path, soft_labels=True)
    assert labels_of(dataset) == ["anger", "sadness"]
    torch.testing.assert_close(SpeechDataset(dataset, "speech").shares, torch.tensor([[0.6, 0.4], [0.25, 0.75]]))


def test_shares_that_pandas_wrote_as_text_are_soft_labels_too(tmp_path):
    rows = [
        {"file_name": "a.wav", "emotion": "{'anger': 0.6, 'sadness': 0.4}", "speaker": "x"},
        {"file_name": "b.wav", "emotion": "{'anger': 1, 'sadness': 3}", "speaker": "y"},
    ]
    dataset = load(write_manifest(tmp_path / "rows.csv", rows), soft_labels=True)
    torch.testing.assert_close(SpeechDataset(dataset, "speech").shares, torch.tensor([[0.6, 0.4], [0.25, 0.75]]))


def rated(tmp_path, rows: list[dict], **options):
    rows = [{"file_name": f"{i}.wav", "speaker": f"s{i}"} | row for i, row in enumerate(rows)]
    return load(write_manifest(tmp_path / "rows.csv", rows), **options)


@pytest.mark.parametrize("column", ["arousal", "Activation", "EmoAct", "emo_act"])
def test_usual_columns_are_found_and_a_row_needs_an_emotion_or_a_rating(tmp_path, column):
    rows = [{"emotion": "anger", column: "5,5"}, {"emotion": "", column: "2"}, {"emotion": "sad", column: "nan"}]
    dataset = rated(tmp_path, rows, attributes=("arousal",))
    assert ratings(dataset) == [5.5, 2, None] and list(dataset["label"]) == [0, -1, 1]
    assert scales_of(dataset) == {"arousal": [2, 5.5]}
    speech = SpeechDataset(dataset, "speech", n_copies=1)
    assert speech.labels.tolist() == [0, -100, 1] * 2 and speech.attributes.shape == (6, 1)


def test_an_attribute_of_any_name_needs_no_emotions(tmp_path):
    rows = [{"tension": 0.5}, {"tension": -1}]
    dataset = rated(tmp_path, rows, attributes=("tension",), emotions=False)
    assert ratings(dataset, "tension") == [0.5, -1] and dataset.features["label"].names == []
    with pytest.raises(CorpusError, match="no label column"):
        load(tmp_path / "rows.csv", attributes=("tension",))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"emotion": "anger", "arousal": "high"}], "row 1 of .*'high' is no number"),
        ([{"emotion": "anger", "arousal": "inf"}], "no number"),
        ([{"emotion": "", "arousal": ""}], "has no emotion"),
    ],
    ids=str,
)
def test_a_row_that_tells_nothing_is_named(tmp_path, rows, named):
    with pytest.raises(CorpusError, match=named):
        rated(tmp_path, rows, attributes=("arousal",))


def test_an_attribute_that_nobody_rated_is_refused(tmp_path):
    dataset = rated(tmp_path, [{"emotion": "anger"}, {"emotion": "sad"}], attributes=("arousal",))
    with pytest.raises(CorpusError, match="has a rating of arousal"):
        scales_of(dataset)
