import json
from itertools import combinations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from train.benchmark.protocols import PROTOCOLS, capped, plan, read_folds, read_list
from train.data.recordings import CorpusError

EMOTIONS = ["anger", "happiness", "neutral", "sadness"]


def corpus(name: str, n_speakers: int = 6, takes: int = 3) -> Dataset:
    text = Value("string")
    rows = [(s, e, t) for s in range(n_speakers) for e in range(4) for t in range(takes)]
    return Dataset.from_dict(
        {
            "audio": [f"/data/{name}/{s}/{EMOTIONS[e]}_{t}.wav" for s, e, t in rows],
            "label": [e for _, e, _ in rows],
            "speaker": [f"{name}_{s}" for s, _, _ in rows],
            "corpus": [name] * len(rows),
        },
        features=Features(audio=text, label=ClassLabel(names=EMOTIONS), speaker=text, corpus=text),
    )


def speakers(corpora, rows_by_corpus) -> set[str]:
    return {corpora[name]["speaker"][row] for name, rows in rows_by_corpus.items() for row in rows.tolist()}


@pytest.fixture(scope="module")
def corpora():
    return {name: corpus(name, size) for name, size in (("a", 6), ("b", 4), ("c", 3))}


@pytest.fixture(scope="module")
def trials(corpora):
    found, errors = plan(corpora, PROTOCOLS, n_folds=3)
    assert not errors
    return found


def test_training_validation_and_test_never_share_a_speaker(corpora, trials):
    for trial in trials:
        parts = [speakers(corpora, rows) for rows in (trial.train, trial.validation, trial.tests)]
        assert all(parts)
        assert not any(one & other for one, other in combinations(parts, 2)), trial.title


def test_every_recording_is_tested_once_over_the_folds_of_its_corpus(corpora, trials):
    for name, dataset in corpora.items():
        tested = [t.tests[name] for t in trials if t.protocol == "folds" and name in t.tests]
        assert sorted(np.concatenate(tested).tolist()) == list(range(len(dataset)))


def test_all_ordered_pairs_are_measured_by_one_training_a_corpus(corpora, trials):
    found = [trial for trial in trials if trial.protocol == "cross_corpus"]
    pairs = {(source, test) for trial in found for source in trial.train for test in trial.tests}
    assert len(found) == 3 and pairs == {(x, y) for x in corpora for y in corpora if x != y}


def test_the_corpus_left_out_is_tested_whole_and_trained_on_nowhere(corpora, trials):
    for trial in (trial for trial in trials if trial.protocol == "leave_one_corpus_out"):
        (held_out,) = trial.tests
        assert held_out not in trial.train and held_out not in trial.validation
        assert len(trial.tests[held_out]) == len(corpora[held_out])
        used = sum(len(rows) for part in (trial.train, trial.validation) for rows in part.values())
        assert used == sum(len(dataset) for name, dataset in corpora.items() if name != held_out)


def test_a_corpus_with_one_speaker_costs_its_folds_only(corpora):
    found, errors = plan(corpora | {"alone": corpus("alone", 1)}, PROTOCOLS, n_folds=3)
    assert [error["test"] for error in errors] == ["alone"] and "1 speaker" in errors[0]["error"]
    assert not any(trial.protocol == "folds" and "alone" in trial.tests for trial in found)
    from_it = next(trial for trial in found if list(trial.train) == ["alone"])
    assert not from_it.validation and set(from_it.tests) == set(corpora)


def test_a_cap_keeps_every_speaker_and_emotion_and_the_same_recordings_in_any_order():
    whole = corpus("a", n_speakers=6, takes=5)
    small = capped(whole, 48)
    cells = list(zip(small["speaker"], small["label"], strict=True))
    assert len(small) == 48 and len(set(cells)) == 24 and max(map(cells.count, cells)) == 2
    shuffled = capped(whole.shuffle(seed=1), 48)
    assert sorted(shuffled["audio"]) == sorted(small["audio"])
    assert capped(whole, None) is whole


def write_emobox(folder, dataset, folds) -> None:
    for number, (train, test) in enumerate(folds, start=1):
        part = folder / f"fold_{number}"
        part.mkdir(parents=True)
        for kind, rows in (("train", train), ("test", test)):
            names = [dataset["audio"][row].replace("/data/", "downloads/") for row in rows]
            lines = [json.dumps({"key": f"x-{i}", "wav": name, "emo": "Angry"}) for i, name in enumerate(names)]
            (part / f"a_{kind}_fold_{number}.jsonl").write_text("\n".join(lines))


def test_folds_in_emoboxs_files_are_the_folds_used(tmp_path, corpora):
    rows = np.arange(len(corpora["a"]))
    given = [(rows[rows % 3 != k], rows[rows % 3 == k]) for k in range(3)]
    write_emobox(tmp_path, corpora["a"], given)
    found = read_folds(tmp_path, corpora["a"])
    for (train, test), (expected_train, expected_test) in zip(found, given, strict=True):
        assert train.tolist() == expected_train.tolist() and test.tolist() == expected_test.tolist()
    trials, _ = plan({"a": corpora["a"]}, ["clean"], given_folds={"a": found})
    assert trials[0].folds == {"count": 3, "given": True, "shared_speakers": 6}  # by recording, so it is reported


def test_a_cross_corpus_list_narrows_what_is_tested(tmp_path, corpora):
    listed = [3, 7, 11]
    names = ["/".join(corpora["b"]["audio"][row].split("/")[-2:]) for row in listed]
    lines = [json.dumps({"wav_filename": name, "label": "sad", "speaker": "0"}) for name in names]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    rows = read_list(tmp_path / "b.jsonl", corpora["b"])
    assert rows.tolist() == listed
    trials, _ = plan(corpora, ["cross_corpus"], test_rows={"b": rows})
    assert all(trial.tests["b"].tolist() == listed for trial in trials if "b" in trial.tests)


def test_files_of_another_corpus_are_refused_by_name(tmp_path, corpora):
    (tmp_path / "list.jsonl").write_text('{"wav_filename": "Actor_10/03-01.wav"}')
    with pytest.raises(CorpusError, match="Actor_10/03-01.wav"):
        read_list(tmp_path / "list.jsonl", corpora["a"])
    with pytest.raises(CorpusError, match="fold_1"):
        read_folds(tmp_path, corpora["a"])
