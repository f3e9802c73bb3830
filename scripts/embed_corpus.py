"""Embeddings and scores of any number of recordings, as Parquet shards.

    accelerate launch scripts/embed_corpus.py --model MODEL --input FOLDER --output OUT
    torchrun --nproc_per_node 4 scripts/embed_corpus.py --model MODEL --input manifest.csv --output OUT

`--input`: a folder (audio files at any depth), a manifest (.csv, .tsv, .json, .jsonl with a column of paths, relative
to it), a folder by `save_to_disk`, or the id of a dataset on the Hub. Run it again after a kill and it goes on:
finished shards stay, nothing is lost or doubled. What does not decode is listed in OUT/failed.csv with its reason.
Several processes share the shards; on the CPU accelerate needs `--multi_gpu --num_processes N` to start N of them
(its `--cpu` starts one), torchrun does not. Read back:

    datasets.load_dataset("parquet", data_files="OUT/shards/*.parquet", split="train")

Columns: index (place in the listing), path, seconds, label, scores (by label), and each of `--embeddings`.
"""

import argparse
import csv
import fcntl
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, RecordingError, load_recording  # noqa: E402
from modeling_edrl_mea.recordings import find_audio  # noqa: E402
from train.data.files import atomic_write, fingerprint_of_weights, remove_unfinished  # noqa: E402
from train.data.manifests import AUDIO_COLUMNS  # noqa: E402
from train.data.recordings import CorpusError  # noqa: E402
from train.run_folder import RunError, check_settings  # noqa: E402

EMBEDDINGS = ("speech_embedding", "aligned_embedding", "shared_embedding", "intra_class_embeddings")
POOL_BATCHES = 8  # batches' worth of decoded audio that is held to be sorted by length
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LISTING = pa.schema([("path", pa.binary())])  # bytes: a file's name need not be text
BARRIER_LIMIT = timedelta(days=30)  # processes wait for one another at the end, however long the slowest takes


# --- shards -------------------------------------------------------------------------------------------------
#
# OUT/run.json          settings that a resumed run must share
# OUT/listing.parquet   the recordings, in order, as found when the run first started
# OUT/shards/*.parquet  rows of `shard_size` recordings of the listing each; none where all of them failed
# OUT/failed/*.jsonl    recordings of a shard that gave no row, with reasons; there for every finished shard
# OUT/failed.csv        all of these, once the run is through
#
# A shard's name is its place in the listing, whoever computes it, and a file gets its name when it is whole, that of
# the failures last: a run killed at any moment has lost the unfinished shards, and doubled nothing.


