"""Embeddings and scores of any number of recordings, as Parquet shards.

    accelerate launch scripts/embed_corpus.py --model MODEL --input FOLDER --output OUT
    torchrun --nproc_per_node 4 scripts/embed_corpus.py --model MODEL --input manifest.csv --output OUT

`--input`: a folder (audio files at any depth), a manifest (.csv, .tsv, .json, .jsonl with a column of paths, relative
to it), a folder by `save_to_disk`, or the id of a dataset on the Hub. Run it again after a kill and it goes on: whole
shards stay, and what is damaged, what failed and files that changed since are done again. What does not decode is
listed in OUT/failed.csv with its reason. Several processes share the shards; on the CPU accelerate needs `--multi_gpu
--num_processes N` to start N of them (its `--cpu` starts one), torchrun does not. Read back:

    datasets.load_dataset("parquet", data_files="OUT/shards/*.parquet", split="train")

Columns: index (place in the listing), path, seconds, speech_share, label (none where nobody speaks), scores (by label),
and each of `--embeddings`.

Ends with 0 where every recording has its row or, by `--on_bad_audio skip`, its reason; with 3 where some failed; with 1
and one line where the run could not go on.
"""

import argparse
import csv
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from modeling_edrl_mea import (  # noqa: E402
    EdrlMeaForAudioClassification,
    RecordingError,
    SpeechGate,
    load_recording,
)
from modeling_edrl_mea.recordings import find_audio  # noqa: E402
from train.data.files import (  # noqa: E402
    atomic_write,
    file_hash,
    fingerprint,
    fingerprint_of_weights,
    read_sealed,
    remove_unfinished,
    write_sealed,
)
from train.data.manifests import AUDIO_COLUMNS, read_manifest  # noqa: E402
from train.data.recordings import CorpusError  # noqa: E402
from train.run_folder import RunError, check_settings  # noqa: E402

EMBEDDINGS = ("speech_embedding", "aligned_embedding", "shared_embedding", "intra_class_embeddings")
POOL_BATCHES = 8  # batches' worth of decoded audio that is held to be sorted by length
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BARRIER_LIMIT = timedelta(days=30)  # processes wait for one another at the end, however long the slowest takes
SOME_FAILED = 3  # exit status
OF_THE_COPY = ("_name_or_path", "transformers_version", "dtype")  # of a config: the same model in another place


# --- shards -------------------------------------------------------------------------------------------------
#
# OUT/run.json          settings that a resumed run must share
# OUT/listing.parquet   the recordings, in order, as found when the run first started
# OUT/shards/*.parquet  rows of `shard_size` recordings of the listing each; none where all of them failed
# OUT/receipts/*.json   for every finished shard its checksum, its recordings' files, and what failed, with reasons
# OUT/failed.csv        all that failed, once the run is through
#
# A shard's name is its place in the listing, whoever computes it, and a file gets its name when it is whole, that of
# the receipt last: a run killed at any moment has lost the unfinished shards, and doubled nothing. Nothing is believed
# without its checksum.


