"""A timeline over a recording: each window says what it would alone, and chunks say what the whole says."""

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_edrl_mea import RecordingError
from modeling_edrl_mea.online_adaptation import Adapter
from tests.conftest import EMOTIONS, noise_recordings
from tests.support.voice import vowels

RATE = 16_000
WINDOWS = {"window_s": 0.5, "hop_s": 0.2, "speech_gate": None}  # noise stands for speech here


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("edrl_mea", normalize_waveform=True)


@pytest.fixture(scope="module")
def recording():
    """About 2 s whose loudness and color change."""
    return np.concatenate(noise_recordings(5, 0.4, seed=3))


def alone(model, waveform) -> dict[str, float]:
    inputs = model.feature_extractor()([waveform], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]
    return dict(zip(model.config.labels, probabilities.tolist(), strict=True))


def assert_windows_say_what_they_would_alone(model, timeline, waveform):
    for segment in timeline:
        window = waveform[round(segment.start * RATE) : round(segment.end * RATE)]
        assert segment.scores == pytest.approx(alone(model, window), abs=1e-5)
        assert segment.label == max(segment.scores, key=segment.scores.get)


@pytest.mark.parametrize("arrangement", ["edrl", "edrl_mea", "linear"])
@pytest.mark.parametrize("normalize_waveform", [True, False])
def test_every_window_says_what_it_would_alone(tiny_model, recording, arrangement, normalize_waveform):
    model = tiny_model(arrangement, normalize_waveform=normalize_waveform)
    timeline = model.predict_timeline(recording, RATE, **WINDOWS)
    assert_windows_say_what_they_would_alone(model, timeline, recording)


def test_windows_start_every_hop_and_the_last_one_ends_with_the_recording(model, recording):
    timeline = model.predict_timeline(recording, RATE, **WINDOWS)
    duration = len(recording) / RATE
    starts = [segment.start for segment in timeline]
    np.testing.assert_allclose(starts[:-1], 0.2 * np.arange(len(starts) - 1))
    assert timeline[-1].end == pytest.approx(duration)
    assert all(segment.end - segment.start == pytest.approx(0.5) for segment in timeline)
    assert starts[-1] - starts[-2] <= 0.2


def test_a_recording_that_ends_with_a_window_gets_no_other(model, recording):
    timeline = model.predict_timeline(recording[: int(0.9 * RATE)], RATE, **WINDOWS)
    assert [segment.start for segment in timeline] == pytest.approx([0, 0.2, 0.4])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9_000), min_size=1, max_size=12), st.sampled_from([8_000, 16_000, 22_050]))
def test_chunks_of_any_size_say_what_the_whole_says(model, recording, sizes, rate):
    chosen = WINDOWS | {"batch_size": 1}  # how many windows a chunk completes decides on the last digit
    whole = model.predict_timeline(recording, rate, **chosen)
    stream, taken, segments = model.stream_timeline(rate, **chosen), 0, []
    for size in [*sizes, len(recording)]:
        segments += stream.push(recording[taken : taken + size])
        taken += size
    segments += stream.finish()
    assert stream.timeline == whole and segments == whole.segments