class ShardStore:
    """One output folder.

    Args:
        folder: OUT.
        settings: what must be the same when a run is resumed, `shard_size` among it.
    """

    def __init__(self, folder: str | Path, settings: dict):
        self.folder, self.settings = Path(folder), settings
        self.shard_size = settings["shard_size"]
        self.lock = None
        self.n_recordings = 0

    def open(self, n_recordings: int, paths: list[bytes] | None) -> None:
        """Start or resume; called by one process before any other uses the folder.

        Args:
            n_recordings: how many there are now.
            paths: what to call them, or None where they are rows of a data set.

        Raises RunError where the folder holds a run with other settings, or another run is writing to it.
        """
        for name in ("shards", "failed"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock()
        for folder in (self.folder, self.folder / "shards", self.folder / "failed"):
            remove_unfinished(folder)
        known = self.folder / "run.json"
        if known.exists():
            return self._resume(json.loads(known.read_text()), n_recordings, is_listed=paths is not None)
        if paths is not None:
            table = pa.table({"path": pa.array(paths, pa.binary())}, schema=LISTING)
            with atomic_write(self.folder / "listing.parquet") as temporary:
                pq.write_table(table, temporary)
        with atomic_write(known) as temporary:
            temporary.write_text(json.dumps({**self.settings, "n_recordings": n_recordings}, indent=1))

    def _lock(self) -> None:
        # A record lock goes with its process, however that ends, and is not inherited by the decoding workers.
        self.lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another run is writing to {self.folder}. Wait for it, or give another --output."
            ) from error

    def _resume(self, before: dict, n_recordings: int, is_listed: bool) -> None:
        n_before = before.pop("n_recordings")
        check_settings(self.folder, before, self.settings, "--output")
        if n_recordings == n_before:
            return
        change = f"{n_recordings} recordings now, {n_before} when {self.folder} was started"
        if not is_listed:
            raise RunError(f"The data set has changed: {change}. Give another --output.")
        print(f"{change}: going on with those listed then. For new ones give another --output.")

    def attach(self) -> None:
        """Read what `open` wrote; every process calls it."""
        self.n_recordings = json.loads((self.folder / "run.json").read_text())["n_recordings"]

    def listing(self) -> pa.ChunkedArray | None:
        """Paths (bytes) of the recordings, or None where they are rows of a data set."""
        path = self.folder / "listing.parquet"
        return pq.read_table(path)["path"].combine_chunks() if path.exists() else None

    @property
    def n_shards(self) -> int:
        return -(-self.n_recordings // self.shard_size)

    def rows(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.n_recordings))

    def missing(self) -> list[int]:
        return [shard for shard in range(self.n_shards) if not self.failed_path(shard).exists()]

    def shard_path(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:06d}.parquet"

    def failed_path(self, shard: int) -> Path:
        return self.folder / "failed" / f"{shard:06d}.jsonl"

    def write(self, shard: int, table: pa.Table, failures: list[dict]) -> None:
        """A whole shard: first its rows, then its failures, whose file says that both are there."""
        if len(table):  # `datasets` cannot read a file without rows
            with atomic_write(self.shard_path(shard)) as temporary:
                pq.write_table(table, temporary)
        with atomic_write(self.failed_path(shard)) as temporary:
            temporary.write_text("".join(json.dumps(failure, ensure_ascii=True) + "\n" for failure in failures))

    def failures(self) -> Iterator[dict]:
        for path in sorted((self.folder / "failed").glob("*.jsonl")):
            with open(path) as lines:
                yield from map(json.loads, lines)

    def close(self) -> tuple[int, int]:
        """Write failed.csv; (rows written, recordings that failed)."""
        failures = list(self.failures())
        listed = self.folder / "failed.csv"
        with atomic_write(listed) as temporary, open(temporary, "w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, ["index", "path", "reason"])
            writer.writeheader()
            writer.writerows(failures)
        n_rows = sum(pq.read_metadata(path).num_rows for path in (self.folder / "shards").glob("*.parquet"))
        if n_rows + len(failures) != self.n_recordings:
            raise RunError(
                f"{self.folder} has {n_rows} rows and {len(failures)} failures of {self.n_recordings} recordings: some "
                "files in shards/ or failed/ were lost or added. Remove failed/*.jsonl of the lost and run it again."
            )
        return n_rows, len(failures)


# --- recordings ---------------------------------------------------------------------------------------------


class Recordings(Dataset):
    """Decoded recordings by place: (place, name, waveform), or (place, name, reason) for one that cannot be used."""

    def __init__(self, names: pa.Array | None, base: Path, rows, audio_column: str, rate: int, max_seconds: float):
        self.names, self.base, self.rows = names, base, rows
        self.audio_column, self.rate, self.max_seconds = audio_column, rate, max_seconds

    def __len__(self) -> int:
        return len(self.rows) if self.names is None else len(self.names)

    def __getitem__(self, place: int) -> tuple[int, str, np.ndarray | str]:
        name = f"row {place}"
        try:
            if self.names is None:
                source = self.rows[place][self.audio_column]
                name = str(source.get("path") or name)
            else:
                stored = os.fsdecode(self.names[place].as_py())
                name, source = printable(stored), os.path.join(self.base, stored)
            seconds = stated_seconds(source)
            if seconds > self.max_seconds:
                return place, name, f"{seconds:.0f} s long, over --max_seconds {self.max_seconds:g}"
            return place, name, load_recording(source, self.rate)
        except ImportError:
            raise  # a decoder that is not installed is no fault of the file
        except RecordingError as error:
            return place, name, printable(str(error))
        except Exception as error:  # one file, however strange, must not stop millions
            return place, name, printable(f"{type(error).__name__}: {error}")


def stated_seconds(source) -> float:
    """What the file's header says, before it is all decoded; 0 where nothing does."""
    if not isinstance(source, str) or not os.path.isfile(source):  # opening a pipe would wait for ever
        return 0.0
    try:
        return soundfile.info(os.fsencode(source)).duration
    except soundfile.LibsndfileError:
        return 0.0


def printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_it_is(item):
    return item


def batches(items: Iterable, batch_samples: int) -> Iterator[list[tuple[int, str, np.ndarray]]]:
    """Batches of similar lengths, of at most `batch_samples` with their padding, and failures as they come: lists of
    (place, name, waveform or reason)."""
    pool, held = [], 0
    for item in items:
        if isinstance(item[2], str):
            yield [item]
            continue
        pool.append(item)
        held += len(item[2])
        if held >= POOL_BATCHES * batch_samples:
            yield from cut(pool, batch_samples)
            pool, held = [], 0
    yield from cut(pool, batch_samples)


def cut(pool: list, batch_samples: int) -> Iterator[list]:
    batch = []
    for item in sorted(pool, key=lambda item: len(item[2])):
        if batch and (len(batch) + 1) * len(item[2]) > batch_samples:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Embedder:
    """Batches of waveforms to rows."""

    def __init__(self, model: EdrlMeaForAudioClassification, embeddings: list[str]):
        self.model, self.embeddings = model, embeddings
        self.extract, self.labels = model.feature_extractor(), model.config.labels

    @torch.inference_mode()
    def __call__(self, batch: list[tuple[int, str, np.ndarray]]) -> Iterator[dict]:
        """A row each, or one with a `reason` where the model gives no finite scores."""
        places, names, waveforms = zip(*batch, strict=True)
        rate = self.extract.sampling_rate
        inputs = self.extract(list(waveforms), sampling_rate=rate, return_tensors="pt").to(self.model.device)
        inputs["input_values"] = inputs["input_values"].to(self.model.dtype)
        output = self.model(**inputs)
        probabilities = output.logits.float().softmax(-1).cpu().numpy()
        found = {name: getattr(output, name).float().flatten(1).cpu().numpy() for name in self.embeddings}
        for i, (place, name, waveform) in enumerate(zip(places, names, waveforms, strict=True)):
            row = {"index": place, "path": name}
            if not np.isfinite(probabilities[i]).all():
                yield {**row, "reason": "the model's scores are not finite; see whether other recordings' are"}
                continue
            row |= {"seconds": len(waveform) / rate, "label": self.labels[int(probabilities[i].argmax())]}
            row["scores"] = dict(zip(self.labels, probabilities[i].tolist(), strict=True))
            yield row | {name: rows[i] for name, rows in found.items()}

    def schema(self) -> pa.Schema:
        probe = next(self([(0, "", np.zeros(self.extract.minimum_length, np.float32))]))
        scores = pa.struct([(label, pa.float32()) for label in self.labels])
        columns = [("index", pa.int64()), ("path", pa.string()), ("seconds", pa.float32()), ("label", pa.string())]
        vectors = [(name, pa.list_(pa.float32(), len(probe[name]))) for name in self.embeddings]
        return pa.schema([*columns, ("scores", scores), *vectors])


def run_shards(store: ShardStore, shards: list[int], items: Iterable, embed: Embedder, batch_samples: int) -> None:
    """Embed these shards' recordings as they come, and write each shard as soon as all of it is there."""
    schema = embed.schema()
    rows, failures = defaultdict(list), defaultdict(list)
    with tqdm(total=sum(len(store.rows(shard)) for shard in shards), unit="rec", disable=None) as progress:
        for batch in batches(items, batch_samples):
            place, name, content = batch[0]
            failed = isinstance(content, str)
            for row in [{"index": place, "path": name, "reason": content}] if failed else embed(batch):
                shard = row["index"] // store.shard_size
                (failures if "reason" in row else rows)[shard].append(row)
                progress.update()
                if len(rows[shard]) + len(failures[shard]) == len(store.rows(shard)):
                    whole = sorted(rows.pop(shard), key=lambda row: row["index"])
                    store.write(shard, pa.Table.from_pylist(whole, schema), failures.pop(shard))


def load_model(args, device) -> tuple[EdrlMeaForAudioClassification, list[str]]:
    model = EdrlMeaForAudioClassification.from_pretrained(args.model).eval().to(device, DTYPES[args.dtype])
    with torch.inference_mode():
        output = model(torch.zeros(1, model.feature_extractor().minimum_length, device=device, dtype=model.dtype))
    available = [name for name in EMBEDDINGS if getattr(output, name) is not None]
    wanted = args.embeddings or [name for name in EMBEDDINGS[:2] if name in available]
    absent = [name for name in wanted if name not in available]
    if absent:
        raise RunError(f"{args.model} ({model.config.arrangement}) has no {', '.join(absent)}; it has {available}.")
    return model, wanted


def open_dataset(args):
    """The rows of a data set, or None where the input is a folder of audio or a manifest."""
    from datasets import Audio, load_dataset, load_from_disk

    source = Path(args.input)
    if (source / "state.json").is_file():
        rows = load_from_disk(str(source))
    elif source.exists():
        return None
    else:
        try:
            rows = load_dataset(args.input, split=args.split)
        except Exception as error:
            raise RunError(f"{args.input}: no folder, no manifest, and no dataset on the Hub ({error}).") from error
    if args.audio_column not in rows.column_names:
        raise RunError(f"{args.input} has no column {args.audio_column!r}; name one of {rows.column_names}.")
    return rows.cast_column(args.audio_column, Audio(decode=False))


def list_paths(args) -> list[bytes]:
    """Paths of all recordings, relative to the folder or to the manifest's."""
    source = Path(args.input)
    if source.is_file():
        return read_manifest(source, args.audio_column)
    paths = [os.fsencode(path.relative_to(source)) for path in find_audio(source)]
    if not paths:
        raise RunError(f"{source} holds no audio file.")
    return paths


def read_manifest(path: Path, audio_column: str) -> list[bytes]:
    from datasets import load_dataset

    kind = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}.get(path.suffix.lower())
    if kind is None:
        raise RunError(f"{path} is no manifest: use .csv, .tsv, .json or .jsonl.")
    settings = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    rows = load_dataset(kind, data_files=str(path), split="train", **settings)
    column = next((name for name in (audio_column, *AUDIO_COLUMNS) if name in rows.column_names), None)
    if column is None:
        raise RunError(f"{path} has no column {audio_column!r} of paths; name one of {rows.column_names}.")
    return [os.fsencode(str(name)) for name in rows[column]]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory or Hub id")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--embeddings", nargs="+", choices=EMBEDDINGS, help="default: speech, and aligned if there is")
    parser.add_argument("--audio_column", default="audio", help="of a manifest or data set")
    parser.add_argument("--split", default="train", help="of a dataset on the Hub")
    parser.add_argument("--shard_size", type=int, default=2048, help="recordings in a shard: what a kill can cost")
    parser.add_argument("--batch_seconds", type=float, default=120, help="audio in a batch, padding included")
    parser.add_argument("--max_seconds", type=float, default=3 * 3600, help="longer files are listed as failed")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes beside each process")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", help="default: each process's GPU, or the CPU")
    args = parser.parse_args(argv)
    for name, least in (("shard_size", 1), ("batch_seconds", 0.1), ("max_seconds", 0), ("workers", 0)):
        if not getattr(args, name) >= least:  # nor NaN
            raise RunError(f"--{name} {getattr(args, name)}: give {least} or more.")
    return args


