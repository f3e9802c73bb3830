"""The model as a whole: what it returns, saves, trains, and does with long or bad recordings."""

import copy

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMModel

from modeling_edrl_mea import EdrlMeaForAudioClassification, EdrlMeaModel, RecordingError
from tests.conftest import EMOTIONS, every_arrangement, every_state, inputs_of, noise_recordings

LOSSES = {"classification", "intra_class", "reconstruction", "decorrelation", "shared_invariance"}


@pytest.fixture
def recordings():
    return noise_recordings(3, seed=1)


# What it returns


@every_arrangement
def test_outputs_have_the_shapes_that_the_docstring_says(tiny_model, arrangement, recordings):
    model = tiny_model(arrangement, block_size=5, n_components=3)
    output = model(**inputs_of(model, recordings), output_hidden_states=True, output_attentions=True)
    assert output.logits.shape == (3, 4) and output.loss is None and output.losses is None
    assert output.speech_embedding.shape == (3, model.config.speech_embedding_size)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    if "edrl" in arrangement:
        assert output.intra_class_embeddings.shape == (3, 4, 5) and output.shared_embedding.shape == (3, 5)
    else:
        assert output.intra_class_embeddings is None and output.shared_embedding is None
    if "mea" in arrangement:
        assert output.aligned_embedding.shape == (3, 3)
    else:
        assert output.aligned_embedding is None


@every_arrangement
def test_every_loss_term_is_there_and_reaches_the_heads(tiny_model, arrangement, recordings):
    model = tiny_model(arrangement).train()
    output = model(**inputs_of(model, recordings), labels=torch.tensor([0, 1, 2]))
    expected = LOSSES if "edrl" in arrangement else set()
    if model.classifier is not None:
        expected = expected | {"aligned_classification"}
    assert set(output.losses) == expected
    assert all(loss.isfinite() for loss in output.losses.values())
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    output.loss.backward()
    heads = [p for name, p in model.named_parameters() if "disentanglement" in name or "classifier" in name]
    assert heads and all(parameter.grad.isfinite().all() for parameter in heads)


@every_arrangement
def test_a_batch_of_one_trains(tiny_model, arrangement):
    model = tiny_model(arrangement).train()
    loss = model(**inputs_of(model, noise_recordings(1)), labels=torch.tensor([3])).loss
    loss.backward()
    assert loss.isfinite()


