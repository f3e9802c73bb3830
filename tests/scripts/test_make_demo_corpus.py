"""The demo corpus: whole or not at all, the same bytes every time, readable by load_corpus."""

import hashlib

import pytest
import soundfile

pytest.importorskip("espeakng_loader", reason="the demo corpus is spoken by espeak-ng: extra 'demo'")

from scripts import make_demo_corpus as demo  # noqa: E402
from train.data.corpora import load_corpus  # noqa: E402
from train.data.splits import fold_indices  # noqa: E402


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    demo.make_demo_corpus(out, n_speakers=2, n_sentences=1)
    return out


def content(folder) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_bytes(small_demo, tmp_path):
    demo.make_demo_corpus(tmp_path / "again", n_speakers=2, n_sentences=1)
    assert content(tmp_path / "again") == content(small_demo)


@pytest.mark.slow
def test_every_voice_gives_the_same_bytes_again(tmp_path):
    for name in ("first", "second"):
        demo.make_demo_corpus(tmp_path / name, n_sentences=1)
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_both_corpora_load_with_four_emotions_and_known_speakers(small_demo):
    for name in ("demo_studio", "demo_room"):
        corpus = load_corpus(str(small_demo / name), label_scheme="four_emotions")
        assert set(corpus["corpus"]) == {name}
        assert sorted(corpus["label"]) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len(set(corpus["speaker"])) == 2
        assert all(corpus["text"]) and all(corpus["language"])
        assert len(fold_indices(corpus)) == 2


def test_recordings_are_speech_length_at_16_khz_and_do_not_clip(small_demo):
    for path in small_demo.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16_000 and samples.ndim == 1
        assert 0.5 < len(samples) / rate < 8
        assert 0.01 < abs(samples).max() < 1


def test_a_sad_voice_is_quieter_and_slower_than_an_angry_one(small_demo):
    for angry in small_demo.rglob("*-anger.flac"):
        sad = angry.with_name(angry.name.replace("anger", "sadness"))
        loud, quiet = soundfile.read(angry)[0], soundfile.read(sad)[0]
        assert loud.std() > quiet.std()
        assert len(loud) < len(quiet)


def test_the_readme_says_that_it_is_synthetic(small_demo):
    assert "Synthetic" in (small_demo / "README.md").read_text()


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(FileExistsError, match="something else"):
        demo.make_demo_corpus(tmp_path, n_speakers=1, n_sentences=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_former_run_with_a_foreign_file_in_it_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(demo.TITLE)
    (tmp_path / "mine.wav").touch()
    with pytest.raises(FileExistsError):
        demo.make_demo_corpus(tmp_path)


def test_a_failed_run_leaves_the_former_corpus_and_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text(demo.TITLE)

    def fail(folder, *arguments):
        (folder / "half.flac").touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(demo, "speak_corpora", fail)
    with pytest.raises(OSError, match="no space"):
        demo.make_demo_corpus(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["README.md"]


def test_more_voices_than_there_are_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="9 speakers"):
        demo.make_demo_corpus(tmp_path / "out", n_speakers=9)