def open_store(args, state: PartialState, fingerprint: str, embeddings: list[str], rows) -> ShardStore:
    """The output folder, made ready by the first process, as every process sees it."""
    source = os.path.abspath(args.input) if os.path.exists(args.input) else args.input
    settings = {"model": fingerprint, "input": source, "embeddings": embeddings, "dtype": args.dtype}
    store = ShardStore(args.output, {**settings, "shard_size": args.shard_size})
    if state.is_main_process:
        paths = list_paths(args) if rows is None else None
        store.open(len(paths if rows is None else rows), paths)
    state.wait_for_everyone()
    store.attach()
    return store


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, **({"timeout": BARRIER_LIMIT} if several else {}))
    model, embeddings = load_model(args, args.device or state.device)
    rows = open_dataset(args)
    store = open_store(args, state, fingerprint_of_weights(model), embeddings, rows)
    shards = store.missing()[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # all have looked before any shard is added: they agree who does what
    rate, source = model.config.sampling_rate, Path(args.input)
    base = source.parent if source.is_file() else source
    recordings = Recordings(store.listing(), base, rows, args.audio_column, rate, args.max_seconds)
    places = [place for shard in shards for place in store.rows(shard)]
    items = DataLoader(recordings, batch_size=None, sampler=places, num_workers=args.workers, collate_fn=as_it_is)
    run_shards(store, shards, items, Embedder(model, embeddings), int(args.batch_seconds * rate))
    print(f"process {state.process_index + 1} of {state.num_processes} embedded {len(shards)} shards", flush=True)
    state.wait_for_everyone()
    if state.is_main_process:
        n_rows, n_failed = store.close()
        print(f"{n_rows} rows in {store.n_shards} shards, {n_failed} failed (see {store.folder / 'failed.csv'})")
    if several:
        state.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (RunError, CorpusError) as error:
        raise SystemExit(f"error: {error}") from error
