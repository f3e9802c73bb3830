"""What a bulk embedding leaves on the disk, so that it can be killed at any moment and go on:

    OUT/run.json          settings that a resumed run must share
    OUT/listing.parquet   the recordings, in order, as found when the run first started
    OUT/shards/*.parquet  rows of `shard_size` recordings of the listing each; none where all of them failed
    OUT/receipts/*.json   for every finished shard its checksum, its recordings' files, and what failed, with reasons
    OUT/failed.csv        all that failed, once the run is through

A shard's name is its place in the listing, whoever computes it, and a file gets its name when it is whole, that of
the receipt last: a run killed at any moment has lost the unfinished shards, and doubled nothing. Nothing is believed
without its checksum.
"""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from train.data.files import (
    as_path,
    atomic_write,
    file_hash,
    fingerprint,
    is_address,
    read_sealed,
    remove_unfinished,
    write_sealed,
)
from train.run_folder import LOCK, RunError, check_settings, claim

from .listing import printable

BEFORE_A_RUN = (LOCK, "listing.parquet", "run.json.")  # all that a run can leave that was killed before run.json


class ShardStore:
    """One output folder.

    Args:
        folder: OUT, or an address of it.
        settings: what must be the same when a run is resumed, `shard_size` among it.
    """

    def __init__(self, folder: str | Path, settings: dict):
        # What was listed once must not be believed later: other processes write too.
        self.folder, self.settings = as_path(folder, use_listings_cache=False), settings
        self.shard_size, self.run = settings["shard_size"], fingerprint(settings)
        self.n_recordings = 0

    def lock(self):
        """A context in which this run alone writes to the folder; one process enters it before any other looks.

        Raises RunError where the folder holds something else, or another run is writing to it.
        """
        return claim(self.folder, "--output", BEFORE_A_RUN)

    def open(self, n_recordings: int, paths: list[bytes] | None) -> None:
        """Start or resume; called by the process that holds the lock before any other uses the folder.

        Args:
            n_recordings: how many there are now.
            paths: what to call them, or None where they are rows of a data set.

        Raises RunError where the folder holds a run with other settings or of other recordings.
        """
        if (self.folder / "run.json").exists():
            self._resume(n_recordings, paths)
        else:
            self._list(paths)
            run = {"settings": self.settings, "n_recordings": n_recordings, "listing": _fingerprint_of_paths(paths)}
            write_sealed(self.folder / "run.json", run)
        for folder in (self.folder, self.folder / "shards", self.folder / "receipts"):
            folder.mkdir(exist_ok=True)
            remove_unfinished(folder)
        self.attach()
        self._refuse_strangers()

    def _refuse_strangers(self) -> None:
        ours = {self.shard_path(shard).name for shard in range(self.n_shards)}
        strangers = sorted({path.name for path in (self.folder / "shards").glob("*.parquet")} - ours)
        if strangers:
            raise RunError(f"{self.folder / 'shards'} holds {strangers[0]}, which is not of this run. Take it out.")

    def _list(self, paths: list[bytes] | None) -> None:
        if paths is not None:
            with atomic_write(self.folder / "listing.parquet") as temporary:
                pq.write_table(pa.table({"path": pa.array(paths, pa.binary())}), temporary)

    def _resume(self, n_recordings: int, paths: list[bytes] | None) -> None:
        before = self._read_run()
        check_settings(self.folder, before["settings"], self.settings, "--output")
        if before["listing"] == _fingerprint_of_paths(paths) and n_recordings == before["n_recordings"]:
            return self._list(paths)  # written anew, so that damage to it is of no consequence
        change = f"{n_recordings} recordings now, {before['n_recordings']} when {self.folder} was started"
        listed = self.listing()
        if listed is None or _fingerprint_of_paths(listed.to_pylist()) != before["listing"]:
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
            return _read_table(self.folder / "listing.parquet")["path"].combine_chunks()
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
            old = _read_table(self.shard_path(shard)).cast(schema)
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


def _read_table(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file)


def _fingerprint_of_paths(paths: list[bytes] | None) -> str | None:
    return None if paths is None else fingerprint(b"\0".join(paths))


def check_room(folder: Path, n_rows: int, schema: pa.Schema) -> None:
    """Raises RunError where the disk will be full before the rows are written: their vectors do not compress."""
    if is_address(folder):
        return
    sizes = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
    needed, free = 4 * n_rows * sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: {n_rows} rows take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Make room, or "
            "give another --output; what is embedded already is kept."
        )
