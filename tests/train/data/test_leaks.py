"""What training and a test share is found, whatever it is called, and refused or dropped."""

import shutil

import pytest

from tests.support.corpus_folders import write_table
from tests.support.tones import write_corpus
from train import run
from train.arguments import parse_arguments
from train.data.corpora import load_corpus
from train.data.leaks import described, one_voice_a_speaker, shared_rows, without
from train.data.recordings import CorpusError
from train.data.splits import SplitError, by_given_splits, split_by_speaker
from train.data.summary import as_text, summary_of


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("leaks") / "tones", n_speakers=6, emotions=["anger", "sadness"])


def data_arguments(*flags):
    return parse_arguments(["--use_cpu", "True", *map(str, flags)])[1]


def test_a_copy_under_another_name_is_found_by_its_content_and_so_are_its_speakers(tones, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tones, copy)
    (copy / "anger_0_0.wav").write_bytes((tones / "anger_0_0.wav").read_bytes() + b"\0\0")
    training, other = load_corpus(str(tones)), load_corpus(f"mine={copy}")
    found = shared_rows(other, [training])
    assert len(found) == len(other)  # the changed one by its speaker
    assert "35 recordings are the same" in described(other, found)
    assert len(without(other, found)) == 0


def test_the_same_name_in_other_case_is_the_same_speaker_across_corpora_and_a_code_is_not(tmp_path):
    for name, speakers in {"one": ("Anna", "03"), "two": ("anna ", "03")}.items():
        write_corpus(tmp_path / name, n_speakers=2, emotions=["anger"])
        names = [f"anger_{i}_{take}.wav" for i in (0, 1) for take in range(3)]
        table = [{"file_name": f, "emotion": "anger", "speaker": speakers[int(f[6])]} for f in names]
        write_table(tmp_path / name / "metadata.csv", table)
    one, two = (load_corpus(str(tmp_path / name)) for name in ("one", "two"))
    assert sorted(shared_rows(two, [one])) == [0, 1, 2]
    assert not shared_rows(two, [one], speakers=False)


def test_a_test_corpus_that_was_trained_on_is_refused_or_dropped(tones):
    splits = run.read_splits(data_arguments("--dataset_name", tones), 0)
    other = load_corpus(f"mine={tones}")
    with pytest.raises(SplitError, match="mine shares with training(.|\n)*on_leak drop"):
        run.without_leaks(splits, [other], data_arguments(), [])
    notes = []
    _, others = run.without_leaks(splits, [other], data_arguments("--on_leak", "drop"), notes)
    trained = len(splits["train"]) + len(splits["validation"])
    assert len(others[0]) == len(other) - trained and "dropped" in notes[0]


def given(tones, tmp_path, shared: bool):
    """The tones with splits: the last speakers are for testing, or some recordings of all."""
    shutil.copytree(tones, tmp_path / "given")
    table = []
    for path in sorted((tmp_path / "given").glob("*.wav")):
        emotion, speaker, take = path.stem.split("_")
        of_test = take == "2" if shared else int(speaker) > 3
        table.append(
            {"file_name": path.name, "emotion": emotion, "speaker": speaker, "split": "Test" if of_test else "Train"}
        )
    write_table(tmp_path / "given" / "metadata.csv", table)
    return tmp_path / "given"


def test_given_splits_are_kept_and_validation_comes_from_training(tones, tmp_path):
    args = data_arguments("--dataset_name", given(tones, tmp_path, shared=False))
    splits, _ = run.without_leaks(run.read_splits(args, 0), [], args, [])
    assert set(splits["test"]["speaker"]) == {"given_4", "given_5"} and len(splits["test"]) == 12
    assert set(splits["train"]["split"]) == set(splits["validation"]["split"]) == {"Train"}
    again = data_arguments("--dataset_name", given(tones, tmp_path / "b", shared=False), "--keep_given_splits", "False")
    assert len(set(run.read_splits(again, 0)["test"]["split"])) >= 1


def test_given_splits_that_share_speakers_are_refused(tones, tmp_path):
    args = data_arguments("--dataset_name", given(tones, tmp_path, shared=True))
    with pytest.raises(SplitError, match="keep_given_splits False"):
        run.without_leaks(run.read_splits(args, 0), [], args, [])


