"""Pretraining: what its batches and targets are, and that a kill costs nothing but time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, WavLMModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import pretrain_backbone as pretraining  # noqa: E402

from modeling_edrl_mea.frames import frame_lengths, receptive_field  # noqa: E402
from train.data import mixtures  # noqa: E402

CONFIG = pretraining.backbone_config()

TINY = dict(
    conv_dim=[16, 16, 16, 16],
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def tone(hz: float, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(int(16000 * seconds)) / 16000).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    speech, noise = tmp_path_factory.mktemp("speech"), tmp_path_factory.mktemp("noise")
    for i in range(6):
        soundfile.write(speech / f"{i}.wav", tone(100 + 40 * i, 0.4 + 0.15 * i), 16000)
    for fold in (1, 4):
        samples = np.random.default_rng(fold).standard_normal(8000) * 0.1
        soundfile.write(noise / f"{fold}-1.wav", samples, 16000)
    return speech, noise


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """Folders of a Whisper and of a WavLM that are tiny and know nothing."""
    whisper, wavlm = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("wavlm")
    sizes = dict(d_model=24, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, max_source_positions=400)
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**sizes, decoder_layers=1, decoder_ffn_dim=8)).save_pretrained(whisper)
    WhisperFeatureExtractor().save_pretrained(whisper)
    config = pretraining.backbone_config(**TINY)
    return {"whisper": str(whisper), "wavlm": str(pretraining.export(config, WavLMModel(config).state_dict(), wavlm))}


def arguments(folders, output, *more) -> list[str]:
    speech, noise = map(str, folders)
    common = ["--speech", speech, "--noise", noise, "--noise_leave_out", "4-", "--batch_size", "2"]
    tiny = ["--sizes", json.dumps(TINY), "--crop_seconds", "1", "--mixed_precision", "no", "--log_every", "1"]
    return [str(output), *common, *tiny, *more]


def stream_of(folders, output, *more) -> mixtures.MixtureStream:
    args = pretraining.parse_arguments(arguments(folders, output, "--steps", "1", *more))
    speech = mixtures.Recordings.build(output / "speech", args.speech, workers=1)
    noise = mixtures.Recordings.build(output / "noise", args.noise, args.noise_leave_out, workers=1)
    return mixtures.MixtureStream(speech, noise, None, args, CONFIG)


@pytest.mark.parametrize("teacher", [None, "whisper"])
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(folders, tmp_path, teacher, teachers):
    taught = ("--teacher", teachers[teacher], "--varied_share", "0.5") if teacher else ()
    budget = ("--steps", "40", "--save_minutes", "0", *taught)
    killed = arguments(folders, tmp_path / "killed", *budget)
    process = subprocess.Popen([sys.executable, SCRIPTS / "pretrain_backbone.py", *killed])
    log, deadline = tmp_path / "killed" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = torch.load(tmp_path / "killed" / "training.pt", weights_only=True)["step"]
    assert 0 < reached < 40
    WavLMModel.from_pretrained(tmp_path / "killed" / "backbone")  # whole, though killed at any moment

    pretraining.main(killed)
    pretraining.main(arguments(folders, tmp_path / "unbroken", "--steps", "40", *taught))
    resumed, unbroken = (
        WavLMModel.from_pretrained(tmp_path / run / "backbone").state_dict() for run in ("killed", "unbroken")
    )
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-5, rtol=1e-4)


def test_padding_does_not_change_the_compact_backbone(tmp_path):
    config = pretraining.backbone_config(**TINY)
    directory = pretraining.export(config, WavLMModel(config).state_dict(), tmp_path)
    model = WavLMModel.from_pretrained(directory).eval()
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    assert extractor.do_normalize and extractor.return_attention_mask
    signals = [tone(150, 0.7), tone(200, 1.3)]
    together = extractor(signals, sampling_rate=16000, padding=True, return_tensors="pt")
    alone = extractor(signals[0], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        padded, short = model(**together).last_hidden_state[0], model(**alone).last_hidden_state[0]
    torch.testing.assert_close(padded[: len(short)], short, atol=1e-5, rtol=1e-4)


def test_the_compact_backbone_is_small_and_steps_20_ms():
    model = WavLMModel(pretraining.backbone_config())
    assert sum(p.numel() for p in model.parameters()) < 6e6
    for samples in (745, 16000, 31999, 48000):
        assert model._get_feat_extract_output_lengths(samples) == frame_lengths(CONFIG, samples)
    assert np.prod(model.config.conv_stride) == pretraining.HOP


def test_a_batch_is_a_function_of_seed_and_step(folders, tmp_path):
    stream = stream_of(folders, tmp_path)
    first, again, other = stream[3], stream[3], stream[4]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["noisy"].numpy(), other["noisy"].numpy())


def test_padding_is_silent_and_never_masked(folders, tmp_path):
    batch = stream_of(folders, tmp_path, "--batch_size", "6")[0]
    assert len(set(batch["lengths"].tolist())) > 1
    for noisy, mask, length in zip(batch["noisy"], batch["mask"], batch["lengths"], strict=True):
        assert (noisy[length:] == 0).all()
        assert not mask[frame_lengths(CONFIG, length) :].any()


def test_opensmile_describes_the_frames_of_each_crop(folders, tmp_path):
    pytest.importorskip("opensmile")
    args = pretraining.parse_arguments(arguments(folders, tmp_path, "--steps", "1", "--batch_size", "6"))
    speech = mixtures.Recordings.build(tmp_path / "speech", args.speech, opensmile=True, workers=1)
    batch = mixtures.MixtureStream(speech, None, pretraining.principal_functionals(speech.functionals), args, CONFIG)[0]
    assert batch["descriptors"].shape == (*batch["mask"].shape, mixtures.N_DESCRIPTORS)
    assert len(batch["functionals"]) == 6
    last = speech.files.index(str(folders[0] / "5.wav"))  # a tone of 300 Hz; the first descriptor is the pitch in Hz
    pitch = speech.descriptors(last, start=3200, count=20)[:, 0]
    assert np.median(pitch) == pytest.approx(300, rel=0.05)


def test_pretraining_starts_from_a_finished_backbone(folders, tmp_path):
    pretraining.main(arguments(folders, tmp_path / "first", "--steps", "2"))
    first = WavLMModel.from_pretrained(tmp_path / "first" / "backbone").state_dict()
    more = ("--steps", "1", "--learning_rate", "0", "--backbone", str(tmp_path / "first" / "backbone"))
    pretraining.main(arguments(folders, tmp_path / "second", *more))
    second = WavLMModel.from_pretrained(tmp_path / "second" / "backbone").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_noise_kept_for_testing_is_not_heard(folders, tmp_path):
    stream = stream_of(folders, tmp_path)
    assert [Path(file).name for file in stream.noise.files] == ["1-1.wav"]


def test_the_pitch_target_is_high_at_the_period_of_a_voice_and_low_off_it():
    targets = pretraining.FrameTargets(CONFIG)
    lags = 1 / torch.logspace(np.log10(60), np.log10(500), 48).flip(0)
    for hz in (120.0, 200.0):
        voice = tone(hz, 0.5) + tone(2 * hz, 0.5) / 2
        frame = targets({"clean": torch.from_numpy(mixtures.normalize(voice))[None]})[0, 10, 80:]
        at_period, off_period = ((lags * hz - periods).abs().argmin() for periods in (1.0, 0.6))
        assert frame[at_period] > 0.8 and frame[off_period] < 0.2


def test_a_file_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    with pytest.raises(ValueError, match="broken.wav: does not decode"):
        mixtures.decode(str(tmp_path / "broken.wav"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no audio files"):
        mixtures.audio_files(str(tmp_path / "nothing"))


def pupils_batch(folders, tmp_path) -> dict:
    return stream_of(folders, tmp_path, "--batch_size", "6", "--noisy_share", "1")[0]


@pytest.mark.parametrize("kind", ["whisper", "wavlm"])
def test_the_teacher_hears_each_clean_recording_alone(folders, tmp_path, teachers, kind):
    batch = pupils_batch(folders, tmp_path)
    teacher = pretraining.Teacher(teachers[kind], CONFIG, "cpu")
    said = teacher.states(batch)
    assert torch.equal(said, teacher.states({**batch, "noisy": torch.randn_like(batch["noisy"])}))
    length = int(batch["lengths"].min())
    row, frames = int(batch["lengths"].argmin()), frame_lengths(CONFIG, length)
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    alone |= {"clean": alone["clean"][:, :length], "mask": alone["mask"][:, :frames]}
    torch.testing.assert_close(said[:, row, :frames], teacher.states(alone)[:, 0], atol=1e-4, rtol=1e-3)


def test_a_click_is_in_the_same_frame_for_teacher_and_pupil(teachers):
    frame, mask = 20, torch.zeros(1, frame_lengths(CONFIG, 16000))
    clean = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    clicked = clean.clone()
    clicked[0, frame * pretraining.HOP + receptive_field(CONFIG) // 2] = 20.0
    for folder in teachers.values():
        teacher = pretraining.Teacher(folder, CONFIG, "cpu")
        with_click, without = (
            teacher.states({"clean": signal, "lengths": torch.tensor([16000]), "mask": mask})[0, 0]
            for signal in (clicked, clean)
        )
        assert int((with_click - without).norm(dim=1).argmax()) == frame


def test_a_teacher_of_another_pace_is_refused(folders, tmp_path):
    config = pretraining.backbone_config(**{**TINY, "conv_stride": [5, 4, 4, 2]})
    slow = pretraining.export(config, WavLMModel(config).state_dict(), tmp_path)
    with pytest.raises(ValueError, match="a frame every 160 samples, the student every 320"):
        pretraining.Teacher(str(slow), CONFIG, "cpu")
