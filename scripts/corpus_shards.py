"""The bookkeeping of `embed_corpus.py`: what is listed, which shards are done, and what could not be read.

    OUT/run.json          settings that a resumed run must share
    OUT/listing.parquet   the recordings, in order, as found when the run first started
    OUT/shards/*.parquet  rows of `shard_size` recordings of the listing each; none where all of them failed
    OUT/failed/*.jsonl    recordings of a shard that gave no row, each with its reason; there for every finished shard
    OUT/failed.csv        all of these, once the run is through

A shard's name is its place in the listing, whoever computes it, and a file gets its name when it is whole, that of the
failures last: a run killed at any moment has lost the unfinished shards, and doubled nothing.
"""

import csv
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from train.data.files import atomic_write, remove_unfinished  # noqa: E402

LISTING = pa.schema([("path", pa.binary())])  # bytes: a file's name need not be text


class RunError(ValueError):
    """Why a run cannot start; the message says what to do."""


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
        for name, value in self.settings.items():
            if before.get(name) != value:
                raise RunError(
                    f"{self.folder} holds a run with {name}={before.get(name)!r}, and this one has {value!r}. Resume "
                    "with the same settings, or give another --output."
                )
        if n_recordings == before["n_recordings"]:
            return
        change = f"{n_recordings} recordings now, {before['n_recordings']} when {self.folder} was started"
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
        return n_rows, len(failures)
