"""The console command on real files, as a shell would call it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from modeling_edrl_mea import load_recording
from modeling_edrl_mea.command_line import main


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(8000 * (number + 1)), 8000)
    return folder


def test_predictions_are_those_of_pipeline(model_folder, recordings, capsys):
    main(["predict", str(model_folder), str(recordings), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    classify = pipeline("audio-classification", model=str(model_folder))
    assert [line["path"] for line in lines] == [str(recordings / f"{number}.wav") for number in range(3)]
    for line in lines:
        expected = classify({"array": load_recording(line["path"]), "sampling_rate": 16_000})
        assert line["label"] == expected[0]["label"]
        assert line["scores"] == pytest.approx({score["label"]: score["score"] for score in expected}, abs=1e-5)


def test_a_silent_file_has_no_label(model_folder, tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    main(["predict", str(model_folder), str(tmp_path / "silent.wav"), "--json"])
    assert json.loads(capsys.readouterr().out)["label"] is None


def test_a_broken_file_is_named_and_the_others_are_predicted(model_folder, recordings, tmp_path, capsys):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(SystemExit, match="1 of 2 recordings"):
        main(["predict", str(model_folder), str(tmp_path / "broken.wav"), str(recordings / "0.wav")])
    printed = capsys.readouterr()
    assert "broken.wav" in printed.err and "0.wav" in printed.out


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
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_the_model_is_loaded(
    recordings, tmp_path, arguments, message, monkeypatch
):
    monkeypatch.chdir(recordings)
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path) if part == "EMPTY" else part for part in arguments])


def test_the_command_is_installed(model_folder, recordings):
    command = [sys.executable, "-m", "modeling_edrl_mea.command_line", "predict", str(model_folder), str(recordings)]
    assert "anger" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
