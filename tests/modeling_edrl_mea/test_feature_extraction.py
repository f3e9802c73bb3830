"""Recordings in: every usual form is understood, and what cannot be a recording is named."""

import io
import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from modeling_edrl_mea import EdrlMeaFeatureExtractor, RecordingError, load_recording

RATE = 16_000


def tone(rate: float = RATE, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.fixture(scope="module")
def extract():
    extractor = EdrlMeaFeatureExtractor()
    return lambda recording, rate=RATE: extractor(recording, sampling_rate=rate, return_tensors="np")


def only(batch) -> np.ndarray:
    assert batch["input_values"].shape[0] == 1
    return batch["input_values"][0]


@pytest.mark.parametrize(
    ("recording", "named"),
    [
        (np.array([]), "zero length"),
        ([], "zero length"),
        (np.zeros((2, 0)), "zero length"),
        (np.array([0.1, np.nan] * 400), "NaN or infinite"),
        (np.array([0.1, np.inf] * 400), "NaN or infinite"),
        (np.array([0.1, -np.inf] * 400, np.float16), "NaN or infinite"),
        ("angry.wav", "type <U"),
        (np.array(["a", "b"]), "type <U"),
        (np.array([0.1, None]), "type object"),
        (np.array([{}], dtype=object), "type object"),
        (np.zeros(800, complex), "type complex"),
        (np.zeros(800, bool), "type bool"),
        (np.zeros((20, 20, 20)), "shape"),
        (np.float32(0.5), "shape"),
        (None, "type object"),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_what_is_no_recording_is_named(extract, recording, named):
    with pytest.raises(RecordingError, match=rf"recording 0.*{named}"):
        extract(recording)


def test_a_bad_recording_in_a_batch_is_named_by_its_place(extract):
    with pytest.raises(RecordingError, match="recording 1.*NaN"):
        extract([tone(), np.full(800, np.nan), tone()])


@pytest.mark.parametrize("rate", [0, -8000, 16, float("nan")])
def test_an_impossible_sampling_rate_is_named(extract, rate):
    with pytest.raises(RecordingError, match="Hz"):
        extract(tone(), rate)


def test_a_batch_of_none_is_named(extract):
    with pytest.raises(RecordingError, match="no recordings"):
        extract(np.zeros((0, 800)))


def test_a_ragged_recording_is_named():
    with pytest.raises(RecordingError, match="not an array"):
        load_recording([[0.1, 0.2], [0.3]])


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_414.0625, 44_100, 48_000])
def test_other_sampling_rates_give_the_same_tone(extract, rate):
    converted = only(extract(tone(rate), rate))
    expected = tone()
    assert abs(len(converted) - len(expected)) <= 1
    inner = slice(800, 7000)  # a filter has no past at the start and no future at the end
    assert np.abs(converted[inner] - expected[inner]).max() < 0.01


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint16])
def test_integers_are_scaled_by_their_type(extract, dtype):
    limits = np.iinfo(dtype)
    middle = 0 if limits.min < 0 else limits.max / 2
    steps = min(limits.max / 2, 2**31)
    stored = np.round(tone() * (limits.max - middle) + middle).astype(dtype)
    assert np.abs(only(extract(stored)) - tone()).max() < 2 / steps + 1e-6


def test_floats_beyond_full_scale_are_scaled_down(extract):
    assert np.abs(only(extract(tone() * 32_768)) - 2 * tone()).max() < 1e-3
    overshoot = 3 * tone()  # clipping, not integers: left as it is
    np.testing.assert_array_equal(only(extract(overshoot)), overshoot)


@pytest.mark.parametrize("huge", [1e30, 1e308])
def test_huge_floats_stay_finite(extract, huge):
    for recording in (np.full(800, huge), [np.full((800, 2), huge)]):
        assert np.isfinite(only(extract(recording))).all()


def test_channels_are_mixed_either_way_round(extract):
    stereo = np.stack([tone(), np.zeros_like(tone())])
    np.testing.assert_allclose(only(extract(stereo.T)), tone() / 2)
    np.testing.assert_allclose(only(extract([stereo])), tone() / 2)
    np.testing.assert_allclose(only(extract([stereo.T])), tone() / 2)
    np.testing.assert_allclose(load_recording(stereo), tone() / 2)


def test_rows_of_an_array_are_a_batch(extract):
    assert extract(np.stack([tone()] * 3))["input_values"].shape == (3, len(tone()))


@pytest.mark.parametrize("form", [list, torch.from_numpy, lambda array: array.astype(np.float64)])
def test_lists_and_tensors_are_recordings_too(extract, form):
    np.testing.assert_array_equal(only(extract(form(tone()))), tone())


