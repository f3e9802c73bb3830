"""Every encoder as the backbone: what transformers' own makes of a recording, and every promise of the model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, pipeline

from modeling_edrl_mea import EdrlMeaConfig, EdrlMeaForAudioClassification
from modeling_edrl_mea.backbone import BACKBONES, load_backbone
from modeling_edrl_mea.frames import BACKBONE_TYPES, receptive_field, samples_per_frame
from tests.conftest import EMOTIONS, inputs_of, noise_recordings
from tests.support.encoders import ENCODERS, hidden_states_of_stock, write_checkpoint
from train.data.embeddings import EmbeddingCache, fingerprint_of

every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folders = {}

    def folder_of(name):
        if name not in folders:
            folders[name] = write_checkpoint(name, tmp_path_factory.mktemp("checkpoint"))
        return folders[name]

    return folder_of


@pytest.fixture
def model(checkpoint, encoder):
    return EdrlMeaForAudioClassification.from_backbone(checkpoint(encoder), EMOTIONS, arrangement="linear").eval()


def scores(model, recordings) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(model, recordings)).logits


def close(first, second, tolerance=1e-4):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


def test_every_type_that_a_config_may_name_has_its_backbone():
    assert set(BACKBONES) == set(BACKBONE_TYPES)


@every_encoder
def test_hidden_states_are_those_of_transformers(model, encoder):
    recording = noise_recordings(1, seconds=1)[0][:14_400]
    with torch.no_grad():
        output = model.backbone(inputs_of(model, [recording])["input_values"])
    expected = hidden_states_of_stock(encoder, recording)
    n_frames = output.frame_mask.shape[1]
    assert output.frame_mask.all() and n_frames in (expected[0].shape[1], 14_400 // 320)
    assert len(output.hidden_states) == len(expected) == model.config.n_layers
    for got, wanted in zip(output.hidden_states, expected, strict=True):
        close(got, wanted[:, :n_frames], 1e-3)


@every_encoder
@pytest.mark.parametrize("way", ["inference", "training"])
def test_scores_are_the_same_alone_and_in_a_batch(model, way):
    recordings = [recording[: 6000 - 1111 * i] for i, recording in enumerate(noise_recordings(4))]
    with torch.set_grad_enabled(way == "training"):
        together = model(**inputs_of(model, recordings)).logits
        reverse = model(**inputs_of(model, recordings[::-1])).logits.flip(0)
        alone = torch.cat([model(**inputs_of(model, [recording])).logits for recording in recordings])
    close(together, alone)
    close(reverse, alone)


@every_encoder
def test_the_shortest_recording_gives_one_frame(model):
    config = model.config.backbone_config
    output = model.backbone(torch.randn(1, receptive_field(config)))
    assert output.frame_mask.shape == (1, 1)
    assert all(states.isfinite().all() for states in output.hidden_states)
    with pytest.raises(ValueError, match="less than one frame"):
        model.backbone(torch.randn(1, receptive_field(config) - 1))
    assert scores(model, [np.zeros(1, np.float32)]).isfinite().all()


@every_encoder
def test_long_audio_goes_through_in_windows(checkpoint, encoder):
    settings = {"arrangement": "linear", "max_window_seconds": 1.0, "window_overlap_seconds": 0.2}
    model = EdrlMeaForAudioClassification.from_backbone(checkpoint(encoder), EMOTIONS, **settings).eval()
    long, short = noise_recordings(2, seconds=5)
    together = scores(model, [long, short[:5000]])
    assert together.isfinite().all()
    close(together, torch.cat([scores(model, [long]), scores(model, [short[:5000]])]))


@every_encoder
def test_streaming_scores_what_the_recording_cut_there_would(model):
    recording = np.concatenate(noise_recordings(4, seconds=0.5))
    stream = model.stream_timeline(window_s=0.6, hop_s=0.4)
    for start in range(0, len(recording), 777):
        stream.push(recording[start : start + 777])
    stream.finish()
    first = stream.timeline[0]
    expected = scores(model, [recording[: int(0.6 * 16_000)]]).softmax(-1)[0]
    close(torch.tensor(list(first.scores.values())), expected, 1e-5)
    assert samples_per_frame(model.config.backbone_config) == 320


@every_encoder
def test_what_is_saved_loads_whole_and_works_in_a_pipeline(model, encoder, tmp_path):
    recording = noise_recordings(1)[0]
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["backbone_config"]
    assert stored["model_type"] == model.config.backbone_config.model_type
    again, report = EdrlMeaForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(again.config.backbone_config) is type(model.config.backbone_config)
    expected = scores(model, [recording]).softmax(-1)[0]
    close(scores(again.eval(), [recording]).softmax(-1)[0], expected, 1e-6)
    answers = pipeline("audio-classification", model=str(tmp_path))(recording)
    found = {answer["label"]: answer["score"] for answer in answers}
    close(torch.tensor([found[label] for label in model.config.labels]), expected, 1e-5)


def test_every_encoder_loads_by_the_code_beside_its_weights(checkpoint, tmp_path):
    """`trust_remote_code`, where this package is not installed."""
    recording, expected = noise_recordings(1)[0], {}
    for encoder in ENCODERS:
        model = EdrlMeaForAudioClassification.from_backbone(checkpoint(encoder), EMOTIONS, arrangement="linear").eval()
        model.save_pretrained(tmp_path / encoder)
        expected[encoder] = scores(model, [recording])[0].tolist()
    np.save(tmp_path / "recording.npy", recording)
    script = (
        "import json, sys, numpy, torch\n"
        "from transformers import AutoFeatureExtractor, AutoModelForAudioClassification\n"
        "found, recording = {}, numpy.load('recording.npy')\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    extract = AutoFeatureExtractor.from_pretrained('./' + name, trust_remote_code=True)\n"
        "    model = AutoModelForAudioClassification.from_pretrained('./' + name, trust_remote_code=True).eval()\n"
        "    inputs = extract(recording, sampling_rate=16_000, return_tensors='pt')\n"
        "    found[name] = model(**inputs).logits[0].tolist()\n"
        "assert 'modeling_edrl_mea' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, json.dumps(list(ENCODERS))]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    for encoder, found in json.loads(answer.stdout.splitlines()[-1]).items():
        assert found == pytest.approx(expected[encoder], abs=1e-4), encoder


@every_encoder
def test_cached_embeddings_belong_to_their_encoder(model, tmp_path):
    recordings = [{"path": f"{i}", "array": r, "sampling_rate": 16_000} for i, r in enumerate(noise_recordings(3))]
    before = fingerprint_of(model)
    statistics = model.embed_recordings(recordings)
    assert statistics.shape == (3, model.config.n_layers, model.config.statistics_size)
    assert EmbeddingCache(model, tmp_path).folder.name == before
    with torch.no_grad():
        next(model.backbone.layers[-1].parameters()).add_(1)
    assert fingerprint_of(model) != before


@every_encoder
def test_the_backbone_freezes_as_far_as_it_is_told(model):
    backbone = model.backbone
    model.freeze_feature_encoder()
    assert all(parameter.requires_grad for parameter in backbone.layers.parameters())
    first = next(parameter for name, parameter in backbone.named_parameters() if "conv" in name or "projection" in name)
    assert not first.requires_grad
    model.freeze_backbone(keep_last_n_layers=1)
    learning = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for parameter in backbone.layers[-1].parameters()}
    with pytest.raises(ValueError, match="2 transformer layers"):
        model.freeze_backbone(keep_last_n_layers=3)
    model.freeze_backbone()
    assert model.is_backbone_frozen and not model.train().backbone.training


@every_encoder
def test_gradients_reach_every_layer(model):
    model.train()
    batch = inputs_of(model, [recording[: 6000 - 900 * i] for i, recording in enumerate(noise_recordings(3))])
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    for layer in model.backbone.layers:
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


@every_encoder
def test_attention_weights_change_no_hidden_state(model):
    batch = inputs_of(model, [recording[: 6000 - 900 * i] for i, recording in enumerate(noise_recordings(2))])
    with torch.no_grad():
        plain, output = model.backbone(**batch), model.backbone(**batch, output_attentions=True)
    for first, second in zip(plain.hidden_states, output.hidden_states, strict=True):
        close(first[plain.frame_mask], second[plain.frame_mask], 1e-5)
    n_frames = plain.frame_mask.shape[1]
    heads = model.config.backbone_config.num_attention_heads
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, heads, n_frames, n_frames)] * 2


@every_encoder
def test_half_precision_stays_near(model):
    recordings = noise_recordings(2)
    expected = model.embed_recordings(recordings)
    found = model.to(torch.bfloat16).embed_recordings(recordings)
    assert (found - expected).norm() < 0.06 * expected.norm()


@every_encoder
def test_lora_trains_and_merges(model, encoder):
    peft = pytest.importorskip("peft")
    targets = ["linear_q", "linear_v"] if encoder in ("Wav2Vec2-BERT", "Wav2Vec2-Conformer") else ["q_proj", "v_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    batch = inputs_of(model, [recording[: 6000 - 900 * i] for i, recording in enumerate(noise_recordings(2))])
    adapted.eval()(**batch, labels=torch.tensor([0, 1])).loss.backward()  # training may drop a layer
    assert all(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if "lora_A" in n)
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        close(adapted.merge_and_unload()(**batch).logits, expected)


# What belongs to single encoders


def test_a_float16_checkpoint_loads_in_float32(tmp_path):
    folder = write_checkpoint("Whisper", tmp_path, torch.float16)
    model = EdrlMeaForAudioClassification.from_backbone(folder, EMOTIONS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("encoder", ["Whisper", "WavLM"])
def test_what_float16_held_is_stored_in_float16_again(encoder, tmp_path):
    folder = write_checkpoint(encoder, tmp_path / "published", torch.float16)
    model = EdrlMeaForAudioClassification.from_backbone(folder, EMOTIONS, arrangement="linear").eval()
    model.save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    halves = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert halves == {name for name in stored if ".backbone." in name}
    again = EdrlMeaForAudioClassification.from_pretrained(tmp_path / "half").eval()
    assert again.dtype == torch.float32
    recording = noise_recordings(1)
    close(scores(again, recording), scores(model, recording), 1e-6)
    with torch.no_grad():
        next(again.backbone.layers[-1].parameters()).mul_(1 + 1e-6)  # a backbone that learned
    again.save_pretrained(tmp_path / "whole")
    assert {value.dtype for value in load_file(tmp_path / "whole" / "model.safetensors").values()} == {torch.float32}


def test_whisper_takes_its_encoder_alone(checkpoint):
    backbone = load_backbone(checkpoint("Whisper"))
    assert not any("decoder" in name for name in backbone.state_dict())


def test_whisper_refuses_windows_longer_than_its_own(checkpoint):
    with pytest.raises(ValueError, match="max_window_seconds=30.*at most 29.5 s"):
        EdrlMeaForAudioClassification.from_backbone(checkpoint("Whisper"), EMOTIONS, max_window_seconds=30)
    with pytest.raises(ValueError, match="more than this Whisper's window"):
        load_backbone(checkpoint("Whisper"))(torch.zeros(1, 472_001))


def test_whisper_with_another_spectrogram_is_refused(checkpoint, tmp_path):
    folder = write_checkpoint("Whisper", tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"hop_length": 320}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="hop_length=320; only 160"):
        EdrlMeaForAudioClassification.from_backbone(folder, EMOTIONS)


def test_loudness_of_the_others_in_a_batch_does_not_matter(checkpoint):
    """Whisper's spectrogram ends so far under the loudest of the recording, not of the batch."""
    model = EdrlMeaForAudioClassification.from_backbone(checkpoint("Whisper"), EMOTIONS, arrangement="linear").eval()
    loud, faint = noise_recordings(2)
    with torch.enable_grad():
        together = model(**inputs_of(model, [loud, 1e-3 * faint[:5000]])).logits[1]
    close(together, scores(model, [1e-3 * faint[:5000]])[0])


