"""The console command on real files, as a shell would call it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from transformers import pipeline

from modeling_edrl_mea import EdrlMeaForAudioClassification, load_recording, onnx_export
from modeling_edrl_mea.command_line import main
from tests.support.voice import vowels


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", vowels(number + 1, 110 + 20 * number, rate=8000), 8000)
    return folder


def test_predictions_are_those_of_pipeline(model_folder, recordings, capsys):
    main(["predict", str(model_folder), str(recordings), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    classify = pipeline("audio-classification", model=str(model_folder))
    assert [line["path"] for line in lines] == [str(recordings / f"{number}.wav") for number in range(3)]
    for line in lines:
        expected = classify({"array": load_recording(line["path"]), "sampling_rate": 16_000})
        assert line["emotion"] == expected[0]["label"] and line["confidence"] == pytest.approx(expected[0]["score"])
        assert line["scores"] == pytest.approx({score["label"]: score["score"] for score in expected}, abs=1e-5)


def test_a_file_without_speech_has_no_emotion(model_folder, tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    main(["predict", str(model_folder), str(tmp_path), "--json"])
    assert [json.loads(line)["emotion"] for line in capsys.readouterr().out.splitlines()] == [None, None]
    main(["predict", str(model_folder), str(tmp_path)])
    assert capsys.readouterr().out.count("no speech") == 2
    main(["embed", str(model_folder), str(tmp_path), "--output", str(tmp_path / "embedded.parquet")])
    assert pq.read_table(tmp_path / "embedded.parquet")["label"].to_pylist() == [None, None]


def test_the_emotions_that_cover_the_right_one_are_told_where_the_model_knows_them(
    tiny_model, recordings, tmp_path, capsys
):
    tiny_model("linear", coverage_thresholds={"0.9": 0.2}).save_pretrained(tmp_path)
    main(["predict", str(tmp_path), str(recordings), "--coverage", "0.9"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("[90%: " in line for line in lines)
    with pytest.raises(SystemExit, match="this model knows 0.9"):
        main(["predict", str(tmp_path), str(recordings), "--coverage", "0.99"])


def test_a_broken_file_is_named_and_the_others_are_predicted(model_folder, recordings, tmp_path, capsys):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(SystemExit, match="1 of 2 recordings"):
        main(["predict", str(model_folder), str(tmp_path / "broken.wav"), str(recordings / "0.wav")])
    printed = capsys.readouterr()
    assert "broken.wav" in printed.err and "0.wav" in printed.out


def test_embeddings_are_those_of_the_model_in_a_table_that_datasets_reads(model_folder, recordings, tmp_path):
    main(["embed", str(model_folder), str(recordings), "--output", str(tmp_path / "out" / "embedded.parquet")])
    table = pq.read_table(tmp_path / "out" / "embedded.parquet").to_pylist()
    model = EdrlMeaForAudioClassification.from_pretrained(model_folder).eval()
    assert [row["path"] for row in table] == [str(recordings / f"{number}.wav") for number in range(3)]
    for row in table:
        inputs = model.feature_extractor()([load_recording(row["path"])], sampling_rate=16_000, return_tensors="pt")
        output = model(**inputs)
        assert row["speech_embedding"] == pytest.approx(output.speech_embedding[0].tolist(), abs=1e-5)
        assert row["aligned_embedding"] == pytest.approx(output.aligned_embedding[0].tolist(), abs=1e-4)
        assert row["label"] == max(row["scores"], key=row["scores"].get)


@pytest.mark.parametrize("name", ["emotions.csv", "emotions.json", "emotions.txt", "emotions.TextGrid", "emotions.png"])
def test_a_timeline_is_written_in_the_format_of_its_ending(model_folder, recordings, tmp_path, name):
    main(
        ["timeline", str(model_folder), str(recordings / "2.wav"), "--output", str(tmp_path / name), "--window_s", "1"]
    )
    assert (tmp_path / name).stat().st_size > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "MODEL", "nowhere.wav"], "nowhere.wav: no such file"),
        (["predict", "MODEL", "EMPTY"], "holds no audio file"),
        (["timeline", "MODEL", "0.wav", "--output", "emotions.xls"], "ends in .json"),
        (["embed", "MODEL", "0.wav", "--output", "out.csv"], "ends in .parquet"),
        (["adapt", "MODEL", "EMPTY", "--output", "out"], "holds no audio file"),
        (["adapt", "MODEL", "0.wav", "--output", "out"], "0.wav: no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_the_model_is_loaded(
    recordings, tmp_path, arguments, message, monkeypatch
):
    monkeypatch.chdir(recordings)
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path) if part == "EMPTY" else part for part in arguments])


@pytest.fixture
def described(recordings, tmp_path):
    """A folder of the recordings whose metadata.csv tells who speaks and the emotion of one; `described(text)` writes
    another."""
    shutil.copytree(recordings, tmp_path / "described")

    def write(table: str):
        (tmp_path / "described" / "metadata.csv").write_text(table)
        return str(tmp_path / "described")

    return write


def test_a_folder_is_adapted_to_as_its_table_tells(model_folder, described, tmp_path, capsys):
    folder = described("file_name,emotion,speaker\n0.wav,anger,ann\n1.wav,,ann\n2.wav,,bo\n")
    mix = "anger=0.7,happiness=0.1,sadness=0.1,neutral=0.1"
    main(["adapt", str(model_folder), folder, "--expected", mix, "--output", str(tmp_path / "adapted")])
    printed = capsys.readouterr().out
    assert "3 recordings of 2 speakers, 1 with a label" in printed
    adapted = EdrlMeaForAudioClassification.from_pretrained(tmp_path / "adapted")
    assert adapted.adaptation.expected["anger"] == pytest.approx(0.7)
    assert adapted.config.adapted_speakers == ["ann", "bo"]
    assert json.loads((tmp_path / "adapted" / "adaptation.json").read_text()) == adapted.adaptation.to_dict()
    assert not EdrlMeaForAudioClassification.from_pretrained(model_folder).config.adaptation


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\n0.wav,anger\n", "name them file_name, emotion, speaker"),
        ("file_name,emotion\n9.wav,anger\n", "9.wav, which is no recording"),
        ("file_name,speaker\n0.wav,ann\n", "no speaker of .*1.wav"),
    ],
)
def test_a_table_that_does_not_fit_its_folder_is_refused(described, table, message):
    with pytest.raises(SystemExit, match=message):
        main(["adapt", "no/such/model", described(table), "--output", "out"])


def test_a_mix_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "MODEL", "FOLDER", "--output", "out", "--expected", "mostly anger"])
    assert "write balanced, unknown, or neutral=0.7" in capsys.readouterr().err


def test_export_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setattr(onnx_export, "LIBRARIES", ("onnx_of_another_world",))
    with pytest.raises(SystemExit, match=r"onnx_of_another_world: pip install edrl-mea\[onnx\]"):
        main(["export", "no/such/model", "--output", "out"])


@pytest.mark.slow  # an export takes some 10 s
def test_a_model_is_exported_and_compared(model_folder, recordings, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    main(["export", str(model_folder), "--output", str(tmp_path / "out"), "--recordings", str(recordings)])
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model_int8.onnx"}
    assert "model_int8.onnx" in printed and "probabilities within" in printed


def test_the_command_is_installed(model_folder, recordings):
    command = [sys.executable, "-m", "modeling_edrl_mea.command_line", "predict", str(model_folder), str(recordings)]
    assert "anger" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