@pytest.mark.parametrize("length", [1, 399, 400, 401])
def test_clips_shorter_than_one_frame_are_padded_with_silence(extract, length):
    recording = tone()[100 : 100 + length]
    batch = extract(recording)
    prepared = only(batch)
    assert len(prepared) == max(400, length) == batch["attention_mask"].sum()
    np.testing.assert_array_equal(prepared[:length], recording)
    assert not prepared[length:].any()


def test_the_mask_marks_each_recordings_own_samples(extract):
    batch = extract([tone(seconds=0.1), tone(seconds=0.3)])
    assert batch["attention_mask"].sum(1).tolist() == [1600, 4800]
    assert not batch["input_values"][0, 1600:].any()
    assert batch["input_values"].dtype == np.float32


def test_normalized_recordings_have_zero_mean_and_unit_variance():
    extractor = EdrlMeaFeatureExtractor(do_normalize=True)
    batch = extractor([3 * tone(seconds=0.1) + 1, tone()], sampling_rate=RATE, return_tensors="np")
    for row, length in zip(batch["input_values"], (1600, 8000), strict=True):
        assert abs(row[:length].mean()) < 1e-4 and abs(row[:length].var() - 1) < 1e-3
    silence = extractor(np.zeros(800), sampling_rate=RATE, return_tensors="np")["input_values"]
    assert not silence.any()


NUMBERS = numpy_strategies.arrays(
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i2", "i4", "u4", "i8", "u8"]),
    shape=numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=30),
)


@settings(deadline=None, max_examples=150)
@given(
    recording=NUMBERS,
    rate=st.one_of(st.sampled_from([8_000, 16_000, 24_414.0625, 48_000]), st.floats(1, 200_000)),
    do_normalize=st.booleans(),
)
def test_any_array_gives_finite_samples_or_a_recording_error(recording, rate, do_normalize):
    extractor = EdrlMeaFeatureExtractor(do_normalize=do_normalize)
    try:
        batch = extractor(recording, sampling_rate=rate, return_tensors="np")
    except RecordingError:
        return
    values, mask = batch["input_values"], batch["attention_mask"]
    assert np.isfinite(values).all() and values.dtype == np.float32
    assert values.shape == mask.shape and (mask.sum(1) >= 400).all()


# Files


@pytest.mark.parametrize(("suffix", "tolerance"), [("wav", 1e-3), ("flac", 1e-3), ("ogg", 0.1), ("mp3", 0.1)])
def test_files_and_their_bytes_are_the_same_recording(tmp_path, suffix, tolerance):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(), RATE)
    from_path = load_recording(path)
    np.testing.assert_array_equal(load_recording(str(path)), from_path)
    np.testing.assert_array_equal(load_recording(path.read_bytes()), from_path)
    np.testing.assert_array_equal(load_recording({"bytes": None, "path": str(path)}), from_path)
    np.testing.assert_array_equal(load_recording({"bytes": path.read_bytes(), "path": "gone"}), from_path)
    assert from_path.dtype == np.float32
    assert np.abs(from_path[1000:7000] - tone()[1000:7000]).max() < tolerance


def test_a_stereo_file_of_48_khz_is_mixed_and_converted(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(48_000)] * 2, axis=1), 48_000)
    assert np.abs(load_recording(tmp_path / "a.wav")[800:7000] - tone()[800:7000]).max() < 0.01


def test_a_row_of_datasets_is_a_recording():
    row = {"array": tone(8_000).tolist(), "sampling_rate": 8_000, "path": None}
    assert len(load_recording(row)) == len(tone())


def write_nan(path):
    soundfile.write(path, np.full(800, np.nan, np.float32), RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "write", "wrong"),
    [
        ("noise.wav", lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)), "does not decode"),
        ("empty.wav", lambda path: path.write_bytes(b""), "does not decode"),
        ("cut.wav", lambda path: path.write_bytes(b"RIFF\x00\x10"), "does not decode"),
        ("headerless.raw", lambda path: path.write_bytes(bytes(800)), "does not decode"),
        ("silent.wav", lambda path: soundfile.write(path, np.zeros(0), RATE), "zero length"),
        ("nan.wav", write_nan, "NaN or infinite"),
        ("many.wav", lambda path: soundfile.write(path, np.full((800, 9), np.nan), RATE, subtype="FLOAT"), "NaN"),
        ("missing.wav", lambda path: None, "no such file"),
        ("folder.wav", lambda path: path.mkdir(), "and no file"),
        ("pipe.wav", lambda path: os.mkfifo(path), "pipe or device"),
        ("zero.wav", lambda path: path.symlink_to("/dev/zero"), "pipe or device"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, write, wrong):
    write(tmp_path / name)
    with pytest.raises(RecordingError, match=f"{name}.*{wrong}"):
        load_recording(tmp_path / name)