@every_arrangement
def test_in_evaluation_the_loss_is_the_cross_entropy_of_the_logits(tiny_model, arrangement, recordings):
    model, labels = tiny_model(arrangement), torch.tensor([3, 1, 0])
    output = model(**inputs_of(model, recordings), labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


def test_sample_weights_count_in_the_classifiers_loss(tiny_model, recordings):
    model = tiny_model("linear").train()
    model.freeze_backbone()
    inputs, labels = inputs_of(model, recordings), torch.tensor([0, 1, 2])
    only_first = model(**inputs, labels=labels, sample_weights=torch.tensor([3.0, 0, 0])).loss
    first = {name: values[:1] for name, values in inputs.items()}
    torch.testing.assert_close(only_first, model(**first, labels=labels[:1]).loss, atol=1e-4, rtol=1e-4)


def test_statistics_computed_earlier_stand_in_for_the_waveforms(tiny_model, recordings):
    model = tiny_model("edrl_mea")
    statistics = model.embed_recordings(recordings)
    expected = model(**inputs_of(model, recordings)).logits
    torch.testing.assert_close(model(layer_statistics=statistics).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_stage_says_where_the_logits_come_from(tiny_model, recordings):
    model = tiny_model("edrl_mea", fitted=False)
    inputs = inputs_of(model, recordings)
    output = model(**inputs)
    assert model.stage == "disentanglement" and output.aligned_embedding is None
    torch.testing.assert_close(output.logits, model.edrl_mea(**inputs).logits)
    assert tiny_model("edrl").stage == "disentanglement" and tiny_model("linear").stage == "linear"
    assert tiny_model("edrl_mea").stage == "alignment"


# Saving and loading


@every_state
def test_a_saved_model_comes_back_bit_for_bit(tiny_model, tmp_path, recordings, arrangement, fitted):
    model = tiny_model(arrangement, fitted=fitted)
    model.save_pretrained(tmp_path)
    loaded, report = EdrlMeaForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    inputs = inputs_of(model, recordings)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.stage == model.stage
    if model.alignment is not None:
        assert loaded.alignment.is_fitted == model.alignment.is_fitted == fitted
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    weights = [path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert weights == ["model.safetensors"]


def test_layers_side_by_side_survive_saving(tiny_model, tmp_path, recordings):
    model = tiny_model("linear", layer_combination="concatenate")
    model.save_pretrained(tmp_path)
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path)
    inputs = inputs_of(model, recordings)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_the_model_without_classifier_loads_from_the_same_directory(tiny_model, tmp_path, recordings):
    model = tiny_model("edrl_mea")
    model.save_pretrained(tmp_path)
    bare = EdrlMeaModel.from_pretrained(tmp_path)
    inputs = inputs_of(model, recordings)
    assert torch.equal(bare(**inputs).aligned_embedding, model(**inputs).aligned_embedding)


OTHER_LABELS = [
    {i: f"emotion {i}" for i in range(6)},
    {0: "joy", 1: "fear", 2: "disgust", 3: "calm"},
    {0: "happiness", 1: "anger", 2: "neutral", 3: "sadness"},
]


@pytest.mark.parametrize("others", OTHER_LABELS, ids=["more", "as many", "another order"])
@every_arrangement
def test_another_label_set_initializes_exactly_what_depends_on_it(tiny_model, tmp_path, arrangement, others):
    model = tiny_model(arrangement)
    model.save_pretrained(tmp_path)
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path, id2label=others, ignore_mismatched_sizes=True)
    fresh = EdrlMeaForAudioClassification(copy.deepcopy(loaded.config)).state_dict()
    before, after = model.state_dict(), loaded.state_dict()
    emotions = ("intra_", "score.", "decoder.", "classifier.", "output_adaptation.")
    changed = {name for name in after if name.split("disentanglement.")[-1].startswith(emotions)}
    changed |= {name for name in after if ".alignment." in name}  # the emotions' blocks mean nothing without them
    assert changed
    assert changed >= {name for name in after if before[name].shape != after[name].shape}
    for name, tensor in after.items():
        assert tensor.isfinite().all(), name
        if name not in changed:
            assert torch.equal(tensor, before[name]), name
        elif ".alignment." in name or "output_adaptation." in name or name.endswith("bias"):
            assert torch.equal(tensor, fresh[name]), name
        else:
            bound = fresh[name].abs().max()
            assert 0 < tensor.abs().max() < 1.5 * bound, name
            assert tensor.shape != before[name].shape or not torch.equal(tensor, before[name]), name
    assert loaded.config.labels == list(others.values())
    assert loaded.alignment is None or not loaded.alignment.is_fitted


def test_as_many_other_names_only_rename_unless_told_otherwise(tiny_model, tmp_path, recordings):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    german = {0: "Ärger", 1: "Freude", 2: "neutral", 3: "Trauer"}
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path, id2label=german)
    inputs = inputs_of(model, recordings)
    assert loaded.config.labels == list(german.values())
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_another_label_set_without_permission_is_refused(tiny_model, tmp_path):
    tiny_model("edrl").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        EdrlMeaForAudioClassification.from_pretrained(tmp_path, id2label={0: "calm", 1: "fear"})


# Precision


@pytest.mark.parametrize("way", ["loading", "casting"])
def test_bfloat16_leaves_standardization_and_alignment_exact(tiny_model, tmp_path, recordings, way):
    model = tiny_model("edrl_mea")
    exact = {k: v.clone() for k, v in model.named_buffers() if "alignment" in k or "speech_embedding" in k}
    expected = model(**inputs_of(model, recordings)).logits
    if way == "loading":
        model.save_pretrained(tmp_path)
        model = EdrlMeaForAudioClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        model = model.to(torch.bfloat16)
    buffers = dict(model.named_buffers())
    assert len(exact) > 10
    for name, values in exact.items():
        assert buffers[name].dtype == torch.float32 and torch.equal(buffers[name], values), name
    assert model.backbone.encoder.layers[0].attention.q_proj.weight.dtype == torch.bfloat16
    inputs = inputs_of(model, recordings)
    inputs["input_values"] = inputs["input_values"].bfloat16()
    output = model(**inputs)
    assert output.speech_embedding.dtype == output.aligned_embedding.dtype == torch.float32
    assert output.logits.isfinite().all()
    # bfloat16 keeps 8 bits; two layers, and statistics divided by their small spread, lose a few of them.
    assert (output.logits - expected).abs().max() < 0.3 * expected.std() + 0.3


