"""Whatever comes in, a finite answer or an error that says what is wrong: no crash, no hang, no NaN score, no leak.

Cases are drawn from seeds: a failure names its seed. A part of them runs by default;
`pytest -m slow -s tests/test_fuzz.py` runs 10,000, with lengths up to 1e7 samples, and prints the answers' kinds and
memory on the way.
"""

import collections
import csv
import ctypes
import faulthandler
import gc
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import pipeline

from modeling_edrl_mea import RecordingError, load_recording
from tests.support.fuzz_cases import SUFFIXES, contents, recording_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import embed_corpus  # noqa: E402

HANG_SECONDS = 900  # after which a test counts as hung, and the process ends with a traceback
LEAK_MIB = 64  # growth over the second half of a surface's cases that counts as a leak
CASES = {"extractor": 4_500, "pipeline": 1_500, "timeline": 2_000, "bulk": 2_000}  # together 10,000
LONG_CASES = 8  # of each surface, of up to 1e7 samples
SHARE_BY_DEFAULT = 0.02


def assert_probabilities(values) -> None:
    values = np.asarray(values, np.float64)
    assert np.isfinite(values).all() and (values >= 0).all()
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-4)


class Surfaces:
    """One method a surface: answers a case and says which kind of answer it was; anything else raises."""

    def __init__(self, model):
        self.model = model
        self.extractors = [
            type(model.feature_extractor())(do_normalize=normalize, minimum_length=400) for normalize in (True, False)
        ]
        self.classify = pipeline("audio-classification", model=model, feature_extractor=model.feature_extractor())

    def extractor(self, seed: int, long: bool = False) -> str:
        recording, rate = recording_of(seed, long)
        try:
            batch = self.extractors[seed % 2](recording, sampling_rate=rate, return_tensors="np")
        except RecordingError as error:
            return explained(error)
        values, mask = batch["input_values"], batch["attention_mask"]
        assert np.isfinite(values).all() and values.dtype == np.float32
        assert values.shape == mask.shape and (mask.sum(1) >= 400).all()
        return "answered"

    def pipeline(self, seed: int, long: bool = False) -> str:
        recording, rate = recording_of(seed, long)
        given = {"array": recording, "sampling_rate": rate} if seed % 3 else recording
        try:
            answer = self.classify(given)
        except RecordingError as error:
            return explained(error)
        except Exception as error:
            # transformers' and torchaudio's own way with what is no (n,) array, before this package sees it
            assert not is_plain(recording, rate), (given, error)
            return f"transformers: {type(error).__name__}"
        answers = answer if answer and isinstance(answer[0], list) else [answer]
        for rows in answers:
            assert_probabilities([row["score"] for row in rows])
        return "answered"

    def timeline(self, seed: int, long: bool = False) -> str:
        recording, rate = recording_of(seed, long)
        generator = np.random.default_rng(seed)
        windows = {"window_s": 5.0, "hop_s": 5.0} if long else {"window_s": 0.5, "hop_s": generator.choice([0.1, 0.5])}
        rate = 16_000 if rate is None else rate
        try:
            timeline = self.model.predict_timeline(recording, rate, **windows)
        except RecordingError as error:
            return explained(error)
        assert_probabilities(timeline.probabilities)
        assert all(np.isfinite([s.start, s.end, s.level_db]).all() and s.start < s.end for s in timeline)
        if isinstance(recording, np.ndarray) and recording.ndim == 1 and not long:
            # One window at once: in batches they differ by rounding.
            timeline = self.model.predict_timeline(recording, rate, batch_size=1, **windows)
            stream, place = self.model.stream_timeline(rate, batch_size=1, **windows), 0
            while place < len(recording):
                size = int(generator.integers(1, 9_000))
                stream.push(recording[place : place + size])
                place += size
            stream.finish()
            assert stream.timeline == timeline
        return "answered"


