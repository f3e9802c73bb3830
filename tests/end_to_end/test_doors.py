"""One reader behind every door: whatever way a recording comes, and wherever it goes in, it is the same recording."""

import copy
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from modeling_edrl_mea import load_recording
from modeling_edrl_mea.command_line import main as command
from tests.conftest import noise_recordings
from train.data.embeddings import EmbeddingCache

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000


@pytest.fixture(scope="module")
def model(tiny_model):
    model = tiny_model()
    model.set_temperature(2.0)  # random weights would make much of what a codec loses
    return model


@pytest.fixture(scope="module")
def speech():
    waveform = noise_recordings(1, seconds=0.6, seed=7)[0]
    return (np.round(waveform / np.abs(waveform).max() * 2**14) / 2**15).astype(np.float32)  # exact in 16 bits


class Decoder:
    """As torchcodec's AudioDecoder, which `datasets` gives."""

    def __init__(self, waveform):
        self.waveform = waveform

    def get_all_samples(self):
        return types.SimpleNamespace(data=torch.from_numpy(np.stack([self.waveform] * 2)), sample_rate=RATE)


def of_size_zero(content: bytes) -> bytes:
    place = content.index(b"data") + 4
    return content[:place] + bytes(4) + content[place + 4 :]


def forms(speech: np.ndarray, folder: Path) -> dict:
    """The same recording in every form."""
    path = folder / "speech.wav"
    soundfile.write(path, speech, RATE)
    content = path.read_bytes()
    (folder / "unfinished.wav").write_bytes(of_size_zero(content))
    integers = np.round(speech * 2**15).astype(np.int16)
    soundfile.write(folder / "channels.wav", np.stack([integers] * 10, axis=1), RATE)
    with_rate = {"sampling_rate": np.array(RATE)}
    return {
        "path": str(path),
        "Path": path,
        "bytes": content,
        "open file": io.BytesIO(content),
        "size zero": str(folder / "unfinished.wav"),
        "ten channels": str(folder / "channels.wav"),
        "row of bytes": {"bytes": content, "path": None},
        "row of a path": {"bytes": None, "path": str(path)},
        "array": speech,
        "array and rate": {"array": speech, **with_rate},
        "list": speech.tolist(),
        "tensor": torch.from_numpy(speech),
        "integers": integers,
        "list of integers": integers.tolist(),
        "wide integers": integers.astype(np.int64),
        "decoder": Decoder(speech),
    }


SAMPLES = ("array", "list", "tensor", "integers", "list of integers", "wide integers")
ROWS = ("row of bytes", "row of a path", "array and rate", "decoder")
FILES = ("path", "Path", "size zero", "ten channels")
ALL = (*FILES, "bytes", "open file", *ROWS, *SAMPLES)


def of_extractor(model, recording, tmp_path):
    inputs = model.feature_extractor()(recording, sampling_rate=RATE, return_tensors="pt")
    return model(**inputs).logits[0]


def of_timeline(model, recording, tmp_path):
    (segment,) = model.predict_timeline(recording, window_s=3)
    return torch.tensor([segment.scores[label] for label in model.config.labels]).log()


def of_predict(model, recording, tmp_path):
    (found,) = model.predict(one for one in [recording])
    return torch.tensor([found.scores[label] for label in model.config.labels]).log()


def of_explanation(model, recording, tmp_path):
    return torch.tensor(list(model.explain(recording)["logits"].values()))


def of_embedding(model, recording, tmp_path):
    return model(layer_statistics=model.embed_recordings(one for one in [recording])).logits[0]


def of_adaptation(model, recording, tmp_path):
    """To one recording of a known mix, which the class biases then give it exactly."""
    adapted = copy.deepcopy(model).adapt((one for one in [recording]), expected={"anger": 0.7}, labels=["anger"])
    return adapted(layer_statistics=adapted.embed_recordings([recording])).logits[0]


def of_pipeline(model, recording, tmp_path):
    if isinstance(recording, str) and shutil.which("ffmpeg") is None:
        pytest.skip("transformers decodes files by the ffmpeg program")
    classify = pipeline("audio-classification", model=model, feature_extractor=model.feature_extractor())
    scores = {row["label"]: row["score"] for row in classify(recording)}
    return torch.tensor([scores[label] for label in model.config.labels]).log()


def of_onnx(model, recording, tmp_path):
    """What the script without torch reads; its graph is another test's."""
    pytest.importorskip("onnxruntime")
    return of_extractor(model, classify_onnx().OnnxClassifier.read(ONNX, str(recording)), tmp_path)