class ShardStore:
    """One output folder.

    Args:
        folder: OUT.
        settings: what must be the same when a run is resumed, `shard_size` among it.
    """

    def __init__(self, folder: str | Path, settings: dict):
        self.folder, self.settings = Path(folder), settings
        self.shard_size, self.run = settings["shard_size"], fingerprint(settings)
        self.n_recordings = 0

    def lock(self):
        """A context in which this run alone writes to the folder; one process enters it before any other looks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self.folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"Another run is writing to {self.folder}. Wait for it, or give another --output."
            ) from error

    def open(self, n_recordings: int, paths: list[bytes] | None) -> None:
        """Start or resume; called by the process that holds the lock before any other uses the folder.

        Args:
            n_recordings: how many there are now.
            paths: what to call them, or None where they are rows of a data set.

        Raises RunError where the folder holds something else, or a run with other settings or of other recordings.
        """
        if (self.folder / "run.json").exists():
            self._resume(n_recordings, paths)
        else:
            self._refuse_to_mix()
            self._list(paths)
            run = {"settings": self.settings, "n_recordings": n_recordings, "listing": fingerprint_of_paths(paths)}
            write_sealed(self.folder / "run.json", run)
        for folder in (self.folder, self.folder / "shards", self.folder / "receipts"):
            folder.mkdir(exist_ok=True)
            remove_unfinished(folder)
        self.attach()
        self._refuse_strangers()

    def _refuse_to_mix(self) -> None:
        kept = (".lock", "listing.parquet", "run.json.")  # all that a run can leave that was killed before run.json
        foreign = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(kept))
        if foreign:
            raise RunError(
                f"{self.folder} holds something else ({', '.join(foreign[:3])}) and no run.json of this script. Give "
                "a new or empty folder as --output."
            )

    def _refuse_strangers(self) -> None:
        ours = {self.shard_path(shard) for shard in range(self.n_shards)}
        strangers = sorted(path.name for path in (self.folder / "shards").glob("*.parquet") if path not in ours)
        if strangers:
            raise RunError(f"{self.folder / 'shards'} holds {strangers[0]}, which is not of this run. Take it out.")

    def _list(self, paths: list[bytes] | None) -> None:
        if paths is not None:
            with atomic_write(self.folder / "listing.parquet") as temporary:
                pq.write_table(pa.table({"path": pa.array(paths, pa.binary())}), temporary)

    def _resume(self, n_recordings: int, paths: list[bytes] | None) -> None:
        before = self._read_run()
        check_settings(self.folder, before["settings"], self.settings, "--output")
        if before["listing"] == fingerprint_of_paths(paths) and n_recordings == before["n_recordings"]:
            return self._list(paths)  # written anew, so that damage to it is of no consequence
        change = f"{n_recordings} recordings now, {before['n_recordings']} when {self.folder} was started"
        listed = self.listing()
        if listed is None or fingerprint_of_paths(listed.to_pylist()) != before["listing"]:
            raise RunError(
                f"The recordings have changed, or listing.parquet is damaged: {change}. Give another --output."
            )
        gone = set(listed.to_pylist()).difference(paths)
        if gone:
            raise RunError(
                f"{len(gone)} recordings are gone since {self.folder} was started, such as "
                f"{printable(os.fsdecode(min(gone)))}. Put them back under their names, or give another --output."
            )
        print(f"{change}: going on with those listed then. For new ones give another --output.")

    def _read_run(self) -> dict:
        run = read_sealed(self.folder / "run.json")
        if run is None or not run.keys() >= {"settings", "n_recordings", "listing"}:
            raise RunError(
                f"{self.folder / 'run.json'} is damaged or not of this script, so nobody knows which run the folder "
                "holds. Remove the folder, or give another --output."
            )
        return run

    def attach(self) -> None:
        """Read what `open` wrote; every process calls it."""
        self.n_recordings = self._read_run()["n_recordings"]

    def listing(self) -> pa.ChunkedArray | None:
        """Paths (bytes) of the recordings, or None where they are rows of a data set (or the file is damaged)."""
        try:
            return pq.read_table(self.folder / "listing.parquet")["path"].combine_chunks()
        except (OSError, KeyError, pa.ArrowException):
            return None

    @property
    def n_shards(self) -> int:
        return -(-self.n_recordings // self.shard_size)

    def rows(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.n_recordings))

    def todo(self, shard: int, stamp: Callable[[int], str]) -> list[int]:
        """Places of a shard that have no row, or one of a file whose `stamp` was another; all, where it is damaged.

        Raises RunError for a row whose file is gone: it may be there under another name.
        """
        receipt = self._receipt(shard)
        if receipt is None:
            if self._receipt_path(shard).exists():
                print(f"shard {shard} is damaged or lost: done again", flush=True)
            return list(self.rows(shard))
        done, now = receipt["rows"], {place: stamp(place) for place in self.rows(shard)}
        gone = [place for place in now if done.get(str(place)) and not now[place]]
        if gone:
            raise RunError(
                f"Recording {gone[0]} of {self.folder / 'listing.parquet'} has a row, and its file is gone. Put it "
                "back, or give another --output."
            )
        return [place for place in now if done.get(str(place)) != now[place]]

    def _receipt(self, shard: int) -> dict | None:
        """Of a shard that is whole: {"rows": {place: stamp}, "failures", "sha256"}."""
        receipt = read_sealed(self._receipt_path(shard))
        if receipt is None or (receipt.get("run"), receipt.get("shard")) != (self.run, shard):
            return None
        path = self.shard_path(shard)
        return receipt if receipt["sha256"] == (file_hash(path) if path.exists() else None) else None

    def shard_path(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:06d}.parquet"

    def _receipt_path(self, shard: int) -> Path:
        return self.folder / "receipts" / f"{shard:06d}.json"

    def write(self, shard: int, rows: list[dict], failures: list[dict], schema: pa.Schema) -> None:
        """Add what was to do of a shard to what it has: first the rows, then the receipt that says they are there.

        rows: by the schema, with `stamp` beside; failures: index, path, reason.
        """
        table, stamps = pa.Table.from_pylist(rows, schema), {str(row["index"]): row["stamp"] for row in rows}
        before = self._receipt(shard)
        if before is not None and before["sha256"]:
            old = pq.read_table(self.shard_path(shard)).cast(schema)
            again = pa.array([row["index"] for row in rows + failures], pa.int64())
            old = old.filter(pc.invert(pc.is_in(old["index"], again)))
            table = pa.concat_tables([old, table])
            stamps |= {str(place): before["rows"][str(place)] for place in old["index"].to_pylist()}
        path = self.shard_path(shard)
        if len(table):
            with atomic_write(path) as temporary:
                pq.write_table(table.sort_by("index"), temporary)
        else:
            path.unlink(missing_ok=True)  # `datasets` cannot read a file without rows
        receipt = {"run": self.run, "shard": shard, "rows": stamps, "failures": failures}
        write_sealed(self._receipt_path(shard), receipt | {"sha256": file_hash(path) if len(table) else None})

    def close(self) -> tuple[int, int]:
        """Write failed.csv; (rows written, recordings that failed).

        Raises RunError where not every listed recording is one or the other, and for a shard that is not as written.
        """
        receipts = {shard: self._receipt(shard) for shard in range(self.n_shards)}
        lost = [shard for shard, receipt in receipts.items() if receipt is None]
        if lost:
            raise RunError(f"Shards {lost[:5]} of {self.folder} were damaged or lost meanwhile. Run it again.")
        self._refuse_strangers()
        failures = [failure for receipt in receipts.values() for failure in receipt["failures"]]
        with (
            atomic_write(self.folder / "failed.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as t,
        ):
            writer = csv.DictWriter(t, ["index", "path", "reason"])
            writer.writeheader()
            writer.writerows(failures)
        n_rows = sum(len(receipt["rows"]) for receipt in receipts.values())
        if n_rows + len(failures) != self.n_recordings:
            raise RunError(
                f"{self.folder} has {n_rows} rows and {len(failures)} failures of {self.n_recordings} recordings. Run "
                "it again."
            )
        return n_rows, len(failures)


def fingerprint_of_paths(paths: list[bytes] | None) -> str | None:
    return None if paths is None else fingerprint(b"\0".join(paths))


# --- recordings ---------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A recording: decoded, or with the reason why it cannot be used."""

    place: int
    name: str
    stamp: str = ""  # changes with the file
    waveform: np.ndarray | None = None
    reason: str = ""