def is_plain(recording, rate) -> bool:
    """Whether transformers' own code should hand it to ours: (n,) floats, with a whole number of Hz; it converts other
    sampling rates by torchaudio, which has an error of its own for no samples."""
    is_waveform = isinstance(recording, np.ndarray) and recording.ndim == 1 and recording.dtype.char in "fd"
    return is_waveform and type(rate) is int and rate > 0 and (len(recording) > 0 or rate == 16_000)


def explained(error: RecordingError) -> str:
    """The kind of a recording's error, which must name the recording and say something."""
    message = str(error)
    assert len(message) > 25 and ":" in message, message
    return "refused"


def run(surface, seeds, long: bool = False) -> collections.Counter:
    kinds = collections.Counter()
    for seed in seeds:
        try:
            kinds[surface(seed, long)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, long={long}: {type(error).__name__}: {error}") from error
    return kinds


def make_files(folder: Path, seeds) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        generator = np.random.default_rng(seed)
        (folder / f"{seed}{generator.choice(SUFFIXES)}").write_bytes(contents(generator))
    os.mkfifo(folder / "pipe.wav")  # opening it would wait for ever
    (folder / "nowhere.wav").symlink_to(folder / "absent.wav")


def run_bulk(model_folder: Path, folder: Path, seeds) -> collections.Counter:
    """Files through the bulk script, and singly through `load_recording`: each one row, or one reason."""
    make_files(folder / "files", seeds)
    arguments = ["--model", model_folder, "--input", folder / "files", "--output", folder / "out", "--workers", 0]
    embed_corpus.main([str(part) for part in (*arguments, "--device", "cpu", "--shard_size", 100)])
    table = pq.read_table(folder / "out" / "shards")
    with open(folder / "out" / "failed.csv", newline="", encoding="utf-8") as lines:
        failures = {row["path"]: row["reason"] for row in csv.DictReader(lines)}
    paths = table["path"].to_pylist()
    assert sorted([*paths, *failures]) == sorted(path.name for path in (folder / "files").iterdir())
    assert_probabilities([list(row.values()) for row in table["scores"].to_pylist()])
    assert np.isfinite(np.stack(table["speech_embedding"].to_pylist())).all()
    for path, reason in failures.items():
        with pytest.raises(RecordingError):  # an error of ours, not one that the script had to catch
            load_recording(folder / "files" / path)
        assert len(reason) > 10
    return collections.Counter(answered=len(paths), refused=len(failures))


def resident_mib() -> float:
    """Memory in use, once what is free went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("edrl_mea", normalize_waveform=True)


@pytest.fixture(scope="module")
def surfaces(model):
    return Surfaces(model)


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def watchdog():
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", ["extractor", "pipeline", "timeline"])
def test_recordings_in_memory_get_an_answer_or_a_reason(surfaces, name):
    kinds = run(getattr(surfaces, name), range(int(SHARE_BY_DEFAULT * CASES[name])))
    assert kinds["answered"] and kinds["refused"]


def test_files_get_an_answer_or_a_reason(model_folder, tmp_path):
    kinds = run_bulk(model_folder, tmp_path, range(int(SHARE_BY_DEFAULT * CASES["bulk"])))
    assert kinds["answered"] and kinds["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extractor", "pipeline", "timeline"])
def test_thousands_of_recordings_in_memory_leak_nothing(surfaces, name):
    surface, n = getattr(surfaces, name), CASES[name]
    kinds = run(surface, range(LONG_CASES), long=True) + run(surface, range(n // 2))
    before = resident_mib()
    kinds += run(surface, range(n // 2, n))
    after = resident_mib()
    print(f"\n{name}: {dict(kinds)}, {before:.0f} MiB after half of them, {after:.0f} at the end")
    assert after - before < LEAK_MIB


@pytest.mark.slow
def test_thousands_of_files_leak_nothing(model_folder, tmp_path):
    n = CASES["bulk"]
    kinds = run_bulk(model_folder, tmp_path / "first", range(n // 2))
    before = resident_mib()
    kinds += run_bulk(model_folder, tmp_path / "second", range(n // 2, n))
    after = resident_mib()
    print(f"\nbulk: {dict(kinds)}, {before:.0f} MiB after half of them, {after:.0f} at the end")
    assert after - before < LEAK_MIB
