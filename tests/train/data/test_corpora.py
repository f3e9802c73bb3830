"""What is wrong with a corpus is named, and several corpora are united."""

import os
from pathlib import Path

import pytest

from tests.support.corpus_folders import TREES, labels_of, load, make_meld, touch
from train.data.corpora import concatenate_corpora, load_corpus
from train.data.recordings import CorpusError


@pytest.mark.parametrize(
    "source",
    ["../nowhere/at/all", "emodb=nowhere/at/all", "/nowhere", "tests/nowhere", "emodb=tests/nowhere"],
)
def test_a_missing_folder_is_named_without_asking_the_hub(source, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(CorpusError, match="nowhere.* does not exist"):
        load_corpus(source)


def test_an_empty_corpus_says_what_was_expected_and_what_is_there(tmp_path):
    touch(tmp_path, "docs/erkennung.txt")
    with pytest.raises(CorpusError, match=r"no recording of emodb.*expected names like.*docs/erkennung\.txt"):
        load_corpus(f"emodb={tmp_path}")
    with pytest.raises(CorpusError, match=r"no audio in .*class folders.*docs/erkennung\.txt"):
        load_corpus(str(tmp_path))


def test_names_that_are_no_text_are_listed(tmp_path):
    touch(tmp_path, "anger/1.wav", "anger/2.wav")
    os.rename(tmp_path / "anger" / "1.wav", os.fsencode(tmp_path) + b"/anger/caf\xe9.wav")
    with pytest.raises(CorpusError, match=r"1 recordings .* no UTF-8:\n.*caf\\udce9.wav'\nRename"):
        load_corpus(str(tmp_path))


def test_recordings_without_a_label_are_named(tmp_path):
    with pytest.raises(CorpusError, match="have no label, such as 1.wav"):
        load(touch(tmp_path, "1.wav", "anger/2.wav"))


def test_a_class_of_one_recording_is_named_with_its_file(tmp_path):
    touch(tmp_path, "anger/1.wav", "anger/2.wav", "fear/only.wav")
    with pytest.raises(CorpusError, match="'fear' .* has 1 recording .*only.wav"):
        load_corpus(str(tmp_path))


def test_nothing_left_under_a_scheme_is_an_error(tmp_path):
    touch(tmp_path, "boredom/1.wav", "boredom/2.wav")
    with pytest.raises(CorpusError, match="no recording under 'four_emotions'"):
        load_corpus(str(tmp_path), label_scheme="four_emotions")


def test_a_split_that_a_corpus_does_not_have_is_an_error(tmp_path):
    touch(tmp_path, *TREES["emodb"])
    with pytest.raises(CorpusError, match="no official splits"):
        load(tmp_path, split="test")
    with pytest.raises(CorpusError, match="train, dev, test"):
        load(make_meld(tmp_path / "meld"), split="gold")
    assert len(load(tmp_path / "meld", split="Train")) == 1


def test_a_link_back_up_does_not_go_round_for_ever(tmp_path):
    touch(tmp_path, "anger/1.wav")
    (tmp_path / "anger" / "up").symlink_to(tmp_path)
    assert len(load(tmp_path)) == 1


# --- several corpora


def test_corpora_of_different_classes_unite_theirs(tmp_path):
    one = load(touch(tmp_path / "one", "anger/1.wav", "fear/1.wav"))
    two = load(touch(tmp_path / "two", "boredom/1.wav", "anger/1.wav"))
    both = concatenate_corpora([one, two])
    assert both.features["label"].names == ["anger", "boredom", "fear"]
    assert sorted(labels_of(both)) == sorted(labels_of(one) + labels_of(two))
    assert both.column_names == one.column_names