class Recordings(Dataset):
    """Items by place in the listing; `names` are None where they are rows of a data set."""

    def __init__(self, names: pa.Array | None, source: Path, rows, audio_column: str, rate: int, max_seconds: float):
        self.names, self.rows, self.audio_column = names, rows, audio_column
        self.base = source.parent if source.is_file() else source
        self.rate, self.max_seconds = rate, max_seconds

    def __len__(self) -> int:
        return len(self.rows) if self.names is None else len(self.names)

    def __getitem__(self, place: int) -> Item:
        item = Item(place, f"row {place}", self.stamp(place))
        try:
            if self.names is None:
                source = self.rows[place][self.audio_column]
                item = item._replace(name=str(source.get("path") or item.name))
            else:
                source = self._path(place)
                item = item._replace(name=printable(os.fsdecode(self.names[place].as_py())))
            seconds = stated_seconds(source)
            if seconds > self.max_seconds:
                return item._replace(reason=f"{seconds:.0f} s long, over --max_seconds {self.max_seconds:g}")
            return item._replace(waveform=load_recording(source, self.rate))
        except ImportError:
            raise  # a decoder that is not installed is no fault of the file
        except RecordingError as error:
            return item._replace(reason=printable(str(error)))
        except Exception as error:  # one file, however strange, must not stop millions
            return item._replace(reason=printable(f"{type(error).__name__}: {error}"))

    def _path(self, place: int) -> str:
        return os.path.join(self.base, os.fsdecode(self.names[place].as_py()))

    def stamp(self, place: int) -> str:
        """Size and time of a recording's file, empty where it is gone; the same for all rows of a data set, whose
        fingerprint is among the run's settings."""
        if self.names is None:
            return "row"
        try:
            status = os.stat(self._path(place))
        except (OSError, ValueError):
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def check_source(self) -> None:
        if self.names is not None and not self.base.exists():
            raise RunError(f"{self.base} is gone. Once it is back, run this again: it goes on.")


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


