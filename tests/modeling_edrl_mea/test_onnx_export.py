"""An exported model predicts what the model predicts, and is used without torch."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_edrl_mea import EdrlMeaForAudioClassification, onnx_export
from tests.conftest import EMOTIONS, noise_recordings
from tests.support.encoders import ENCODERS

pytest.importorskip("onnxruntime", reason='needs pip install -e ".[onnx]"')
pytestmark = pytest.mark.slow  # an export takes some 10 s
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from classify_onnx import OnnxClassifier  # noqa: E402

LENGTHS = (0.05, 0.31, 1.0, 2.4)  # seconds; none is that of the traced example


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("edrl_mea", normalize_waveform=True)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_export.export(model, path)
    return path


@pytest.fixture(scope="module")
def recordings():
    return [noise_recordings(1, seconds, seed=i)[0] for i, seconds in enumerate(LENGTHS)]


def answers(model, waveforms) -> np.ndarray:
    inputs = model.feature_extractor()(waveforms, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.softmax(-1).numpy()


def test_the_graph_says_what_the_model_says_alone_and_in_a_batch(model, exported, recordings):
    assert onnx_export.largest_difference(model, exported, recordings) < 1e-5


def test_every_output_of_the_graph_is_the_models(model, exported, recordings):
    inputs = onnx_export.prepare(model, recordings)
    names = ["logits", "speech_embedding", "aligned_embedding"]
    found = onnx_export.session(exported).run(names, inputs)
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    for name, values in zip(names, found, strict=True):
        np.testing.assert_allclose(values, output[name].numpy(), atol=2e-4)


@pytest.mark.parametrize("kind", ["alone", "beside emotions"])
def test_the_graph_rates_attributes(tiny_model, tmp_path, recordings, kind):
    settings = {"attribute_names": ["arousal", "valence"], "attribute_ranges": {"arousal": [1, 7]}}
    if kind == "alone":
        settings |= {"problem_type": "regression", "id2label": {0: "arousal", 1: "valence"}}
    model = tiny_model("edrl_mea", **settings)
    onnx_export.export(model, tmp_path / "model.onnx")
    assert onnx_export.largest_difference(model, tmp_path / "model.onnx", recordings) < 1e-4
    inputs = onnx_export.prepare(model, [*recordings, np.zeros(8_000, np.float32)])
    (found,) = onnx_export.session(tmp_path / "model.onnx").run(["attributes"], inputs)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).attributes
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_the_int8_variant_is_smaller_and_close(model, exported, recordings, tmp_path):
    onnx_export.quantize(exported, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").read_bytes().count(b"MatMulInteger") > 0
    assert onnx_export.largest_difference(model, tmp_path / "int8.onnx", recordings) < 0.1


def test_a_classifier_without_torch_says_what_the_model_says(model, exported, recordings, tmp_path):
    files = []
    for i, waveform in enumerate(recordings):
        files.append(str(tmp_path / f"{i}.wav"))
        soundfile.write(files[-1], waveform, 16_000, subtype="FLOAT")
    code = "import json, sys; sys.modules['torch'] = sys.modules['transformers'] = None; from classify_onnx import *; "
    code += "c = OnnxClassifier(sys.argv[1]); print(json.dumps(c([c.read(f) for f in sys.argv[2:]])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported), *files], cwd=SCRIPTS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found[0]) == list(EMOTIONS.values())
    np.testing.assert_allclose([list(row.values()) for row in found], answers(model, recordings), atol=1e-5)


def test_a_classifier_without_torch_names_what_is_no_recording(exported):
    with pytest.raises(ValueError, match="NaN"):
        OnnxClassifier(str(exported))([np.full(8_000, np.nan)])


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ["linear", "edrl_mea"])
def test_a_backbone_with_group_norm_exports_too(tiny_backbone_config, recordings, tmp_path, arrangement):
    config = copy.deepcopy(tiny_backbone_config)
    config.feat_extract_norm = "group"
    model = EdrlMeaForAudioClassification.from_backbone(config, id2label=EMOTIONS, arrangement=arrangement).eval()
    onnx_export.export(model, tmp_path / "model.onnx")
    loud = [waveform * 3 + 0.2 for waveform in recordings]
    found = onnx_export.session(tmp_path / "model.onnx").run(["logits"], onnx_export.prepare(model, loud))[0]
    inputs = {name: torch.from_numpy(value) for name, value in onnx_export.prepare(model, loud).items()}
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**inputs).logits.numpy(), atol=1e-4)


def test_whisper_exports_too(recordings, tmp_path):
    config = ENCODERS["Whisper"]()
    model = EdrlMeaForAudioClassification.from_backbone(config, id2label=EMOTIONS, arrangement="linear").eval()
    onnx_export.export(model, tmp_path / "model.onnx")
    assert onnx_export.largest_difference(model, tmp_path / "model.onnx", recordings) < 1e-4


@pytest.mark.parametrize("encoder", ["HuBERT", "Wav2Vec2-BERT"])
def test_a_backbone_that_no_graph_can_hold_is_refused_by_name(encoder, tmp_path):
    config = ENCODERS[encoder]()
    model = EdrlMeaForAudioClassification.from_backbone(config, id2label=EMOTIONS, arrangement="linear").eval()
    with pytest.raises(ValueError, match=f"{config.model_type} backbone does not export"):
        onnx_export.export(model, tmp_path / "model.onnx")