def classify_onnx():
    spec = importlib.util.spec_from_file_location("classify_onnx", ROOT / "scripts" / "classify_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_training(model, recording, tmp_path):
    row = recording if isinstance(recording, dict) else str(recording)
    embedded = EmbeddingCache(model, tmp_path / "cache").embed([row])
    return model(layer_statistics=embedded).logits[0]


def of_command(model, recording, tmp_path):
    model.save_pretrained(tmp_path / "model")
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        command(["predict", str(tmp_path / "model"), str(recording), "--json"])
        scores = json.loads(sys.stdout.getvalue())["scores"]
    finally:
        sys.stdout = out
    return torch.tensor([scores[label] for label in model.config.labels]).log()


ONNX = types.SimpleNamespace(sampling_rate=RATE)
DOORS = {
    of_adaptation: [form for form in ALL if form != "open file"],  # which cannot be read twice
    of_pipeline: ("path", "size zero", "bytes", "array", "array and rate", "integers"),
    of_onnx: FILES,
    of_extractor: (*ROWS, *SAMPLES),
    of_timeline: ALL,
    of_predict: ALL,
    of_explanation: ALL,
    of_embedding: ALL,
    of_training: (*FILES, "row of bytes", "row of a path"),
    of_command: FILES,
}


def broken(folder: Path) -> dict:
    """What is no recording, though a door may be given it."""
    (folder / "text.wav").write_text("no sound")
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(800, np.nan), RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    names = {name: str(folder / f"{name}.wav") for name in ("text", "none", "nan", "missing", "folder")}
    nothing = {"None": None, "row of nothing": {"bytes": None, "path": None}, "empty bytes": b""}
    return names | nothing | {"words": ["a"], "rate and samples": (RATE, np.zeros(800))}


NO_FILES = ("None", "row of nothing", "words", "rate and samples")
BROKEN_FILES = ("text", "none", "nan", "missing", "folder")
REFUSING = {
    of_extractor: NO_FILES,
    of_timeline: (*NO_FILES, *BROKEN_FILES, "empty bytes"),
    of_predict: (*NO_FILES, *BROKEN_FILES, "empty bytes"),
    of_explanation: (*NO_FILES, *BROKEN_FILES, "empty bytes"),
    of_embedding: (*NO_FILES, *BROKEN_FILES, "empty bytes"),
    of_adaptation: (*NO_FILES, *BROKEN_FILES, "empty bytes"),
    of_training: BROKEN_FILES,
    of_onnx: BROKEN_FILES,
}


@pytest.mark.parametrize(("door", "form"), [(door, form) for door, taken in REFUSING.items() for form in taken])
def test_what_is_no_recording_is_refused_in_one_line_at_every_door(model, tmp_path, door, form):
    with pytest.raises(ValueError) as refused:
        door(model, broken(tmp_path)[form], tmp_path)
    assert type(refused.value).__name__ == "RecordingError"
    assert "\n" not in str(refused.value) or door is of_training  # which lists all of them


@pytest.mark.parametrize(("door", "form"), [(door, form) for door, taken in DOORS.items() for form in taken])
@torch.no_grad()
def test_a_recording_is_the_same_whatever_its_form_and_wherever_it_goes_in(model, speech, tmp_path, door, form):
    expected = of_extractor(model, speech, tmp_path)
    if door is of_adaptation:
        expected = of_adaptation(model, speech, tmp_path)
    found = door(model, forms(speech, tmp_path)[form], tmp_path)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("suffix", ["m4a", "webm", "amr"])
@pytest.mark.parametrize("door", [of_timeline, of_explanation, of_training, of_command, of_onnx, of_pipeline])
@torch.no_grad()
def test_what_only_ffmpeg_reads_goes_in_at_every_door(model, speech, tmp_path, suffix, door):
    path = encoded(speech, tmp_path, suffix)
    expected = of_extractor(model, load_recording(path), tmp_path)
    found = door(model, str(path), tmp_path)
    tolerance = 0.03 if door is of_pipeline else 1e-3  # FFmpeg's own resampling
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=tolerance, rtol=0)


def encoded(speech, tmp_path, suffix: str) -> Path:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg program")
    codec, rate = {"m4a": ("aac", RATE), "webm": ("libopus", 48_000), "amr": ("libopencore_amrnb", 8_000)}[suffix]
    soundfile.write(tmp_path / "clean.wav", speech, RATE)
    encode = ["ffmpeg", "-v", "error", "-i", tmp_path / "clean.wav", "-ar", str(rate), "-c:a", codec]
    if subprocess.run([*encode, tmp_path / f"a.{suffix}"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"this ffmpeg does not write {codec}")
    return tmp_path / f"a.{suffix}"


@pytest.mark.parametrize("source", [str, Path.read_bytes])
def test_without_the_program_torchcodec_reads(speech, tmp_path, monkeypatch, source):
    """A stand-in for torchcodec, which is not installed everywhere."""
    given = []
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.AudioDecoder = lambda source: given.append(source) or Decoder(speech)
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(400))
    np.testing.assert_allclose(load_recording(source(tmp_path / "a.m4a")), speech)
    assert given == [source(tmp_path / "a.m4a")]


def test_samples_in_a_row_without_a_rate_are_at_the_rate_that_the_timeline_is_told(model, speech):
    slow = np.repeat(speech, 2)
    timeline = model.predict_timeline({"array": slow, "path": None}, 2 * RATE, window_s=3)
    assert timeline[-1].end == pytest.approx(len(speech) / RATE, abs=0.001)