def batches(items: Iterable[Item], batch_samples: int) -> Iterator[list[Item]]:
    """Batches of similar lengths, of at most `batch_samples` with their padding, and failures singly as they come."""
    pool, held = [], 0
    for item in items:
        if item.waveform is None:
            yield [item]
            continue
        pool.append(item)
        held += len(item.waveform)
        if held >= POOL_BATCHES * batch_samples:
            yield from cut(pool, batch_samples)
            pool, held = [], 0
    yield from cut(pool, batch_samples)


def cut(pool: list[Item], batch_samples: int) -> Iterator[list[Item]]:
    batch = []
    for item in sorted(pool, key=lambda item: len(item.waveform)):
        if batch and (len(batch) + 1) * len(item.waveform) > batch_samples:
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
        self.gate = SpeechGate(sampling_rate=model.config.sampling_rate)

    @torch.inference_mode()
    def __call__(self, batch: list[Item]) -> Iterator[dict]:
        """A row each, or one with a `reason` where the model gives no finite scores."""
        rate = self.extract.sampling_rate
        inputs = self.extract([item.waveform for item in batch], sampling_rate=rate, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        inputs["input_values"] = inputs["input_values"].to(self.model.dtype)
        output = self.model(**inputs)
        probabilities = output.logits.float().softmax(-1).cpu().numpy()
        found = {name: getattr(output, name).float().flatten(1).cpu().numpy() for name in self.embeddings}
        for i, item in enumerate(batch):
            if not np.isfinite(probabilities[i]).all():
                reason = "the model's scores are not finite; see whether other recordings' are"
                yield {"index": item.place, "path": item.name, "reason": reason}
                continue
            row = {"index": item.place, "path": item.name, "stamp": item.stamp, "seconds": len(item.waveform) / rate}
            row["speech_share"] = self.gate.share(item.waveform)
            row["label"] = self.labels[int(probabilities[i].argmax())] if row["speech_share"] else None
            row["scores"] = dict(zip(self.labels, probabilities[i].tolist(), strict=True))
            yield row | {name: rows[i] for name, rows in found.items()}

    def schema(self) -> pa.Schema:
        probe = next(self([Item(0, "", waveform=np.zeros(self.extract.minimum_length, np.float32))]))
        scores = pa.struct([(label, pa.float32()) for label in self.labels])
        columns = [("index", pa.int64()), ("path", pa.string()), ("seconds", pa.float32())]
        columns += [("speech_share", pa.float32()), ("label", pa.string())]
        vectors = [(name, pa.list_(pa.float32(), len(probe[name]))) for name in self.embeddings]
        return pa.schema([*columns, ("scores", scores), *vectors])


def run_shards(
    store: ShardStore,
    recordings: Recordings,
    todo: dict[int, list[int]],
    embed: Embedder,
    batch_samples: int,
    workers: int,
) -> None:
    """Embed the places that are to do by shard, and write each shard as soon as all of it is there."""
    places = [place for of_shard in todo.values() for place in of_shard]
    items = DataLoader(
        recordings,
        batch_size=None,
        sampler=places,
        collate_fn=as_it_is,
        num_workers=min(workers, len(places)),
        multiprocessing_context="spawn" if workers and places else None,  # after inference a fork hangs in OpenMP
    )
    schema = embed.schema()
    check_room(store.folder, len(places), schema)
    rows, failures = defaultdict(list), defaultdict(list)
    with tqdm(total=len(places), unit="rec", disable=None) as progress:
        for batch in batches(items, batch_samples):
            first = batch[0]
            failed = [{"index": first.place, "path": first.name, "reason": first.reason}] if first.reason else None
            for row in failed or embed(batch):
                shard = row["index"] // store.shard_size
                (failures if "reason" in row else rows)[shard].append(row)
                progress.update()
                if len(rows[shard]) + len(failures[shard]) == len(todo[shard]):
                    if failures[shard]:
                        recordings.check_source()
                    store.write(shard, rows.pop(shard), failures.pop(shard), schema)


def check_room(folder: Path, n_rows: int, schema: pa.Schema) -> None:
    """Raises RunError where the disk will be full before the rows are written: their vectors do not compress."""
    sizes = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
    needed, free = 4 * n_rows * sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: {n_rows} rows take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Make room, or "
            "give another --output; what is embedded already is kept."
        )


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
    if not len(rows):
        raise RunError(f"{args.input} has no rows.")
    return rows.cast_column(args.audio_column, Audio(decode=False))


