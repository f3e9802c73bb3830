"""Datasets of the Hub become recordings on disk in one pass that holds none of them in memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Features, Value

from tests.support.corpus_folders import labels_of, load, touch
from tests.support.hub_server import Fault, hub_server
from tests.support.tones import EMOTIONS, tone, write_backbone
from train.data import hub as hub_recordings
from train.data.corpora import concatenate_corpora
from train.data.recordings import CorpusError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "recordings"


def wav(waveform, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="WAV", subtype="PCM_16" if waveform.ndim == 1 else "FLOAT")
    return file.getvalue()


def write_shard(path: Path, rows: list[dict], label=None, rows_in_memory: int = 8) -> Path:
    """Rows of audio (bytes, or what `Audio` stores), emotion, speaker, as `push_to_hub` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features(audio=Audio(), emotion=label or Value("string"), speaker_id=Value("int64"))
    named = [{"bytes": r["audio"], "path": f"{i}.wav"} if isinstance(r["audio"], bytes) else r["audio"]
             for i, r in enumerate(rows)]  # fmt: skip
    columns = {"audio": named} | {name: [row[name] for row in rows] for name in ("emotion", "speaker_id")}
    table = pa.table(columns, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=rows_in_memory, compression="none")
    return path


def rows_of(emotions: str, first: int = 0) -> list[dict]:
    return [
        {"audio": wav(np.full(160, 0.01 * i)), "emotion": emotion, "speaker_id": i % 3}
        for i, emotion in enumerate(emotions.split(), start=first)
    ]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "somebody"
    write_shard(folder / "data" / "train-00000-of-00002.parquet", rows_of("angry sad happy"))
    write_shard(folder / "data" / "train-00001-of-00002.parquet", rows_of("sad bored", first=3))
    write_shard(folder / "data" / "test-00000-of-00001.parquet", rows_of("neutral angry", first=5))
    return folder


def test_every_recording_becomes_a_file_with_its_own_bytes(shards, cache):
    dataset = load(shards)
    assert labels_of(dataset) == ["anger", "sadness", "happiness", "sadness", "boredom", "neutral", "anger"]
    assert dataset["speaker"][:] == [f"somebody_{i % 3}" for i in range(7)]
    expected = [row["audio"] for row in rows_of("x " * 7)]
    assert [Path(path).read_bytes() for path in dataset["audio"]] == expected
    assert all(Path(path).is_relative_to(cache) for path in dataset["audio"])


def test_one_split_and_one_label_scheme_can_be_chosen(shards):
    assert labels_of(load(shards, split="test")) == ["neutral", "anger"]
    assert "boredom" not in labels_of(load(shards, label_scheme="four_emotions"))
    with pytest.raises(CorpusError, match="dev"):
        load(shards, split="dev")


def test_what_was_read_once_is_not_streamed_again_until_it_changes(shards, monkeypatch):
    before = load(shards)["audio"][:]
    stream = hub_recordings._stream
    monkeypatch.setattr(hub_recordings, "_stream", lambda *_: pytest.fail("streamed again"))
    assert load(shards)["audio"][:] == before
    monkeypatch.setattr(hub_recordings, "_stream", stream)
    write_shard(shards / "data" / "train-00002-of-00002.parquet", rows_of("angry", first=9))
    assert len(load(shards)) == len(before) + 1


def test_a_stream_that_broke_off_is_no_corpus_and_its_files_are_kept(shards, cache):
    second = shards / "data" / "train-00001-of-00002.parquet"
    whole = second.read_bytes()
    second.write_bytes(whole[:100] + b"\0" * (len(whole) - 200) + whole[-100:])
    with pytest.raises(CorpusError, match="somebody"):
        load(shards)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.wav")}
    assert len(written) == 3 and not list(cache.rglob("*.json"))
    second.write_bytes(whole)
    assert len(load(shards)) == 7
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())


def test_the_same_recordings_are_used_where_the_hub_no_longer_answers(shards, monkeypatch, caplog):
    before = load(shards)["audio"][:]

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub_recordings, "load_dataset_builder", offline)
    assert load(shards)["audio"][:] == before and "no network" in caplog.text
    with pytest.raises(CorpusError, match="no folder or file here, and loading it from the Hub failed: no network"):
        load("somebody/else")