# Training


def test_gradient_checkpointing_changes_no_gradient(tiny_model, recordings):
    model, gradients = tiny_model("edrl").train(), []
    inputs = inputs_of(model, recordings)
    assert model.supports_gradient_checkpointing
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.backbone.encoder.layers)
        model.zero_grad()
        torch.manual_seed(7)
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("encoder.layers.0" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_freezing_the_feature_encoder_freezes_its_convolutions_only(tiny_model):
    model = tiny_model("edrl")
    every = trainable(model)
    model.freeze_feature_encoder()
    convolutions = {name for name in every if ".feature_extractor." in name}
    assert convolutions and trainable(model) == every - convolutions
    assert not model.is_backbone_frozen


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_freezing_the_backbone_leaves_the_heads_and_its_last_layers(tiny_model, kept):
    model = tiny_model("edrl")
    every = trainable(model)
    model.freeze_backbone(keep_last_n_layers=kept)
    last = tuple(f"edrl_mea.backbone.encoder.layers.{1 - i}." for i in range(kept))
    expected = {name for name in every if ".backbone." not in name or (last and name.startswith(last))}
    assert trainable(model) == expected
    assert model.is_backbone_frozen == (kept == 0)


@pytest.mark.parametrize("kept", [-1, 3])
def test_freezing_more_layers_than_there_are_is_refused(tiny_model, kept):
    with pytest.raises(ValueError, match="2 transformer layers"):
        tiny_model("edrl").freeze_backbone(keep_last_n_layers=kept)


def test_a_frozen_backbone_stays_in_evaluation(tiny_model):
    model = tiny_model("edrl")
    model.freeze_backbone()
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.training and model.edrl_mea.disentanglement.training
    model.freeze_backbone(keep_last_n_layers=1)
    assert model.train().backbone.training


# Around a published backbone


@pytest.mark.parametrize("normalized", [True, False])
def test_a_stock_wavlm_directory_brings_weights_and_normalization(
    tiny_backbone_config, tmp_path, normalized, recordings
):
    stock = WavLMModel(tiny_backbone_config).eval()
    stock.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=normalized).save_pretrained(tmp_path)
    model = EdrlMeaForAudioClassification.from_backbone(tmp_path, id2label=EMOTIONS, arrangement="linear")
    assert model.config.normalize_waveform == model.feature_extractor().do_normalize == normalized
    inputs = inputs_of(model, recordings[:1])
    hidden = model.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, stock(inputs["input_values"]).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_a_backbone_that_does_not_say_how_it_was_trained_is_refused(tiny_backbone_config, tmp_path):
    WavLMModel(tiny_backbone_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="normalize_waveform=True"):
        EdrlMeaForAudioClassification.from_backbone(tmp_path, id2label=EMOTIONS)
    model = EdrlMeaForAudioClassification.from_backbone(tmp_path, id2label=EMOTIONS, normalize_waveform=True)
    assert model.config.normalize_waveform


# Padding and long recordings


def windowed(model, seconds: float = 1.0, overlap: float = 0.4):
    """Overlap of 0.4 s: 10 frames of context on each side of a seam, more than the positional convolution sees."""
    model.config.max_window_seconds, model.config.window_overlap_seconds = seconds, overlap
    return model