def list_paths(args) -> list[bytes]:
    """Paths of all recordings, relative to the folder or to the manifest's."""
    source = Path(args.input)
    if source.is_file():
        return paths_of_manifest(source, args.audio_column)
    paths = [os.fsencode(path.relative_to(source)) for path in find_audio(source)]
    if not paths:
        raise RunError(f"{source} holds no audio file.")
    return paths


def paths_of_manifest(path: Path, audio_column: str) -> list[bytes]:
    rows = read_manifest(path)
    if not rows:
        raise RunError(f"{path} lists no recording.")
    column = next((name for name in (audio_column, *AUDIO_COLUMNS) if name in rows[0]), None)
    if column is None:
        raise RunError(f"{path} has no column {audio_column!r} of paths; name one of {list(rows[0])}.")
    names = [row.get(column) for row in rows]
    wrong = next((number for number, name in enumerate(names, start=1) if not (name and isinstance(name, str))), None)
    if wrong:
        raise RunError(f"Row {wrong} of {path} has no path in {column!r}. Fill it in, or take the row out.")
    return [os.fsencode(name) for name in names]


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
    parser.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="skip: failed files are fine"
    )
    args = parser.parse_args(argv)
    for name, least in (("shard_size", 1), ("batch_seconds", 0.1), ("max_seconds", 0), ("workers", 0)):
        if not getattr(args, name) >= least:  # nor NaN
            raise RunError(f"--{name} {getattr(args, name)}: give {least} or more.")
    if args.batch_seconds == float("inf"):
        raise RunError("--batch_seconds inf: give as many as fit the memory.")
    return args


def settings_of(args, model: EdrlMeaForAudioClassification, embeddings: list[str], rows) -> dict:
    """What a resumed run must share."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_THE_COPY}
    return {
        "model": fingerprint_of_weights(model, settings=fingerprint(config)),
        "input": os.path.abspath(args.input) if os.path.exists(args.input) else args.input,
        "data_set": None if rows is None else fingerprint_of_rows(rows, os.path.exists(args.input)),
        "embeddings": embeddings,
        "speech_gate": SpeechGate().kind,
        "dtype": args.dtype,
        "shard_size": args.shard_size,
    }


def fingerprint_of_rows(rows, is_local: bool) -> str:
    """Of a data set: what `save_to_disk` noted, or the Hub's files with their commit, wherever they are cached."""
    return fingerprint((not is_local and sorted(rows.info.download_checksums or {})) or rows._fingerprint)


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    args = parse_arguments(argv)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, **({"timeout": BARRIER_LIMIT} if several else {}))
    is_main = state.is_main_process
    rows = open_dataset(args)
    paths = list_paths(args) if rows is None and is_main else None
    model, embeddings = load_model(args, args.device or state.device)
    store = ShardStore(args.output, settings_of(args, model, embeddings, rows))
    with store.lock() if is_main else nullcontext():
        if is_main:
            store.open(len(paths if rows is None else rows), paths)
        state.wait_for_everyone()
        store.attach()
        rate = model.config.sampling_rate
        recordings = Recordings(store.listing(), Path(args.input), rows, args.audio_column, rate, args.max_seconds)
        shards = range(store.n_shards)[state.process_index :: state.num_processes]
        todo = {shard: places for shard in shards if (places := store.todo(shard, recordings.stamp))}
        run_shards(store, recordings, todo, Embedder(model, embeddings), int(args.batch_seconds * rate), args.workers)
        print(f"process {state.process_index + 1} of {state.num_processes} embedded {len(todo)} shards", flush=True)
        state.wait_for_everyone()
        n_rows, n_failed = store.close() if is_main else (0, 0)
    if is_main:
        print(f"{n_rows} rows in {store.n_shards} shards, {n_failed} failed (see {store.folder / 'failed.csv'})")
    if several:
        state.destroy_process_group()
    return SOME_FAILED if n_failed and args.on_bad_audio == "error" else 0


if __name__ == "__main__":
    try:
        status = main()
    except (RunError, CorpusError, RecordingError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run it again and it goes on") from None
    sys.exit(status)