def test_another_architecture_is_refused_by_name(tmp_path):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="bert model; the backbone must be one of.*wavlm"):
        EdrlMeaForAudioClassification.from_backbone(tmp_path, EMOTIONS)
    with pytest.raises(ValueError, match="'bert' is not one of"):
        EdrlMeaConfig(backbone_config=BertConfig())


def test_a_checkpoint_without_its_encoder_is_refused(checkpoint, tmp_path):
    folder = write_checkpoint("HuBERT", tmp_path)
    weights = load_file(folder / "model.safetensors")
    part = {name: value for name, value in weights.items() if "layers.1" not in name}
    save_file(part, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no whole hubert checkpoint"):
        EdrlMeaForAudioClassification.from_backbone(folder, EMOTIONS)


@pytest.mark.slow
def test_a_published_whisper_hears_as_transformers_does(shared_data):
    folder = shared_data.parent / "teacher" / "whisper-tiny.en"
    if not folder.is_dir():
        pytest.skip("needs whisper-tiny.en, which is not part of the project")
    from transformers import AutoModel, WhisperFeatureExtractor

    model = EdrlMeaForAudioClassification.from_backbone(folder, EMOTIONS, arrangement="linear").eval()
    encoder = AutoModel.from_pretrained(folder, dtype="float32").encoder.eval()
    recording = np.concatenate(noise_recordings(80))[: int(29.5 * 16_000)]  # with the silence behind, a whole window
    features = WhisperFeatureExtractor.from_pretrained(folder)(recording, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(features["input_features"]).last_hidden_state
        found = model.backbone(torch.from_numpy(recording)[None]).hidden_states[-1]
    close(found, expected[:, : found.shape[1]], 1e-3)
