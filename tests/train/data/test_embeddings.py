"""The cache of embeddings on disks that lie, are full, or cannot be written, and under several runs at once."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tones import write_backbone, write_corpus
from train.data import embeddings, files
from train.data.embeddings import CacheError, EmbeddingCache

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("corpora") / "tones", n_speakers=2)
    return sorted(str(path) for path in folder.glob("*.wav"))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(embeddings, "CHUNK", 4)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few KB; `small_disk(options)` mounts it anew, e.g. read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_the_progress_bar_counts_recordings(tmp_path, audio, tiny_model, small_chunks, capsys):
    cache = EmbeddingCache(tiny_model("linear"), tmp_path)
    cache.embed(audio[:6])
    assert "6/6" in capsys.readouterr().err
    cache.embed(audio[:10])  # of which one chunk of four is there already
    assert "6/6" in capsys.readouterr().err
    cache.embed(audio[:10])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut short", "one bit", "longer"])
def test_a_chunk_damaged_anywhere_is_computed_again(tmp_path, audio, tiny_model, damage):
    cache = EmbeddingCache(tiny_model("linear"), tmp_path)
    expected = cache.embed(audio[:2])
    (chunk,) = cache.folder.iterdir()
    whole, rng = chunk.read_bytes(), random.Random(0)
    places = [
        0,
        7,
        20,
        60,
        100,
        127,
        128,
        len(whole) - 4,
        len(whole) - 1,
        *(rng.randrange(len(whole)) for _ in "x" * 10),
    ]
    for place in places:
        content = bytearray(whole)
        if damage == "one bit":
            content[place] ^= 1 << rng.randrange(8)
        elif damage == "cut short" and place != len(whole) - 4:  # there all but the checksum remains
            content = content[:place]
        else:
            content += rng.randbytes(1 + place)
        chunk.write_bytes(content)
        assert torch.equal(cache.embed(audio[:2]), expected), place
        assert chunk.read_bytes() == whole, place


def test_a_chunk_of_another_backbone_is_computed_again(tmp_path, audio, tiny_model):
    cache, other = (
        EmbeddingCache(tiny_model("linear", normalize_waveform=normalized), tmp_path) for normalized in (False, True)
    )
    expected, _ = cache.embed(audio), other.embed(audio)
    (chunk,), (strange,) = (list(held.folder.iterdir()) for held in (cache, other))
    assert chunk.name == strange.name
    chunk.write_bytes(strange.read_bytes())
    assert torch.equal(cache.embed(audio), expected)


def test_processes_that_look_at_different_times_leave_no_chunk_to_the_other(
    tmp_path, audio, tiny_model, small_chunks, monkeypatch
):
    monkeypatch.setattr(embeddings, "gather_object", lambda errors: errors)
    model = tiny_model("linear")
    for rank in (0, 1):
        cache = EmbeddingCache(model, tmp_path, SimpleNamespace(process_index=rank, num_processes=2))
        chunks = cache.chunks(audio)
    assert len(chunks) == 6 and all(chunk.exists() for chunk in chunks)


def test_a_read_only_cache_serves_what_it_holds_and_says_what_it_lacks(audio, tiny_model, small_chunks, small_disk):
    model, folder = tiny_model("linear"), small_disk("size=1m")
    expected = EmbeddingCache(model, folder).embed(audio[:12])
    small_disk("remount,ro")
    cache = EmbeddingCache(model, folder)
    assert torch.equal(cache.embed(audio[:12]), expected)
    with pytest.raises(
        CacheError, match="lacks 3 of 6 parts of the test speech and cannot be written.*embedding_cache"
    ):
        cache.embed(audio, title="test speech")
    with pytest.raises(CacheError, match="Read-only.*--embedding_cache"):
        EmbeddingCache(tiny_model("linear", max_window_seconds=10.0), folder)


def test_a_disk_without_the_room_is_told_of_before_any_work(audio, tiny_model, small_disk, monkeypatch):
    cache = EmbeddingCache(tiny_model("linear"), small_disk("size=12k"))
    monkeypatch.setattr(cache, "_embed_chunk", lambda *_: pytest.fail("some work was done"))
    with pytest.raises(CacheError, match=r"the test speech takes \d+ MB, and \d+ MB are free. Make room"):
        cache.embed(audio, title="test speech")


def test_on_a_full_disk_what_is_cached_is_kept_and_room_is_all_it_needs(
    audio, tiny_model, small_chunks, small_disk, monkeypatch
):
    monkeypatch.setattr(EmbeddingCache, "_check_room", lambda *_: None)  # another program fills it meanwhile
    folder = small_disk("size=12k")
    cache = EmbeddingCache(tiny_model("linear"), folder)
    with pytest.raises(CacheError, match="No space left.*Make room"):
        cache.embed(audio)
    kept = {path: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    assert kept and all(path.suffix == ".npy" for path in kept)
    small_disk("remount,size=1m")
    assert len(cache.embed(audio)) == len(audio)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_statistics_beyond_memory_are_read_from_the_chunks_in_any_order(
    tmp_path, audio, tiny_model, small_chunks, monkeypatch
):
    cache = EmbeddingCache(tiny_model("linear"), tmp_path)
    expected, files = cache.embed(audio[:22]), sorted(cache.folder.iterdir())
    monkeypatch.setattr(embeddings, "HELD_IN_MEMORY", 1000)
    stored = cache.embed(audio[:22])
    assert sorted(cache.folder.iterdir()) == files  # one copy on the disk
    assert stored.shape == expected.shape and torch.equal(stored[21], expected[21])
    assert torch.equal(torch.cat(list(stored.split(5))), expected)
    rows = torch.tensor([20, 3, 3, 0, 19])
    assert torch.equal(stored[rows], expected[rows]) and torch.equal(stored[3:9], expected[3:9])


def test_a_chunk_is_read_whole_once_and_again_when_it_has_changed(tmp_path, audio, tiny_model, monkeypatch):
    expected = EmbeddingCache(tiny_model("linear"), tmp_path).embed(audio[:2])
    monkeypatch.setattr(files, "SETTLED", 0)
    cache = EmbeddingCache(tiny_model("linear"), tmp_path)
    cache.embed(audio[:2])
    (chunk,) = cache.folder.glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_is_whole", lambda path: pytest.fail("read again"))
        patch.setattr(files, "file_hash", lambda path: pytest.fail("hashed again"))
        assert torch.equal(EmbeddingCache(tiny_model("linear"), tmp_path).embed(audio[:2]), expected)
    time.sleep(0.02)  # a tick of the clock that files are stamped by
    with open(chunk, "r+b") as file:
        file.seek(200)
        file.write(b"damage")
    assert torch.equal(cache.embed(audio[:2]), expected)


@pytest.mark.slow
def test_two_runs_that_share_a_cache_at_once_end_as_one_alone(tmp_path, tiny_backbone_config):
    corpus, backbone = write_corpus(tmp_path / "tones", 6), write_backbone(tmp_path / "backbone", tiny_backbone_config)

    def start(name: str, cache: Path) -> subprocess.Popen:
        flags = {
            **{"model_name_or_path": backbone, "dataset_name": corpus, "noisy_copies": 4, "num_train_epochs": 2},
            **{"output_dir": tmp_path / name, "embedding_cache": cache, "use_cpu": True, "disable_tqdm": True},
        }
        given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "train/run.py", *given], cwd=ROOT, env=environment, **pipes)

    def weights_of(name: str, process: subprocess.Popen) -> dict:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
        return load_file(tmp_path / name / "model.safetensors")

    alone = weights_of("alone", start("alone", tmp_path / "own"))
    together = [(name, start(name, tmp_path / "shared")) for name in ("first", "second")]
    for weights in [weights_of(name, process) for name, process in together]:
        assert weights.keys() == alone.keys() and all(weights[name].equal(alone[name]) for name in alone)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / cache).rglob("*.*")} for cache in ("own", "shared")
    ]
    assert contents[0].keys() == contents[1].keys()  # no unfinished file, and nothing computed under two names
    assert all(contents[1][name] == content for name, content in contents[0].items() if name.endswith(".npy"))