def test_bad_bytes_are_named_as_the_caller_names_them():
    with pytest.raises(RecordingError, match="recording 7: does not decode"):
        load_recording(b"no audio at all", name="recording 7")
    with pytest.raises(RecordingError, match="recording 7 with the keys"):
        load_recording({"bytes": None, "path": None}, name="recording 7")


def test_a_file_in_memory_is_read_exactly():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(load_recording(buffer.getvalue()), tone())


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("container", [np.int32, np.int64, list])
def test_integers_in_a_wider_container_keep_their_own_scale(extract, bits, container):
    stored = np.round(tone() * 2 ** (bits - 1)).astype(np.int64)
    stored = stored.tolist() if container is list else stored.astype(container)
    assert np.abs(only(extract(stored)) - tone()).max() < 2 ** (1 - bits) + 1e-6


def test_24_bits_at_the_top_of_32_keep_the_containers_scale(extract):
    stored = (np.round(tone() / 1000 * 2**23).astype(np.int32)) << 8
    assert np.abs(only(extract(stored)) - tone() / 1000).max() < 1e-6


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("amr", "libopencore_amrnb")])
@pytest.mark.parametrize("form", ["path", "bytes"])
def test_what_soundfile_cannot_read_ffmpeg_does(tmp_path, suffix, codec, form):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg program")
    soundfile.write(tmp_path / "tone.wav", tone(8_000), 8_000)
    path = tmp_path / f"tone.{suffix}"
    encode = ["ffmpeg", "-v", "error", "-i", tmp_path / "tone.wav", "-c:a", codec, path]
    if subprocess.run(encode, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip(f"this ffmpeg does not write {codec}")
    waveform = load_recording(path if form == "path" else path.read_bytes())
    spectrum = np.abs(np.fft.rfft(waveform))
    assert abs(spectrum.argmax() * RATE / len(waveform) - 440) < 5


def test_without_ffmpeg_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(400))
    with pytest.raises(RecordingError, match="a.m4a: does not decode.*install the ffmpeg program"):
        load_recording(tmp_path / "a.m4a")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="FFmpeg reads what libsndfile gives up")
@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes_and_that_is_said(tmp_path, monkeypatch, form):
    from modeling_edrl_mea import recordings

    said = []
    monkeypatch.setattr(recordings.logger, "warning", said.append)
    noise = np.random.default_rng(0).standard_normal(3 * RATE) / 10
    soundfile.write(tmp_path / "a.flac", noise, RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    found = load_recording(tmp_path / "a.flac" if form == "path" else content[: len(content) // 2])
    assert 0 < len(found) < 2 * RATE
    assert len(said) == 1 and "damaged" in said[0] and "of 3.0 s" in said[0]


def test_a_wav_that_says_it_is_empty_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    content = (tmp_path / "a.wav").read_bytes()
    place = content.index(b"data") + 4
    unfinished = content[:place] + bytes(4) + content[place + 4 :]
    np.testing.assert_array_equal(load_recording(unfinished), load_recording(content))


@pytest.mark.parametrize("channels", [10, 16, 32])
def test_files_of_many_channels_are_mixed(tmp_path, channels):
    soundfile.write(tmp_path / "a.wav", np.stack([tone()] * channels, axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_recording(tmp_path / "a.wav"), tone(), atol=1e-6)


def test_channels_that_cancel_are_warned_of(monkeypatch):
    from modeling_edrl_mea import recordings

    said = []
    monkeypatch.setattr(recordings.logger, "warning", said.append)
    load_recording(np.stack([tone(), -tone()]), name="a.wav")
    load_recording(np.stack([tone(), tone()]), name="b.wav")
    assert len(said) == 1 and "a.wav" in said[0]


def test_rows_of_datasets_scalar_rates_and_generators_are_taken(extract):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format="WAV", subtype="FLOAT")
    for row in ({"bytes": buffer.getvalue(), "path": None}, {"array": tone(), "sampling_rate": np.array(RATE)}):
        np.testing.assert_array_equal(only(extract(row)), tone())
    np.testing.assert_array_equal(only(extract(tone(), torch.tensor(RATE))), tone())
    assert extract(tone() for _ in range(3))["input_values"].shape == (3, len(tone()))
