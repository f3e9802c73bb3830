"""`pipeline` answers for a saved model: by import alone, and without this package by `trust_remote_code` alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import pipeline

import modeling_edrl_mea  # noqa: F401  registers the model
from modeling_edrl_mea import RecordingError, load_recording
from tests.conftest import EMOTIONS, noise_recordings

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="transformers reads files and bytes by the ffmpeg program"
)


@pytest.fixture(scope="module")
def classify(model_folder):
    return pipeline("audio-classification", model=str(model_folder))


@pytest.fixture(scope="module")
def recording():
    return noise_recordings(1, seed=11)[0]


def scores(answer) -> dict[str, float]:
    return {row["label"]: row["score"] for row in answer}


def assert_same(answer, expected, tolerance: float = 1e-4):
    assert scores(answer) == pytest.approx(scores(expected), abs=tolerance)


def test_an_array_gets_a_probability_for_every_emotion(classify, recording):
    answer = scores(classify(recording))
    assert set(answer) == set(EMOTIONS.values())
    assert sum(answer.values()) == pytest.approx(1, abs=1e-5)


def test_a_dict_with_the_models_sampling_rate_is_the_array(classify, recording):
    assert_same(classify({"array": recording, "sampling_rate": 16_000}), classify(recording))


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_other_sampling_rates_are_converted(classify, rate):
    time = np.arange(rate // 2) / rate
    at_rate = classify({"array": np.sin(700 * time).astype(np.float32) / 3, "sampling_rate": rate})
    time = np.arange(8_000) / 16_000
    assert_same(at_rate, classify(np.sin(700 * time).astype(np.float32) / 3), tolerance=0.05)


def test_a_decoded_row_of_datasets_is_a_recording(classify, recording):
    from datasets import Dataset

    rows = Dataset.from_dict({"audio": [{"array": recording, "sampling_rate": 16_000}]})
    assert_same(classify(rows.with_format("numpy")[0]["audio"]), classify(recording))


def test_a_row_that_datasets_decodes_with_torchcodec_is_a_recording(classify, recording, tmp_path):
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load here: {str(error)[:60]}")
    from datasets import Audio, Dataset

    soundfile.write(tmp_path / "a.wav", recording, 16_000, subtype="FLOAT")
    rows = Dataset.from_dict({"audio": [str(tmp_path / "a.wav")]}).cast_column("audio", Audio())
    decoded = rows[0]["audio"]
    row = {"array": decoded["array"], "sampling_rate": decoded["sampling_rate"]}
    assert_same(classify(row), classify(recording))
    np.testing.assert_allclose(load_recording(decoded), recording, atol=1e-6)


@needs_ffmpeg
def test_a_path_and_bytes_are_recordings(classify, recording, tmp_path):
    path = tmp_path / "recording.wav"
    soundfile.write(path, recording, 16_000, subtype="FLOAT")
    assert_same(classify(str(path)), classify(recording))
    assert_same(classify(path.read_bytes()), classify(recording))


def test_a_batch_answers_as_its_recordings_do_alone(classify):
    recordings = [noise_recordings(1, seconds)[0] for seconds in (0.1, 0.9, 0.4)]
    for answer, recording in zip(classify(recordings, batch_size=3), recordings, strict=True):
        assert_same(answer, classify(recording))


@pytest.mark.parametrize(
    "hard",
    [
        np.zeros(16_000),
        np.ones(1, np.float32),
        (1e4 * np.sin(np.arange(8_000))).astype(np.int16),
        1e5 * np.sin(np.arange(8_000)),
    ],
    ids=["silence", "one sample", "int16", "unscaled floats"],
)
def test_hard_recordings_get_finite_scores(classify, hard):
    assert np.isfinite(list(scores(classify(hard)).values())).all()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.array([]), "zero length"),
        (np.full(800, np.nan), "NaN or infinite"),
        (np.full(800, np.inf), "NaN or infinite"),
        ({"array": np.full(800, np.nan, np.float32), "sampling_rate": 8_000}, "NaN or infinite"),
        (np.array([None] * 800), "object"),
    ],
    ids=["empty", "nan", "inf", "nan at 8 kHz", "objects"],
)
def test_bad_recordings_are_named(classify, bad, named):
    with pytest.raises(RecordingError, match=f"recording 0.*{named}"):
        classify(bad)


ALONE = """
import json, sys
import numpy as np

class WithoutThePackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_edrl_mea":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, WithoutThePackage())
from transformers import AutoModel, pipeline

folder, copy = sys.argv[1:]
recording = np.load(folder + "/recording.npy")
classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
first = classify(recording)
classify.model.save_pretrained(copy)
again = pipeline("audio-classification", model=copy, trust_remote_code=True)(recording)
bare = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(bare).__name__ == "EdrlMeaModel", type(bare)
assert not [name for name in sys.modules if name.split(".")[0] == "modeling_edrl_mea"]
print(json.dumps([first, again, classify.model.stage]))
"""


def test_a_fresh_process_needs_nothing_but_trust_remote_code(classify, model_folder, recording, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    np.save(folder / "recording.npy", recording)
    cache = {"HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder), str(tmp_path / "copy")],
        cwd=tmp_path,
        env={**os.environ, **cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    first, of_the_copy, stage = json.loads(process.stdout.splitlines()[-1])
    assert_same(first, classify(recording))
    assert_same(of_the_copy, classify(recording))
    assert stage == "alignment"


@pytest.mark.parametrize(
    ("name", "stage"), [("edrl-mea-compact", "disentanglement"), ("edrl-mea-whisper-tiny", "disentanglement")]
)
def test_the_shipped_models_answer_right_after_a_clone(recording, name, stage):
    checkpoint = Path(__file__).resolve().parents[2] / "checkpoints" / name
    classify = pipeline("audio-classification", model=str(checkpoint))
    scores = {score["label"]: score["score"] for score in classify(recording, top_k=4)}
    assert set(scores) == {"anger", "happiness", "neutral", "sadness"}
    assert sum(scores.values()) == pytest.approx(1, abs=1e-4)
    assert classify.model.stage == stage
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    assert size < 20 * 2**20