def test_splits_can_be_named(tones, tmp_path):
    corpus = load_corpus(str(given(tones, tmp_path, shared=False)))
    parts = by_given_splits(corpus, {"train": "Test", "validation": None, "test": "Train"})
    assert len(parts["train"]) == 12 and len(parts["test"]) == 24
    with pytest.raises(SplitError, match="'gold'.*Train"):
        by_given_splits(corpus, {"train": None, "validation": None, "test": "gold"})


def test_iemocap_is_split_by_session():
    from datasets import ClassLabel

    names = [f"iemocap_Ses0{session}{gender}" for session in range(1, 6) for gender in "FM" for _ in range(4)]
    from tests.train.data.test_splits import corpus_of

    dataset = corpus_of(names, corpus="iemocap")
    assert isinstance(dataset.features["label"], ClassLabel)
    rest, test = split_by_speaker(dataset, 0.25)
    assert not {name[:13] for name in rest["speaker"]} & {name[:13] for name in test["speaker"]}


def test_what_was_read_is_said(tones):
    splits = run.read_splits(data_arguments("--dataset_name", tones), 0)
    text = as_text(summary_of(splits, ["3 recordings dropped"]))
    assert "| train | tones | 18 | 0.00 | 3 | anger 9, sadness 9 |" in text and "- 3 recordings dropped" in text


def copied(tones, tmp_path, **copies):
    """The tones with copies: `c=("anger_0_0", "fear", "3")` is a file c.wav with that emotion and speaker."""
    folder = tmp_path / "copied"
    shutil.copytree(tones, folder)
    for name, (source, emotion, speaker) in copies.items():
        shutil.copy(folder / f"{source}.wav", folder / f"{name}.wav")
        with open(folder / "metadata.csv", "a") as table:
            table.write(f"\n{name}.wav,{emotion},{speaker}")
    return load_corpus(str(folder))


def test_a_recording_under_two_speakers_is_refused_or_they_become_one(tones, tmp_path):
    corpus = copied(
        tones,
        tmp_path,
        c=("anger_0_0", "anger", "tones_3"),
        d=("anger_3_1", "anger", "new"),
        e=("anger_5_0", "anger", "tones_5"),
    )
    with pytest.raises(CorpusError, match="2 recordings are there under several speakers: .*anger_0_0.wav = .*c.wav"):
        one_voice_a_speaker(corpus, "copied", False, [])
    notes = []
    alone = one_voice_a_speaker(corpus, "copied", True, notes)
    assert len(alone) == len(corpus) - 3 and "taken for one" in notes[0]
    assert {s.split("_")[-1] for s in alone["speaker"]} == {"0", "1", "2", "4", "5"}
    assert not {"c.wav", "d.wav", "e.wav"} & {audio.split("/")[-1] for audio in alone["audio"]}
    assert alone.features == corpus.features


def test_a_copy_of_the_same_speaker_is_only_said(tones, tmp_path):
    notes, corpus = [], copied(tones, tmp_path, c=("anger_0_0", "anger", "tones_0"))
    assert one_voice_a_speaker(corpus, "x", False, notes) is corpus and "1 recordings are copies" in notes[0]


def test_one_emotion_alone_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "angry", n_speakers=6, emotions=["anger"])
    args = data_arguments("--dataset_name", corpus)
    with pytest.raises(SplitError, match="All recordings show 'anger'"):
        run.without_leaks(run.read_splits(args, 0), [], args, [])


def test_copies_of_different_emotions_are_refused_in_training_and_benchmark(tones, tmp_path):
    corpus = copied(tones, tmp_path, c=("anger_0_0", "sadness", "tones_0"))
    with pytest.raises(CorpusError, match="anger_0_0.wav and .*c.wav are the same recording, .* anger and as sadness"):
        one_voice_a_speaker(corpus, "x", True, [])
    args = data_arguments("--dataset_name", tmp_path / "copied")
    with pytest.raises(CorpusError, match="the same recording"):
        run.without_leaks(run.read_splits(args, 0), [], args, [])