@pytest.mark.parametrize("lengths", [(0.2, 0.5, 0.9), (0.3, 1.7, 3.1)], ids=["short", "long"])
@every_arrangement
def test_the_company_in_a_batch_does_not_change_the_logits(tiny_model, arrangement, lengths):
    model = windowed(tiny_model(arrangement))
    recordings = [noise_recordings(1, seconds, seed=i)[0] for i, seconds in enumerate(lengths)]
    together = model(**inputs_of(model, recordings)).logits
    for recording, logits in zip(recordings, together, strict=True):
        alone = model(**inputs_of(model, [recording])).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_more_padding_does_not_change_the_logits(tiny_model, recordings):
    model = windowed(tiny_model("edrl_mea"))
    extract = model.feature_extractor()
    for length in (9_000, 40_000):
        padded = extract(recordings, sampling_rate=16_000, padding="max_length", max_length=length, return_tensors="pt")
        expected = model(**inputs_of(model, recordings)).logits
        torch.testing.assert_close(model(**padded).logits, expected, atol=1e-4, rtol=1e-4)


def test_windows_change_nothing_where_their_context_holds_all_that_a_frame_sees(tiny_model):
    model, recording = tiny_model("linear"), noise_recordings(1, seconds=5)
    with torch.no_grad():
        for layer in model.backbone.encoder.layers:  # attention sees a whole recording: silence it
            layer.attention.out_proj.weight.zero_()
            layer.attention.out_proj.bias.zero_()
    whole = model.embed_recordings(recording)
    torch.testing.assert_close(windowed(model).embed_recordings(recording), whole, atol=1e-5, rtol=1e-5)


def test_windows_of_a_long_recording_change_its_statistics_little(tiny_model):
    model, recording = tiny_model("linear"), noise_recordings(1, seconds=6)
    spread = model.embed_recordings(noise_recordings(8)).std(0).mean()
    whole = model.embed_recordings(recording)
    change = windowed(model, 2.0).embed_recordings(recording) - whole
    # The first layer's input is all convolutions, so that windows hold its context exactly; above it, attention
    # averages over a window of a stationary sound instead of over the whole of it.
    assert change[:, 0].abs().max() < 1e-5
    assert change[:, 1:].abs().mean() < 0.2 * spread


# Bad recordings


@every_state
@pytest.mark.parametrize("amplitude", [0.0, 1e-30, 1e30], ids=["silence", "denormal", "huge"])
def test_scores_are_never_nan(tiny_model, arrangement, fitted, amplitude):
    model = tiny_model(arrangement, fitted=fitted)
    recordings = [amplitude * np.ones(5000), amplitude * np.sin(np.arange(1.0)), amplitude * np.ones(50)]
    assert model(**inputs_of(model, recordings)).logits.isfinite().all()


def test_a_bad_recording_is_named_and_leaves_the_model_as_it_was(tiny_model):
    model = tiny_model("edrl_mea").train()
    good = noise_recordings(1)[0]
    for bad, named in [
        (np.full(800, np.nan), "recording 9: NaN"),
        (b"no audio", "recording 9: does not decode"),
        ("gone.wav", "gone.wav: no such file"),
    ]:
        with pytest.raises(RecordingError, match=named):
            model.embed_recordings([good] * 9 + [bad])
        assert model.training
    for recordings in ([], "a_folder"):
        with pytest.raises(ValueError, match="list of at least one recording"):
            model.embed_recordings(recordings)


# Silence


@every_arrangement
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_no_bias_decides_on_silence(tiny_model, arrangement, normalized, offset):
    model = tiny_model(arrangement, normalize_waveform=normalized)
    dither = 1e-5 * np.random.default_rng(0).standard_normal(16_000)
    speech = noise_recordings(1)[0]
    logits = model(**inputs_of(model, [dither + offset, speech, np.full(8_000, offset)])).logits
    uniform = torch.full((4,), 0.25)
    for row in (0, 2):
        torch.testing.assert_close(logits[row].softmax(-1), uniform)
    assert (logits[1].softmax(-1) - uniform).abs().max() > 1e-4
    torch.testing.assert_close(model(**inputs_of(model, [dither])).logits.softmax(-1), uniform[None])
    assert set(model.predict_timeline(dither)[0].scores.values()) == {0.25}
    faint = (10 ** (-60 / 20)) * speech
    if normalized:
        assert (model(**inputs_of(model, [faint])).logits.softmax(-1) - uniform).abs().max() > 1e-4