def flipped(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 1]) + content[61:]


@pytest.mark.parametrize("kind", ["*.json", "*.wav"])
@pytest.mark.parametrize("damage", [flipped, lambda content: bytes(len(content)), lambda content: content[:70], None])
def test_what_is_damaged_in_the_cache_is_read_again(shards, cache, kind, damage):
    before = load(shards)
    whole = {Path(path): Path(path).read_bytes() for path in before["audio"]}
    file = sorted(cache.rglob(kind))[-1]
    content = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(damage(content))
    assert load(shards)[:] == before[:]
    assert {path: path.read_bytes() for path in whole} == whole


@pytest.mark.parametrize("kind", ["*.json", "*.wav"])
def test_what_is_damaged_in_the_cache_is_not_used_where_the_hub_no_longer_answers(shards, cache, monkeypatch, kind):
    load(shards)
    for file in cache.rglob(kind):
        file.write_bytes(flipped(file.read_bytes()))

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub_recordings, "load_dataset_builder", offline)
    with pytest.raises(CorpusError, match="no network"):
        load(shards)


def test_rows_without_label_or_recording_are_named(tmp_path):
    names = ClassLabel(names=["anger", "sadness"])
    unlabeled = [row | {"emotion": label} for row, label in zip(rows_of("x x"), (0, -1), strict=True)]
    write_shard(tmp_path / "unlabeled" / "train.parquet", unlabeled, names)
    with pytest.raises(CorpusError, match="row 1 of '.*unlabeled' has no emotion"):
        load(tmp_path / "unlabeled")
    write_shard(tmp_path / "silent" / "train.parquet", [*rows_of("sad"), rows_of("sad")[0] | {"audio": None}])
    with pytest.raises(CorpusError, match="row 1 of '.*silent' has no recording"):
        load(tmp_path / "silent")


def test_class_ids_are_read_by_their_names(tmp_path):
    rows = [row | {"emotion": label} for row, label in zip(rows_of("x x"), (1, 0), strict=True)]
    write_shard(tmp_path / "mine" / "train.parquet", rows, ClassLabel(names=["angry", "sad"]))
    assert labels_of(load(tmp_path / "mine")) == ["sadness", "anger"]


def test_a_recordings_name_leads_nowhere_else(tmp_path, cache):
    names = ("../../evil.wav", "..", "/etc/passwd", "a\\b.wav", None)
    rows = [row | {"audio": {"bytes": row["audio"], "path": name}}
            for row, name in zip(rows_of("sad sad sad sad sad"), names, strict=True)]  # fmt: skip
    write_shard(tmp_path / "mine" / "train.parquet", rows)
    for path in load(tmp_path / "mine")["audio"]:
        assert Path(path).resolve().parent.parent.parent == cache.resolve()


def test_recordings_that_lie_beside_the_shards_are_read_from_there(tmp_path):
    content = rows_of("sad")[0]["audio"]
    (tmp_path / "there.wav").write_bytes(content)
    row = rows_of("sad")[0] | {"audio": {"bytes": None, "path": str(tmp_path / "there.wav")}}
    write_shard(tmp_path / "mine" / "train.parquet", [row])
    assert Path(load(tmp_path / "mine")["audio"][0]).read_bytes() == content


def test_corpora_on_disk_and_from_the_hub_can_be_joined(tmp_path, shards):
    joined = concatenate_corpora([load(touch(tmp_path / "local", "anger/1.wav")), load(shards)])
    assert len(joined) == 8 and set(joined["corpus"]) == {"local", "somebody"}


LOAD = """
import sys
from pathlib import Path
from train.data.corpora import load_corpus
for path in load_corpus("org/emotions", min_class_size=1)["audio"]:
    print(Path(path).read_bytes().hex())
"""