def test_single_samples_say_what_the_whole_says(model, recording):
    short = recording[: RATE // 2 + 7]
    stream = model.stream_timeline(RATE, **WINDOWS)
    for sample in short:
        stream.push([float(sample)])
    stream.finish()
    assert stream.timeline == model.predict_timeline(short, RATE, batch_size=1, **WINDOWS)


def test_windows_in_batches_say_what_they_say_alone(model, recording):
    one, many = (model.predict_timeline(recording, RATE, batch_size=n, **WINDOWS) for n in (1, 4))
    np.testing.assert_allclose(many.probabilities, one.probabilities, atol=1e-5)


def test_another_sampling_rate_is_converted_as_a_whole(model, recording):
    at_44 = soxr.resample(recording, RATE, 44_100)
    timeline = model.predict_timeline(at_44, 44_100, **WINDOWS)
    assert_windows_say_what_they_would_alone(model, timeline, soxr.resample(at_44, 44_100, RATE))


def test_a_file_and_other_forms_of_the_recording_say_the_same(model, recording, tmp_path):
    expected = model.predict_timeline(recording, RATE, **WINDOWS)
    soundfile.write(tmp_path / "a.wav", recording, RATE, subtype="FLOAT")
    stereo = np.stack([recording, recording])
    forms = [tmp_path / "a.wav", {"array": recording, "sampling_rate": RATE}, torch.from_numpy(recording)]
    for form in [*forms, recording.tolist(), stereo, stereo.T]:
        np.testing.assert_allclose(
            model.predict_timeline(form, RATE, **WINDOWS).probabilities, expected.probabilities, atol=1e-5
        )


@pytest.mark.parametrize("length", [1, 399, 400, 7_999])
def test_a_recording_shorter_than_a_window_is_one_segment(model, recording, length):
    (segment,) = model.predict_timeline(recording[:length], RATE, **WINDOWS)
    assert (segment.start, segment.end) == (0, length / RATE)
    assert segment.scores == pytest.approx(alone(model, recording[:length]), abs=1e-5)


def test_silence_gets_finite_scores_and_the_lowest_level(model):
    timeline = model.predict_timeline(np.zeros(RATE), RATE, **WINDOWS)
    assert {segment.level_db for segment in timeline} == {-120.0}
    np.testing.assert_allclose(timeline.probabilities.sum(1), 1, atol=1e-5)
    assert timeline == model.predict_timeline(np.zeros(RATE), RATE, **WINDOWS)


def test_the_level_is_that_of_the_window(model):
    (segment,) = model.predict_timeline(np.full(4_000, 0.1), RATE)
    assert segment.level_db == pytest.approx(-20)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.array([]), "zero length"),
        ([], "zero length"),
        (np.array([0.0] * 20_000 + [np.nan]), r"recording, at 0\.00 s.*NaN or infinite"),
        (np.array([0.0] * 170_000 + [np.inf]), r"recording, at 10\.00 s.*NaN or infinite"),
        (np.zeros((3, 4, 5)), "shape"),
        (np.zeros((20, 20)), "shape"),
        (0.5, "shape"),
        (np.array(["a"]), "type <U"),
        ("no such file.wav", "no such file"),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_what_is_no_recording_is_named(model, bad, named):
    with pytest.raises(RecordingError, match=named):
        model.predict_timeline(bad, RATE, **WINDOWS)


def test_a_bad_chunk_is_not_taken_and_the_stream_goes_on(model, recording):
    stream = model.stream_timeline(RATE, **WINDOWS)
    stream.push(recording[:5_000])
    with pytest.raises(RecordingError, match=r"at 0\.31 s.*NaN"):
        stream.push(np.full(100, np.nan))
    stream.push(recording[5_000:])
    stream.finish()
    assert stream.timeline == model.predict_timeline(recording, RATE, **WINDOWS)
    with pytest.raises(RuntimeError, match="finished"):
        stream.push(recording)


@pytest.mark.parametrize(
    "windows",
    [
        {"window_s": 0.5, "hop_s": 0.6},
        {"window_s": 0.5, "hop_s": 0.0},
        {"window_s": -1.0},
        {"window_s": float("nan")},
        {"window_s": 1, "hop_s": 0.001},
    ],
)
def test_impossible_windows_are_named(model, recording, windows):
    with pytest.raises(ValueError, match="window_s=.*hop_s="):
        model.predict_timeline(recording, RATE, **windows)


@pytest.mark.parametrize("rate", [0, 16, float("nan"), "16000", float("inf")])
def test_an_impossible_sampling_rate_is_named(model, recording, rate):
    with pytest.raises(RecordingError, match="Hz"):
        model.predict_timeline(recording, rate)


def test_a_model_in_training_answers_as_in_evaluation_and_stays_in_training(tiny_model, recording):
    model = tiny_model("edrl_mea")
    expected = model.predict_timeline(recording, RATE, **WINDOWS)
    model.train()
    assert model.predict_timeline(recording, RATE, **WINDOWS) == expected
    assert model.training


