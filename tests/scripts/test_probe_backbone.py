"""The probe: fair noise, fair folds, features that do not depend on their batch."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from transformers import Wav2Vec2FeatureExtractor, WavLMModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import probe_backbone as probing  # noqa: E402

from modeling_edrl_mea import load_recording  # noqa: E402

EMOTIONS = ("anger", "happiness", "neutral", "sadness")


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    """48 noises of 4 speakers whose level of smoothing is their emotion."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = ["file_name,emotion,speaker"]
    for i in range(48):
        emotion = i % 4
        samples = rng.standard_normal(8000 + 400 * (i % 5))
        samples = np.convolve(samples, np.ones(1 + 3 * emotion) / (1 + 3 * emotion), "same")
        soundfile.write(folder / f"{i}.wav", 0.2 * samples, 16000)
        rows.append(f"{i}.wav,{EMOTIONS[emotion]},speaker{i // 12}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    for fold in (1, 4, 5):
        samples = np.random.default_rng(fold).standard_normal(12000) * 0.1
        samples[:4000] = 0
        soundfile.write(folder / f"{fold}-1.wav", samples, 16000)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    WavLMModel(tiny_backbone_config).save_pretrained(directory)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(directory)
    return directory


def test_noise_is_added_at_the_level_asked_for_and_is_the_same_each_time(corpus_folder, noise_folder):
    path, noise = str(corpus_folder / "0.wav"), [str(noise_folder / "4-1.wav")]
    clean, disturbed = probing.noisy(path, noise, None), probing.noisy(path, noise, 10.0)
    measured = 10 * np.log10(clean.var() / (disturbed - clean).var())
    assert measured == pytest.approx(10.0, abs=0.05)
    assert np.array_equal(disturbed, probing.noisy(path, noise, 10.0))


def test_features_do_not_depend_on_the_batch(backbone, corpus_folder):
    extract = probing.BackboneFeatures(str(backbone))
    signals = [load_recording(str(corpus_folder / f"{i}.wav")) for i in range(5)]
    together, alone = extract(signals), extract(signals, batch_size=1)
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_rotating_features_changes_no_prediction():
    rng = np.random.default_rng(0)
    features, emotions = rng.standard_normal((40, 300)), np.arange(40) % 4
    features[:, 0] += emotions
    probe = probing.Probe().fit(features, emotions, np.arange(40) % 5)
    plain = LogisticRegression(C=probe.strength, class_weight="balanced", tol=1e-6, max_iter=2000)
    plain.fit(probe.standardize(features), emotions)
    other = rng.standard_normal((100, 300))
    agreement = (plain.predict(probe.standardize(other)) == probe.predict(other)).mean()
    assert agreement >= 0.97  # the solver stops within its tolerance


def test_no_speaker_is_both_trained_on_and_tested():
    speakers = np.repeat([f"s{i}" for i in range(8)], 10)
    emotions = np.repeat(np.arange(8) % 4, 10)  # told by the speaker alone: a leak would score 100
    corpus = probing.Corpus("voices", [""] * 80, emotions, speakers)
    features = np.eye(8)[np.repeat(np.arange(8), 10)] + 1e-3 * torch.randn(80, 8).numpy()
    assert probing.within_corpus(corpus, {"clean": features}, features)["clean"]["uar"] < 60


def test_noisy_copies_add_a_row_that_adapts(backbone, corpus_folder, noise_folder, tmp_path, capsys):
    corpora = [f"{name}={corpus_folder}" for name in "abc"]
    arguments = [str(backbone), "--corpora", *corpora, "--noise", str(noise_folder), "--cache", str(tmp_path)]
    probing.main([*arguments, "--noisy_copies", "1", "--no-opensmile", "--no-untrained", "--at_most", "16"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "discriminant with 1 noisy copies" in line]
    assert len(rows) == 2 and " nan" not in "".join(rows)


def test_a_sample_of_a_corpus_is_the_same_each_time(corpus_folder):
    some, again = (probing.read_corpus(str(corpus_folder), 20) for _ in range(2))
    assert len(some.files) == 20 and some.files == again.files
    with pytest.raises(ValueError, match="elsewhere"):
        probing.read_corpus(str(corpus_folder / "elsewhere"), 20)


def test_the_probe_prints_every_condition_and_reads_its_cache(
    backbone, corpus_folder, noise_folder, tmp_path, capsys, monkeypatch
):
    arguments = [str(backbone), "--corpora", str(corpus_folder), "--noise", str(noise_folder)]
    arguments += ["--cache", str(tmp_path), "--no-opensmile", "--no-untrained"]
    probing.main(arguments)
    first = capsys.readouterr().out
    assert all(f"{corpus_folder.name} {condition}" in first for condition in probing.CONDITIONS)
    monkeypatch.setattr(probing, "noisy", None)  # would fail if anything were computed again
    probing.main(arguments)
    assert capsys.readouterr().out == first


def test_backbones_of_the_same_name_keep_their_own_rows(backbone, tmp_path):
    other = tmp_path / backbone.name
    shutil.copytree(backbone, other)
    options = probing.parse_arguments([str(backbone), str(other), "--corpora", "c", "--noise", "n", "--no-opensmile"])
    assert list(probing.kinds_of_features(options)) == [str(backbone), str(other), "untrained"]


def test_class_biases_make_the_mean_prediction_uniform():
    rng = np.random.default_rng(0)
    emotions = np.arange(400) % 4
    features = np.eye(4)[emotions] + 0.3 * rng.standard_normal((400, 4))
    probe = probing.Probe().fit(features, emotions, np.arange(400) % 7)
    elsewhere = features + np.array([1.2, 0, 0, 0])  # as a microphone would
    plain, adapted = probe.predict(elsewhere), probe.predict_adapted(elsewhere)
    assert np.bincount(plain).max() > 150 and np.ptp(np.bincount(adapted, minlength=4)) < 40
    assert (adapted == emotions).mean() > (plain == emotions).mean() + 0.1


def test_a_corpus_left_out_is_judged_as_it_is_and_adapted(backbone, corpus_folder, noise_folder, tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        shutil.copytree(corpus_folder, folder)
    arguments = [str(backbone), "--corpora", *map(str, folders), "--noise", str(noise_folder), "--at_most", "16"]
    probing.main([*arguments, "--cache", str(tmp_path / "cache"), "--no-opensmile", "--no-untrained"])
    printed = capsys.readouterr().out
    assert "left out of training" in printed and "0 dB adapted: a / b / c; mean" in printed
