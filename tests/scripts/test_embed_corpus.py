"""Bulk embedding: every recording gets one row, whatever its neighbours are and however often the run is killed."""

import csv
import json
import multiprocessing
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
from datasets import Audio, Dataset, load_dataset

from modeling_edrl_mea import EdrlMeaForAudioClassification
from tests.conftest import noise_recordings

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import embed_corpus  # noqa: E402

from train.run_folder import RunError  # noqa: E402

BAD = {
    "empty.wav": (b"", "does not decode"),
    "random bytes.flac": (np.random.default_rng(0).bytes(3_000), "does not decode"),
    "really text.mp3": (b"this is no audio" * 100, "does not decode"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """30 recordings of 0.1 to 0.9 s in two folders."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(30):
        path = folder / f"speaker {i % 2}" / f"{i:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise_recordings(1, 0.1 + 0.8 * (7 * i % 30) / 30, seed=i)[0], 16_000, subtype="FLOAT")
    return folder


def embed(model, source, output, *options) -> list[dict]:
    settings = ("--model", model, "--input", source, "--output", output, "--workers", 0, "--device", "cpu")
    embed_corpus.main([str(part) for part in (*settings, *options)])
    return rows_of(output)


def rows_of(output) -> list[dict]:
    rows = load_dataset("parquet", data_files=f"{output}/shards/*.parquet", split="train", cache_dir=f"{output}/cache")
    return sorted(rows, key=lambda row: row["index"])


def failures_of(output) -> dict[str, str]:
    with open(Path(output) / "failed.csv", newline="") as table:
        return {row["path"]: row["reason"] for row in csv.DictReader(table)}


@pytest.fixture(scope="module")
def embedded(model_folder, corpus, tmp_path_factory):
    return embed(model_folder, corpus, tmp_path_factory.mktemp("embedded"), "--shard_size", 7, "--batch_seconds", 2)


def test_each_row_is_what_the_model_says_of_the_recording_alone(model_folder, corpus, embedded):
    model = EdrlMeaForAudioClassification.from_pretrained(model_folder).eval()
    assert {row["path"] for row in embedded} == {str(p.relative_to(corpus)) for p in corpus.rglob("*.wav")}
    for row in embedded[::5]:
        waveform, _ = soundfile.read(corpus / row["path"], dtype="float32")
        with torch.no_grad():
            output = model(torch.from_numpy(waveform)[None])
        assert list(row["scores"].values()) == pytest.approx(output.logits.softmax(-1)[0].tolist(), abs=1e-5)
        assert row["label"] == model.config.labels[int(output.logits.argmax())]
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


def test_batches_are_of_similar_lengths_and_bounded():
    lengths = np.random.default_rng(0).integers(1, 1_000, 200)
    items = [(i, "", np.zeros(length)) for i, length in enumerate(lengths)]
    made = list(embed_corpus.batches(items, 4_000))
    assert sorted(place for batch in made for place, _, _ in batch) == list(range(200))
    padded = [len(batch) * max(len(waveform) for _, _, waveform in batch) for batch in made]
    assert max(padded) <= 4_000
    assert sum(padded) < 1.15 * lengths.sum()


def test_a_recording_longer_than_a_batch_is_a_batch_of_its_own():
    items = [(0, "", np.zeros(10)), (1, "", np.zeros(9_000)), (2, "", "does not decode")]
    places = [[place for place, _, _ in batch] for batch in embed_corpus.batches(items, 4_000)]
    assert sorted(places) == [[0], [1], [2]]


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
        while child.is_alive() and len(list(output.glob("failed/*.jsonl"))) < wanted:
            time.sleep(0.002)
        time.sleep(0.02 * generator.random())
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            n_kills += 1
        child.join()
        shards = [output / "shards" / f"{path.stem}.parquet" for path in output.glob("failed/*.jsonl")]
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
    tmp_path.joinpath("shards").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
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


def test_a_lost_shard_is_told(model_folder, corpus, tmp_path):
    embed(model_folder, corpus, tmp_path, "--shard_size", 20)
    (tmp_path / "shards" / "000001.parquet").unlink()
    with pytest.raises(RunError, match="20 rows and 0 failures of 30 recordings"):
        embed(model_folder, corpus, tmp_path, "--shard_size", 20)


@pytest.mark.parametrize("options", [("--shard_size", -1), ("--batch_seconds", "nan"), ("--workers", -1)])
def test_impossible_numbers_are_refused_before_any_work(corpus, tmp_path, options):
    with pytest.raises(RunError, match=f"{options[0]} .*or more"):
        embed("no model", corpus, tmp_path, *options)


def test_new_files_are_left_for_another_output(model_folder, corpus, tmp_path, capsys):
    source = tmp_path / "corpus"
    source.mkdir()
    os.link(corpus / "speaker 0" / "00.wav", source / "b.wav")
    assert len(embed(model_folder, source, tmp_path / "out")) == 1
    os.link(corpus / "speaker 0" / "02.wav", source / "a.wav")
    (row,) = embed(model_folder, source, tmp_path / "out")
    assert row["path"] == "b.wav" and "2 recordings now, 1 when" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("nowhere", (), "no folder, no manifest"),
        ("empty", (), "holds no audio"),
        ("manifest.csv", ("--audio_column", "sound"), "no column 'sound'"),
        ("manifest.txt", (), "no manifest"),
    ],
)
def test_an_impossible_input_is_named(model_folder, tmp_path, monkeypatch, source, options, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.csv").write_text("wrong\na.wav\n")
    (tmp_path / "manifest.txt").write_text("a.wav\n")
    with pytest.raises(RunError, match=named):
        embed(model_folder, tmp_path / source, tmp_path / "out", *options)


@pytest.mark.slow
def test_two_processes_and_their_workers_share_the_work_and_survive_a_kill(model_folder, corpus, embedded, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    command += [str(SCRIPTS / "embed_corpus.py"), "--model", str(model_folder), "--input", str(corpus)]
    command += ["--output", str(tmp_path), "--shard_size", "1", "--workers", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("shards/*.parquet"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    n_before = len(list(tmp_path.glob("shards/*.parquet")))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shares = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    assert sorted(line.split(" embedded")[0] for line in shares) == ["process 1 of 2", "process 2 of 2"]
    assert 0 < n_before < 30
    rows = rows_of(tmp_path)
    assert [row["path"] for row in rows] == [row["path"] for row in embedded]
    assert json.loads((tmp_path / "run.json").read_text())["n_recordings"] == 30
