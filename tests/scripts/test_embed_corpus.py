"""Bulk embedding: every recording gets one row, whatever its neighbors are and however often the run is killed."""

import contextlib
import csv
import errno
import http.server
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, load_dataset

from modeling_edrl_mea import EdrlMeaForAudioClassification
from tests.conftest import noise_recordings
from tests.support.tables import in_parallel, tried
from tests.support.voice import vowels

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import embed_corpus  # noqa: E402

from train.corpus_embedding import job, listing, ray_cluster  # noqa: E402
from train.data.recordings import CorpusError  # noqa: E402
from train.run_folder import RunError  # noqa: E402

BAD = {
    "empty.wav": (b"", "does not decode"),
    "random bytes.flac": (np.random.default_rng(0).bytes(3_000), "does not decode"),
    "really text.mp3": (b"this is no audio" * 100, "does not decode"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """30 recordings of 0.1 to 0.9 s in two folders: a synthetic voice in the second one, noise in the first."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(30):
        path = folder / f"speaker {i % 2}" / f"{i:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        seconds = 0.1 + 0.8 * (7 * i % 30) / 30
        sound = vowels(seconds, 110 + i) if i % 2 else noise_recordings(1, seconds, seed=i)[0]
        soundfile.write(path, sound, 16_000, subtype="FLOAT")
    return folder


def embed(model, source, output, *options) -> list[dict]:
    settings = ("--model", model, "--input", source, "--output", output, "--workers", 0, "--device", "cpu")
    status = embed_corpus.main([str(part) for part in (*settings, *options)])
    assert status == (embed_corpus.SOME_FAILED if failures_of(output) else 0)
    return rows_of(output)


def rows_of(output) -> list[dict]:
    return sorted(pq.read_table(f"{output}/shards").to_pylist(), key=lambda row: row["index"])


def failures_of(output) -> dict[str, str]:
    with open(Path(output) / "failed.csv", newline="") as table:
        return {row["path"]: row["reason"] for row in csv.DictReader(table)}


@pytest.fixture(scope="module")
def embedded(model_folder, corpus, tmp_path_factory):
    return embed(model_folder, corpus, tmp_path_factory.mktemp("embedded"), "--shard_size", 7, "--batch_seconds", 2)


def test_each_row_is_what_the_model_says_of_the_recording_alone(model_folder, corpus, embedded):
    model = EdrlMeaForAudioClassification.from_pretrained(model_folder).eval()
    assert {row["path"] for row in embedded} == {str(p.relative_to(corpus)) for p in corpus.rglob("*.wav")}
    assert any(row["label"] for row in embedded[15:]) and not any(row["label"] for row in embedded[:15])
    for row in embedded[::5]:
        waveform, _ = soundfile.read(corpus / row["path"], dtype="float32")
        with torch.no_grad():
            output = model(torch.from_numpy(waveform)[None])
        assert list(row["scores"].values()) == pytest.approx(output.logits.softmax(-1)[0].tolist(), abs=1e-5)
        likeliest = model.config.labels[int(output.logits.argmax())]
        assert row["label"] == (likeliest if row["speech_share"] else None)
        assert row["speech_embedding"] == pytest.approx(output.speech_embedding[0].tolist(), abs=1e-4)
        assert row["aligned_embedding"] == pytest.approx(output.aligned_embedding[0].tolist(), abs=1e-4)
        assert row["seconds"] == pytest.approx(len(waveform) / 16_000)


def test_bad_files_are_listed_with_their_reason_and_the_rest_goes_on(model_folder, corpus, tmp_path):
    source = tmp_path / "corpus"
    source.mkdir()
    for name, (content, _) in BAD.items():
        (source / name).write_bytes(content)
    soundfile.write(source / "nan.wav", np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(source / "long.wav", np.zeros(32_000), 16_000)
    os.link(corpus / "speaker 0" / "00.wav", source / "good.wav")
    os.link(corpus / "speaker 0" / "00.wav", os.fsencode(source) + b"/caf\xe9.wav")  # a name that is no UTF-8
    rows = embed(model_folder, source, tmp_path / "out", "--shard_size", 2, "--max_seconds", 1)
    assert {row["path"] for row in rows} == {"good.wav", "caf\\xe9.wav"}
    failures = failures_of(tmp_path / "out")
    assert set(failures) == {*BAD, "nan.wav", "long.wav"}
    assert "NaN" in failures["nan.wav"] and "max_seconds" in failures["long.wav"]
    assert all(reason in failures[name] for name, (_, reason) in BAD.items())


def test_a_manifest_and_a_data_set_give_the_folders_rows(model_folder, corpus, embedded, tmp_path):
    names = [row["path"] for row in embedded][:6]
    (corpus / "manifest.csv").write_text("path\n" + "\n".join(names) + "\n")
    data_set = Dataset.from_dict({"audio": [str(corpus / name) for name in names]}).cast_column("audio", Audio())
    data_set.save_to_disk(tmp_path / "data set")
    for number, source in enumerate([corpus / "manifest.csv", tmp_path / "data set"]):
        rows = embed(model_folder, source, tmp_path / str(number))
        assert len(rows) == 6
        for row, expected in zip(rows, embedded, strict=False):
            assert Path(row["path"]).name == Path(expected["path"]).name
            assert row["aligned_embedding"] == pytest.approx(expected["aligned_embedding"], abs=1e-5)


@pytest.fixture
def memory(tmp_path):
    """The file system behind memory://, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def rows_at(files, address: str, folder: Path) -> list[dict]:
    files.get(f"{address}/", f"{folder}/", recursive=True)
    return rows_of(folder)


def test_addresses_give_the_folders_rows_and_a_run_there_goes_on(model_folder, corpus, embedded, memory, tmp_path):
    memory.put(f"{corpus}/", "/corpus/", recursive=True)
    memory.pipe({"/corpus/.hidden.wav": b"", "/corpus/text.mp3": b"this is no audio" * 100, "/corpus/a.txt": b""})
    arguments = ["--model", str(model_folder), "--input", "memory://corpus", "--output", "memory://out/put"]
    arguments += ["--workers", "0", "--device", "cpu", "--shard_size", "7", "--batch_seconds", "2"]
    assert embed_corpus.main(arguments) == embed_corpus.SOME_FAILED
    rows = rows_at(memory, "/out/put", tmp_path / "first")
    assert list(failures_of(tmp_path / "first")) == ["text.mp3"]
    assert alike([row for row in rows if row["path"].endswith(".wav")], embedded)
    memory.rm("/out/put/shards/000001.parquet")
    memory.rm("/corpus/text.mp3")
    memory.cp_file("/corpus/speaker 0/00.wav", "/corpus/text.mp3")
    written = memory.modified("/out/put/shards/000000.parquet")
    assert embed_corpus.main(arguments) == 0
    assert memory.modified("/out/put/shards/000000.parquet") == written
    assert alike(rows_at(memory, "/out/put", tmp_path / "second")[:30], rows[:30])
    with pytest.raises(RunError, match="shard_size 7.*another --output"):
        embed_corpus.main([*arguments, "--shard_size", "8"])


def test_an_address_that_holds_something_else_is_refused(model_folder, corpus, memory):
    memory.pipe("/out/precious", b"")
    with pytest.raises(RunError, match="holds something else"):
        embed_corpus.main(["--model", str(model_folder), "--input", str(corpus), "--output", "memory://out"])


def test_recordings_are_fetched_from_the_addresses_of_a_manifest(model_folder, corpus, embedded, tmp_path, served):
    names = [row["path"] for row in embedded][:4]
    lines = [served(corpus) + name.replace(" ", "%20") for name in (*names, "gone.wav")]
    (tmp_path / "list.csv").write_text("\n".join(["path", *lines]) + "\n")
    rows = embed(model_folder, tmp_path / "list.csv", tmp_path / "out")
    assert [row["path"] for row in rows] == lines[:4] and list(failures_of(tmp_path / "out")) == lines[4:]
    assert alike([row | {"path": name} for row, name in zip(rows, names, strict=True)], embedded[:4])


@pytest.fixture
def served():
    """Serves a folder by HTTP; its address."""
    servers = []

    def serve(folder) -> str:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()


def run_in_child(arguments: list[str]) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=embed_corpus.main, args=(arguments,))
    child.start()
    return child


def test_killed_runs_lose_and_double_nothing(model_folder, corpus, embedded, tmp_path):
    output, generator, n_kills = tmp_path / "out", np.random.default_rng(0), 0
    arguments = ["--model", str(model_folder), "--input", str(corpus), "--output", str(output), "--device", "cpu"]
    arguments += ["--shard_size", "2", "--workers", "0", "--batch_seconds", "0.5"]
    finished, deadline = {}, time.monotonic() + 120
    while len(finished) < 15 and time.monotonic() < deadline:
        child = run_in_child(arguments)
        wanted = len(finished) + 4
        while child.is_alive() and len(list(output.glob("receipts/*.json"))) < wanted:
            time.sleep(0.002)
        time.sleep(0.02 * generator.random())
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            n_kills += 1
        child.join()
        shards = [output / "shards" / f"{path.stem}.parquet" for path in output.glob("receipts/*.json")]
        now = {path.name: path.stat().st_mtime_ns for path in shards}
        assert finished.items() <= now.items()  # what is finished is never written again
        finished = now
    rows = embed(model_folder, corpus, output, *arguments[8:])
    assert n_kills >= 2
    assert [row["index"] for row in rows] == list(range(30))
    for row, expected in zip(rows, embedded, strict=True):
        assert row["path"] == expected["path"]
        assert row["aligned_embedding"] == pytest.approx(expected["aligned_embedding"], abs=1e-5)
    assert not list(output.rglob("*.tmp"))


def test_a_run_with_other_settings_is_refused(model_folder, corpus, tmp_path):
    embed(model_folder, corpus, tmp_path, "--shard_size", 20)
    with pytest.raises(RunError, match="shard_size 20.*another --output"):
        embed(model_folder, corpus, tmp_path, "--shard_size", 10)


def test_a_second_run_at_the_same_time_is_refused(model_folder, corpus, tmp_path):
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    hold += "; print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(RunError, match="Another run is writing"):
            embed(model_folder, corpus, tmp_path)
    finally:
        holder.communicate(b"\n")


@pytest.mark.parametrize("options", [("--shard_size", -1), ("--batch_seconds", "nan"), ("--workers", -1)])
def test_impossible_numbers_are_refused_before_any_work(corpus, tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        embed("no model", corpus, tmp_path, *options)
    assert re.search(f"{options[0]} .*or more", capsys.readouterr().err)


def test_a_cluster_without_ray_is_refused_before_any_work(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embed_corpus, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        embed("no model", corpus, tmp_path, "--engine", "ray")
    assert "pip install -e '.[ray]'" in capsys.readouterr().err


def test_a_disk_without_the_room_is_told_of_before_any_work(model_folder, corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"30 rows take \d+ MB, and 0 MB are free"):
        embed(model_folder, corpus, tmp_path / "out")
    assert not list((tmp_path / "out" / "shards").iterdir())


def test_new_files_are_left_for_another_output(model_folder, corpus, tmp_path, capsys):
    source = tmp_path / "corpus"
    source.mkdir()
    os.link(corpus / "speaker 0" / "00.wav", source / "b.wav")
    assert len(embed(model_folder, source, tmp_path / "out")) == 1
    os.link(corpus / "speaker 0" / "02.wav", source / "a.wav")
    (row,) = embed(model_folder, source, tmp_path / "out")
    assert row["path"] == "b.wav" and "2 recordings now, 1 when" in capsys.readouterr().out


def test_the_shards_are_a_data_set(model_folder, corpus, tmp_path):
    rows = embed(model_folder, corpus, tmp_path / "out", "--shard_size", 20)
    shards, cache = str(tmp_path / "out" / "shards" / "*.parquet"), str(tmp_path / "cache")
    assert list(load_dataset("parquet", data_files=shards, split="train", cache_dir=cache)) == rows


def test_names_of_digits_stay_what_they_are(model_folder, corpus, tmp_path):
    os.link(corpus / "speaker 0" / "00.wav", tmp_path / "001")
    (tmp_path / "manifest.csv").write_text("path\n001\n")
    (row,) = embed(model_folder, tmp_path / "manifest.csv", tmp_path / "out")
    assert row["path"] == "001"


@pytest.fixture
def loaded_once(model_folder, monkeypatch):
    """For tests of many runs on one model. None waits for the disk: what is written outlives a kill without."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    arguments = ["--model", str(model_folder), "--input", "", "--output", ""]
    loaded = job.load_model(embed_corpus.parse_arguments(arguments), "cpu")
    monkeypatch.setattr(job, "load_model", lambda args, device: loaded)


@pytest.fixture
def small(corpus, tmp_path):
    """A folder of six recordings and one that is damaged, to be changed."""
    source = tmp_path / "small"
    source.mkdir()
    for i in range(6):
        os.link(corpus / f"speaker {i % 2}" / f"{i:02d}.wav", source / f"{i}.wav")
    soundfile.write(source / "bad.wav", np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT")
    return source


def alike(rows: list[dict], expected: list[dict]) -> bool:
    """The same recordings in the same order, each with its own embedding."""
    return [row["path"] for row in rows] == [row["path"] for row in expected] and all(
        np.allclose(row["aligned_embedding"], other["aligned_embedding"], atol=1e-5)
        for row, other in zip(rows, expected, strict=True)
    )


def modified(output) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}


def test_what_failed_is_tried_again_and_nothing_else(model_folder, corpus, small, tmp_path):
    before = embed(model_folder, small, tmp_path / "out", "--shard_size", 4)
    written = modified(tmp_path / "out")
    (small / "bad.wav").unlink()
    os.link(corpus / "speaker 0" / "06.wav", small / "bad.wav")
    after = embed(model_folder, small, tmp_path / "out", "--shard_size", 4)
    assert not failures_of(tmp_path / "out")
    assert alike([row for row in after if row["path"] != "bad.wav"], before) and len(after) == 7
    changed = {name for name, when in modified(tmp_path / "out").items() if when != written[name]}
    assert changed == {"000001.parquet"}  # "bad.wav" comes last


def test_failures_count_as_success_where_the_user_says_so(model_folder, small, tmp_path):
    arguments = ["--model", model_folder, "--input", small, "--output", tmp_path / "out", "--workers", 0]
    arguments = [str(part) for part in (*arguments, "--device", "cpu")]
    assert embed_corpus.main(arguments) == embed_corpus.SOME_FAILED
    assert embed_corpus.main([*arguments, "--on_bad_audio", "skip"]) == 0


def test_files_that_swapped_their_names_are_embedded_again(model_folder, small, tmp_path):
    before = embed(model_folder, small, tmp_path / "out")
    (small / "0.wav").rename(small / "aside")
    (small / "1.wav").rename(small / "0.wav")
    (small / "aside").rename(small / "1.wav")
    after = embed(model_folder, small, tmp_path / "out")
    swapped = [before[1] | {"path": "0.wav"}, before[0] | {"path": "1.wav"}, *before[2:]]
    assert alike(after, swapped)


def test_renamed_files_are_told(model_folder, small, tmp_path):
    embed(model_folder, small, tmp_path / "out")
    (small / "0.wav").rename(small / "7.wav")
    with pytest.raises(RunError, match="1 recordings are gone.*0.wav"):
        embed(model_folder, small, tmp_path / "out")
    (small.parent / "list.csv").write_text("path\nsmall/1.wav\n")
    embed(model_folder, small.parent / "list.csv", tmp_path / "other")
    (small / "1.wav").unlink()
    with pytest.raises(RunError, match="its file is gone"):
        embed(model_folder, small.parent / "list.csv", tmp_path / "other")


def test_a_disk_that_goes_during_a_run_stops_it_and_costs_nothing(model_folder, small, tmp_path, monkeypatch):
    expected = embed(model_folder, small, tmp_path / "expected")
    load = listing.load_recording

    def load_until_it_goes(source, rate):
        if source.endswith("3.wav") and small.exists():
            small.rename(tmp_path / "elsewhere")
        return load(source, rate)

    monkeypatch.setattr(listing, "load_recording", load_until_it_goes)
    with pytest.raises(RunError, match="is gone. Once it is back"):
        embed(model_folder, small, tmp_path / "out", "--shard_size", 2)
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(small)
    assert alike(embed(model_folder, small, tmp_path / "out", "--shard_size", 2), expected)


def flip(path: Path, generator) -> None:
    content = bytearray(path.read_bytes())
    content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)


def zero(path: Path, generator) -> None:
    content = bytearray(path.read_bytes())
    start = int(generator.integers(len(content)))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def truncate(path: Path, generator) -> None:
    os.truncate(path, int(generator.integers(path.stat().st_size)))


def remove(path: Path, generator) -> None:
    path.unlink()


def replace_by_foreign(path: Path, generator) -> None:
    """One of another run, or of another kind altogether."""
    kinds = [b"", b"[]", b"{}", b'{"checksum": 1, "content": {}}', b"\xff\xfe", b'{"settings": {}, "checksum": "0"}']
    others = sorted(path.parent.glob(f"*{path.suffix}"))
    content = [*kinds, *(other.read_bytes() for other in others if other != path)]
    path.write_bytes(content[int(generator.integers(len(content)))])


DAMAGE = (flip, zero, truncate, remove, replace_by_foreign)


def damaged(model_folder, small, whole: Path, expected: list[dict], case: tuple) -> str:
    """How a run ends after a damage to a finished one: in the "same rows", "refused", or else what is wrong."""
    number, (path, damage) = case
    output = shutil.copytree(whole, whole.parent / f"out-{number}")
    damage(output / path, np.random.default_rng(number))
    try:
        rows = embed(model_folder, small, output, "--shard_size", 4)
        return "same rows" if alike(rows, expected) else f"other rows after {damage.__name__}({path}), case {number}"
    except RunError as error:
        return "refused" if path.name == "run.json" and "--output" in str(error) else str(error)
    finally:
        shutil.rmtree(output)


def ends_after_damage(model_folder, small, folder: Path, n_rounds: int) -> Counter:
    """Rounds by (kind of file, damage, how it ended)."""
    expected, whole = embed(model_folder, small, folder / "whole", "--shard_size", 4), folder / "whole"
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != ".lock")
    cases = list(enumerate(itertools.product(files, DAMAGE * n_rounds)))
    ended = in_parallel(partial(damaged, model_folder, small, whole, expected), cases)
    return Counter((path.suffix, damage.__name__, end) for (_, (path, damage)), end in zip(cases, ended, strict=True))


def assert_made_good_or_told(ended: Counter) -> None:
    for what, count in sorted(ended.items()):
        print(*what, count)
    assert {end for _, _, end in ended} == {"same rows", "refused"}, ended


def test_damaged_state_is_made_good_or_told(loaded_once, model_folder, small, tmp_path):
    assert_made_good_or_told(ends_after_damage(model_folder, small, tmp_path, n_rounds=1))


@pytest.mark.slow
def test_damaged_state_is_made_good_or_told_in_every_place(loaded_once, model_folder, small, tmp_path):
    assert_made_good_or_told(ends_after_damage(model_folder, small, tmp_path, n_rounds=20))


def test_a_foreign_shard_is_told(model_folder, small, tmp_path):
    embed(model_folder, small, tmp_path / "out")
    shutil.copy(tmp_path / "out" / "shards" / "000000.parquet", tmp_path / "out" / "shards" / "000007.parquet")
    with pytest.raises(RunError, match="000007.parquet, which is not of this run"):
        embed(model_folder, small, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(model_folder, small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(RunError, match="holds something else"):
        embed(model_folder, small, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"precious"


def stop_at(number: int, stop) -> None:
    """Let this process's `number`-th write to the disk (an fsync or a rename) be stopped, before or after it."""
    count = itertools.count()

    def stopping(operation):
        def operate(*arguments, **settings):
            before = next(count) == number
            if before:
                stop()
            done = operation(*arguments, **settings)
            if next(count) == number:
                stop()
            return done

        return operate

    os.fsync, os.replace = stopping(os.fsync), stopping(os.replace)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def run_stopped(arguments: list[str], number: int, stop) -> None:
    stop_at(number, stop)
    try:
        embed_corpus.main(arguments)
    except OSError as error:
        raise SystemExit(str(error)) from error


def number_of_writes(run) -> int:
    """Places at which [`stop_at`] stops it: before and after each write."""
    n_writes = 0

    def counting(operation):
        def operate(*arguments):
            nonlocal n_writes
            n_writes += 1
            return operation(*arguments)

        return operate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counting(os.fsync))
        patch.setattr(os, "replace", counting(os.replace))
        run()
    return 2 * n_writes


def stopped_at_write(model_folder, small, folder: Path, expected: list[dict], case: tuple) -> str:
    """What is wrong after a run was stopped and started again; "" where nothing is."""
    stop, number = case
    output = folder / f"{stop.__name__}-{number}"
    arguments = ["--model", model_folder, "--input", small, "--output", output, "--workers", 0]
    arguments = [str(part) for part in (*arguments, "--device", "cpu", "--shard_size", 4)]
    child = multiprocessing.get_context("fork").Process(target=run_stopped, args=(arguments, number, stop))
    child.start()
    child.join()
    rows = embed(model_folder, small, output, "--shard_size", 4)
    wrong = "not stopped" * (child.exitcode == 0) + "other rows" * (not alike(rows, expected))
    wrong += "unfinished files" * bool(list(output.rglob("*.tmp")))
    shutil.rmtree(output)
    return wrong


def assert_a_stop_at_any_write_costs_nothing(model_folder, small, folder: Path, step: int) -> None:
    """At every `step`-th write."""
    expected = []
    n_writes = number_of_writes(
        lambda: expected.extend(embed(model_folder, small, folder / "whole", "--shard_size", 4))
    )
    cases = list(itertools.product((kill_itself, fill_the_disk), range(step - 1, n_writes, step)))
    tried(partial(stopped_at_write, model_folder, small, folder, expected), cases)


def test_a_stop_at_a_write_costs_nothing(loaded_once, model_folder, small, tmp_path):
    assert_a_stop_at_any_write_costs_nothing(model_folder, small, tmp_path, step=13)


@pytest.mark.slow
def test_a_stop_at_any_write_costs_nothing(loaded_once, model_folder, small, tmp_path):
    assert_a_stop_at_any_write_costs_nothing(model_folder, small, tmp_path, step=1)


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("nowhere", (), "no folder, no manifest"),
        ("empty", (), "holds no audio"),
        ("manifest.csv", ("--audio_column", "sound"), "looked for 'sound'"),
        ("manifest.xlsx", (), "no manifest"),
        ("nothing.csv", (), "lists no recording"),
        ("gap.csv", (), "Row 2 of .* has no path"),
    ],
)
def test_an_impossible_input_is_named_before_any_work(tmp_path, monkeypatch, source, options, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.csv").write_text("wrong\na.wav\n")
    (tmp_path / "manifest.xlsx").write_text("a.wav\n")
    (tmp_path / "nothing.csv").write_text("path\n")
    (tmp_path / "gap.csv").write_text("path,text\na.wav,hm\n,hm\n")
    with pytest.raises((RunError, CorpusError), match=named):
        embed("no model", tmp_path / source, tmp_path / "out", *options)


@pytest.mark.slow
def test_two_processes_and_their_workers_share_the_work_and_survive_a_kill(model_folder, corpus, embedded, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    command += [str(SCRIPTS / "embed_corpus.py"), "--model", str(model_folder), "--input", str(corpus)]
    command += ["--output", str(tmp_path), "--shard_size", "1", "--workers", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("shards/*.parquet"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    n_before = len(list(tmp_path.glob("shards/*.parquet")))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shares = re.findall(r"process \d of \d", done.stdout)  # lines of two processes may run into one another
    assert sorted(shares) == ["process 1 of 2", "process 2 of 2"]
    assert 0 < n_before < 30
    rows = rows_of(tmp_path)
    assert [row["path"] for row in rows] == [row["path"] for row in embedded]
    assert json.loads((tmp_path / "run.json").read_text())["content"]["n_recordings"] == 30


def bytes_of(output) -> dict[str, bytes]:
    """Shards, and receipts of what they hold."""
    return {path.name: path.read_bytes() for path in (*output.glob("shards/*"), *output.glob("receipts/*"))}


def workers_of_this_process() -> list[int]:
    """Processes of Ray's that are at a shard."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found += [int(folder.name)] * (folder / "cmdline").read_bytes().startswith(b"ray::_embed_shard")

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or pid in parents and is_ours(parents[pid])

    return [pid for pid in found if is_ours(pid)]


@pytest.fixture
def many(corpus, tmp_path, monkeypatch):
    """A folder of 120 recordings; Ray says nothing of it to anybody."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = tmp_path / "many"
    source.mkdir()
    for i, path in enumerate(sorted(corpus.rglob("*.wav")) * 4):
        os.link(path, source / f"{i:03d}.wav")
    return source


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def n_receipts(output) -> int:
    return len(list(output.glob("receipts/*.json")))


@pytest.mark.slow
def test_a_cluster_one_of_whose_two_workers_is_killed_gives_the_bytes_of_one_process(model_folder, many, tmp_path):
    ray = pytest.importorskip("ray")
    seen, n_before = set(), []

    def both_are_at_work() -> bool:
        seen.update(workers_of_this_process())
        return len(seen) == 2 and n_receipts(tmp_path / "cluster") >= 3

    def kill_one():
        wait_for(both_are_at_work)
        os.kill(min(seen), signal.SIGKILL)
        n_before.append(n_receipts(tmp_path / "cluster"))

    ray.init("local", num_cpus=2, include_dashboard=False)
    killer = threading.Thread(target=kill_one)
    try:
        killer.start()
        embed(model_folder, many, tmp_path / "cluster", "--shard_size", 3, "--engine", "ray")
        killer.join()
        given = {"input": str(tmp_path / "nowhere"), "split": "train", "audio_column": "audio", "device": "cpu"}
        with pytest.raises(RunError, match="no folder, no manifest"):  # what is wrong there is said here
            ray_cluster._result(ray.remote(ray_cluster._embed_shard).remote(json.dumps(given), 0, []), 0)
    finally:
        ray.shutdown()
    assert len(seen) == 2 and 3 <= n_before[0] < 40
    assert len(embed(model_folder, many, tmp_path / "alone", "--shard_size", 3)) == 120
    assert bytes_of(tmp_path / "cluster") == bytes_of(tmp_path / "alone")


@pytest.mark.slow
def test_a_run_on_a_cluster_goes_on_after_a_kill(model_folder, many, tmp_path):
    pytest.importorskip("ray")
    output = tmp_path / "cluster"
    command = [sys.executable, SCRIPTS / "embed_corpus.py", "--model", model_folder, "--input", many]
    command += ["--output", output, "--shard_size", 3, "--workers", 0, "--device", "cpu", "--engine", "ray"]
    command = [str(part) for part in command]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: n_receipts(output) >= 3)
    first.kill()
    first.wait()
    n_before = n_receipts(output)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 3 <= n_before < 40 and "120 rows in 40 shards" in done.stdout
    embed(model_folder, many, tmp_path / "alone", "--shard_size", 3)
    assert bytes_of(output) == bytes_of(tmp_path / "alone")