@pytest.mark.slow  # fresh processes, since libraries read the Hub's address when they are imported
def test_a_dataset_is_streamed_from_the_hub_once_and_serves_without_it(tmp_path, shards):
    def read(url: str) -> list[bytes]:
        place = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", LOAD]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return [bytes.fromhex(line) for line in done.stdout.split()]

    expected = [row["audio"] for row in rows_of("x " * 7)]
    with hub_server() as hub:
        hub.create(
            "datasets/org/emotions",
            files={f"data/{path.name}": path.read_bytes() for path in shards.rglob("*.parquet")},
        )
        hub.faults = [Fault("GET .*train-00001.*parquet", "drop", times=1)]  # and goes on after a dropped connection
        assert sorted(read(hub.url)) == sorted(expected)
        assert any("parquet" in request for request in hub.requests)
        hub.requests.clear()
        assert sorted(read(hub.url)) == sorted(expected)
        assert hub.requests and not any("parquet" in request for request in hub.requests)
        gone = hub.url
    assert sorted(read(gone)) == sorted(expected)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="asks the system for a process's peak of memory")
def test_training_on_a_stream_larger_than_memory_takes_bounded_memory(tmp_path, tiny_backbone_config):
    """96 kHz stereo makes much of few recordings; the model takes the same from each."""
    backbone = write_backbone(tmp_path / "backbone", tiny_backbone_config)
    sizes, peaks = {}, {}
    for name, takes in (("small", 2), ("large", 46)):
        for speaker in range(6):
            rows = [
                {"audio": wav(np.repeat(tone(e, speaker, take)[:, None], 2, 1).repeat(8, 0), 96_000),
                 "emotion": e, "speaker_id": speaker}
                for e in EMOTIONS for take in range(takes)
            ]  # fmt: skip
            write_shard(tmp_path / name / f"train-{speaker:05}-of-00006.parquet", rows)
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / name).glob("*")) / 2**20
        command = [
            *(sys.executable, "train/run.py", "--model_name_or_path", backbone, "--dataset_name", tmp_path / name),
            *("--num_train_epochs", "2", "--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True"),
            *("--output_dir", tmp_path / f"{name}-out", "--noisy_copies", "1"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        peaks[name] = usage.ru_maxrss / 2**10
    print(f"MiB of audio {sizes}, MiB of memory at most {peaks}")
    assert sizes["large"] > 350 and peaks["large"] - peaks["small"] < 150
    report = json.loads((tmp_path / "large-out" / "report.json").read_text())
    assert sum(corpus["recordings"] for corpus in report["training"]["corpora"]) > 500


def test_splits_keep_their_names(shards):
    assert list(load(shards)["split"]) == ["train"] * 5 + ["test"] * 2


@pytest.mark.parametrize("kind", ["parquet file", "save_to_disk", "save_to_disk with splits"])
def test_what_datasets_writes_is_read(kind, shards, tmp_path):
    file = shards / "data" / "train-00000-of-00002.parquet"
    saved = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "arrow"))
    place = tmp_path / "saved"
    if kind == "parquet file":
        place = file
    elif kind == "save_to_disk":
        saved.save_to_disk(place)
    else:
        datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(place)
    dataset = load(place)
    assert labels_of(dataset)[:3] == ["anger", "sadness", "happiness"]
    assert Path(dataset["audio"][0]).read_bytes() == rows_of("x")[0]["audio"]
    if "splits" in kind:
        assert list(dataset["split"]) == ["train"] * 3 + ["test"]


def test_shares_of_emotions_count_as_the_largest_and_several_labels_are_refused(tmp_path):
    audio = {"bytes": rows_of("x")[0]["audio"], "path": "0.wav"}
    soft = datasets.Dataset.from_list([{"audio": audio, "emotion": {"anger": 0.2, "fear": 0.8}}])
    soft.cast_column("audio", Audio(decode=False)).save_to_disk(tmp_path / "soft")
    assert labels_of(load(tmp_path / "soft")) == ["fear"]
    several = datasets.Dataset.from_list([{"audio": audio, "emotion": ["anger", "fear"]}])
    several.save_to_disk(tmp_path / "several")
    with pytest.raises(CorpusError, match="give each recording one"):
        load(tmp_path / "several")


def test_the_config_and_revision_asked_for_are_loaded(shards, monkeypatch):
    asked = []
    build = hub_recordings.load_dataset_builder
    monkeypatch.setattr(hub_recordings, "load_dataset_builder", lambda *a, **k: asked.append((a[1:], k)) or build(a[0]))
    load(shards, config_name="german", revision="v2")
    assert asked == [(("german",), {"revision": "v2"})]