def test_a_stream_holds_no_more_than_a_window_of_samples(model):
    stream, largest = model.stream_timeline(RATE, **WINDOWS), 0
    for chunk in noise_recordings(40, 0.3):
        stream.push(chunk)
        largest = max(largest, len(stream.buffer) + sum(map(len, stream.pending)))
    assert largest <= int(0.5 * RATE) + int(0.3 * 1.2 * RATE)
    assert set(stream.timeline[0].scores) == set(EMOTIONS.values())


def test_an_exception_within_push_or_finish_loses_no_window(tiny_model, monkeypatch):
    model = tiny_model("edrl_mea")
    speech = np.concatenate(noise_recordings(12, 0.5))
    expected = model.predict_timeline(speech, window_s=1.0, hop_s=0.5)
    stream = model.stream_timeline(window_s=1.0, hop_s=0.5)

    def fails(*args, **kwargs):
        raise MemoryError

    for act in (lambda: stream.push(speech), stream.finish):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(type(model), "forward", fails)
            act()
    stream.finish()
    assert stream.timeline == expected


def test_a_batch_of_no_windows_is_refused(tiny_model):
    with pytest.raises(ValueError, match="batch_size=-1"):
        tiny_model("linear").stream_timeline(batch_size=-1)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("normalize_waveform", [False, True])
def test_a_window_of_silence_has_no_emotion_and_one_of_faint_sound_has(
    tiny_model, recording, adapted, normalize_waveform
):
    model = tiny_model("linear", normalize_waveform=normalize_waveform)
    faint = 1e-3 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)  # -60 dB
    sound = np.concatenate([recording[:RATE], np.full(RATE, 0.1, np.float32), faint])
    adapter = Adapter(model.config.labels, prior=0.1) if adapted else None
    timeline = model.predict_timeline(sound, RATE, window_s=1, hop_s=1, adapter=adapter, speech_gate=None)
    assert [segment.label is None for segment in timeline] == [False, True, False]
    assert set(timeline[1].scores.values()) == {1 / len(EMOTIONS)}
    assert max(timeline[2].scores.values()) > 1 / len(EMOTIONS)


@pytest.mark.parametrize("gate", ["auto", "energy"])
def test_windows_without_speech_have_no_emotion_and_teach_an_adapter_nothing(tiny_model, gate):
    model = tiny_model("linear")
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    sound = np.concatenate([vowels(1.0), noise, vowels(1.0, 140)])
    windows = {"window_s": 1, "hop_s": 1}
    timeline = model.predict_timeline(sound, RATE, speech_gate=gate, **windows)
    assert [segment.label is None for segment in timeline] == [False, True, False]
    assert [segment.speech_share > 0 for segment in timeline] == [True, False, True]
    ungated = model.predict_timeline(sound, RATE, speech_gate=None, **windows)
    assert [segment.scores for segment in timeline] == [segment.scores for segment in ungated]
    adapter = Adapter(model.config.labels)
    model.predict_timeline(sound, RATE, speech_gate=gate, adapter=adapter, **windows)
    assert len(adapter.logits) == 2


def test_attributes_are_told_over_time_beside_the_emotion_or_alone(tiny_model, recording):
    both = tiny_model("linear", attribute_names=["arousal"])
    alone = tiny_model("linear", problem_type="regression", id2label={0: "arousal"})
    for model in (both, alone):
        timeline = model.predict_timeline(recording, RATE, **WINDOWS)
        cut = recording[: RATE // 2]
        expected = model(**model.feature_extractor()([cut], sampling_rate=RATE, return_tensors="pt")).attributes[0, 0]
        assert timeline[0].attributes == {"arousal": pytest.approx(float(expected.detach()), abs=1e-5)}
        assert (timeline[0].label is None) == (model is alone) == (timeline[0].scores == {})
        assert list(timeline.to_pandas().columns[5:]) == [*([] if model is alone else EMOTIONS.values()), "arousal"]
        assert type(timeline).from_json(timeline.to_json()) == timeline
        timeline.plot().figure.clear()
