"""The probe as one runs it: every row that was asked for, and nothing computed twice."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.probed_corpus import write_corpus, write_noise
from tests.support.tones import write_backbone
from train.probing import features
from train.probing.recordings import CONDITIONS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import probe_backbone as probing  # noqa: E402


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory) -> Path:
    return write_noise(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config) -> Path:
    return write_backbone(tmp_path_factory.mktemp("tiny"), tiny_backbone_config)


def test_noisy_copies_add_a_row_that_adapts(backbone, corpus_folder, noise_folder, tmp_path, capsys):
    corpora = [f"{name}={corpus_folder}" for name in "abc"]
    arguments = [str(backbone), "--corpora", *corpora, "--noise", str(noise_folder), "--cache", str(tmp_path)]
    probing.main([*arguments, "--noisy_copies", "1", "--no-opensmile", "--no-untrained", "--at_most", "16"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "discriminant with 1 noisy copies" in line]
    assert len(rows) == 2 and " nan" not in "".join(rows)


def test_the_probe_prints_every_condition_and_reads_its_cache(
    backbone, corpus_folder, noise_folder, tmp_path, capsys, monkeypatch
):
    arguments = [str(backbone), "--corpora", str(corpus_folder), "--noise", str(noise_folder)]
    arguments += ["--cache", str(tmp_path), "--no-opensmile", "--no-untrained"]
    probing.main(arguments)
    first = capsys.readouterr().out
    assert all(f"{corpus_folder.name} {condition}" in first for condition in CONDITIONS)
    monkeypatch.setattr(features, "noisy", None)  # would fail if anything were computed again
    probing.main(arguments)
    assert capsys.readouterr().out == first


def test_backbones_of_the_same_name_keep_their_own_rows(backbone, tmp_path):
    other = tmp_path / backbone.name
    shutil.copytree(backbone, other)
    options = probing.parse_arguments([str(backbone), str(other), "--corpora", "c", "--noise", "n", "--no-opensmile"])
    assert list(probing.kinds_of_features(options)) == [str(backbone), str(other), "untrained"]


def test_a_corpus_left_out_is_judged_as_it_is_and_adapted(backbone, corpus_folder, noise_folder, tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        shutil.copytree(corpus_folder, folder)
    arguments = [str(backbone), "--corpora", *map(str, folders), "--noise", str(noise_folder), "--at_most", "16"]
    probing.main([*arguments, "--cache", str(tmp_path / "cache"), "--no-opensmile", "--no-untrained"])
    printed = capsys.readouterr().out
    assert "left out of training" in printed and "0 dB adapted: a / b / c; mean" in printed
