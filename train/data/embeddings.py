"""The frozen backbone's statistics of each recording, computed once and kept on disk.

The cache is addressed by content: the backbone's weights, the recordings' bytes and the corruption applied. It can be
shared by any number of runs, also at once, and a run that was killed goes on where it was. What was damaged on the
disk, cut short or in single bits, is found by its checksum and computed again. A file is read for that once, and again
when it has changed since: the folder remembers which were whole.
"""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_edrl_mea import EdrlMeaForAudioClassification, RecordingError, load_recording

from .files import HASHES, StampedFacts, atomic_write, checksum, content_hash, fingerprint, fingerprint_of_weights
from .recordings import listed

CHUNK = 64  # recordings in one file of the cache: what a kill can cost
HELD_IN_MEMORY = 2**31  # bytes of statistics of one set of recordings: 26,000 recordings by WavLM-base


class CacheError(OSError):
    """The cache of embeddings cannot be written; the message names the file and the remedy."""


class StoredStatistics:
    """Layer statistics (N, L+1, S') that stay in the cache's files: a tensor as far as training needs one, of which
    only what is asked for is read."""

    nbytes = 0  # that it holds in memory

    def __init__(self, chunks: Sequence[Path]):
        self.chunks = chunks
        parts = [np.load(chunk, mmap_mode="r").shape for chunk in chunks]
        self.ends = np.cumsum([part[0] for part in parts])  # rows up to the end of each chunk
        self.shape = torch.Size([int(self.ends[-1]), *parts[0][1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> torch.Tensor:
        """Of a row (L+1, S'), or of rows in the order given: a slice, or numbers."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.ndim == 0:
            return self[rows[None]][0]
        found = np.empty((len(rows), *self.shape[1:]), np.float32)
        places = np.searchsorted(self.ends, rows, side="right")
        for place in np.unique(places):
            here, chunk = places == place, np.load(self.chunks[place], mmap_mode="r")
            found[here] = chunk[rows[here] - (self.ends[place] - len(chunk))]
        return torch.from_numpy(found)

    def split(self, n_rows: int) -> Iterator[torch.Tensor]:
        return (self[start : start + n_rows] for start in range(0, len(self), n_rows))


class EmbeddingCache:
    """Embeds recordings with a model's backbone, through a folder that remembers what was computed.

    Several processes share the work and the folder: each computes its part of the chunks and reads the others'.
    """

    def __init__(self, model: EdrlMeaForAudioClassification, folder: str | Path, processes=None):
        """`processes`: an accelerate `PartialState` or `Accelerator`, where several share the work."""
        self.model, self.processes = model, processes
        self.folder = Path(folder) / fingerprint_of(model)
        make_folder(self.folder)
        HASHES.keep_in(Path(folder) / "hashes")

    def embed(
        self,
        audio: Sequence,
        condition: Callable | None = None,
        keys: Sequence[str] | None = None,
        title: str = "embedding",
    ) -> torch.Tensor | StoredStatistics:
        """Layer statistics (N, L+1, S') of recordings (paths, or dicts as `datasets` makes them); see [`chunks`]."""
        return self.joined(self.chunks(audio, condition, keys, title))

    def chunks(
        self,
        audio: Sequence,
        condition: Callable | None = None,
        keys: Sequence[str] | None = None,
        title: str = "embedding",
    ) -> list[Path]:
        """Files of the cache that hold the recordings' statistics, computed where they were not there.

        Args:
            condition: a corruption or augmentation `(waveform, key) -> waveform` with a `fingerprint`.
            keys: what the condition draws its randomness from; the file names by default.

        Raises:
            RecordingError: lists every recording that cannot be used, before anything is trained.
            CacheError: the folder lacks some and cannot be written.
        """
        keys = keys or [_name_of(recording) for recording in audio]
        starts = range(0, len(audio), CHUNK)
        paths = [
            self._chunk_path(audio[start : start + CHUNK], keys[start : start + CHUNK], condition) for start in starts
        ]
        HASHES.save()
        n_processes = self.processes.num_processes if self.processes else 1
        rank = self.processes.process_index if self.processes else 0
        # Shares of all chunks, not of those missing: of these one process may see fewer, as another writes already.
        whole = StampedFacts(self.folder / "whole")
        missing = [i for i in range(rank, len(paths), n_processes) if not whole.of(paths[i], _is_whole)]
        whole.save()
        if missing and not os.access(self.folder, os.W_OK):
            raise CacheError(
                f"{self.folder} lacks {len(missing)} of {len(paths)} parts of the {title} and cannot be written. Give "
                "another folder as --embedding_cache."
            )
        errors: list[str] = []
        chunks = [slice(i * CHUNK, min((i + 1) * CHUNK, len(audio))) for i in missing]
        total = sum(rows.stop - rows.start for rows in chunks)
        self._check_room(total, title)
        with tqdm(desc=title, total=total, unit="rec", disable=rank or not missing) as bar:
            for i, rows in zip(missing, chunks, strict=True):
                self._embed_chunk(paths[i], audio[rows], keys[rows], condition, errors)
                bar.update(rows.stop - rows.start)
        if n_processes > 1:  # also waits for what the others write
            errors = gather_object(errors)
        if errors:
            raise RecordingError(f"{len(errors)} of {len(audio)} recordings cannot be used:{listed(errors)}")
        return paths

    @property
    def bytes_of_a_recording(self) -> int:
        return 4 * self.model.config.n_layers * self.model.config.statistics_size

    def _check_room(self, n_recordings: int, title: str) -> None:
        """Raises CacheError where the disk will be full before they are embedded."""
        needed, free = n_recordings * self.bytes_of_a_recording, shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"{self.folder}: the {title} takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Make "
                "room, or give another folder as --embedding_cache."
            )

    def joined(self, chunks: list[Path]) -> torch.Tensor | StoredStatistics:
        """The chunks as one tensor; beyond HELD_IN_MEMORY they stay where they are."""
        stored = StoredStatistics(chunks)
        return stored[:] if 4 * math.prod(stored.shape) <= HELD_IN_MEMORY else stored

    def _embed_chunk(self, path: Path, audio, keys, condition, errors: list[str]) -> None:
        waveforms = []
        for recording, key in zip(audio, keys, strict=True):
            try:
                waveform = load_recording(recording)
                waveforms.append(waveform if condition is None else condition(waveform, key))
            except RecordingError as error:
                errors.append(str(error))
        if errors:  # go on only to find the others that are broken
            return
        by_length = np.argsort([len(waveform) for waveform in waveforms])  # little padding in a batch
        statistics = self.model.embed_recordings([waveforms[i] for i in by_length]).numpy()
        content = io.BytesIO()
        np.save(content, statistics[np.argsort(by_length)])
        with _clear_errors(path), atomic_write(path) as temporary:
            temporary.write_bytes(content.getvalue() + checksum(path, [content.getbuffer()]))

    def _chunk_path(self, audio, keys, condition) -> Path:
        digest = hashlib.sha256((condition.fingerprint if condition is not None else "clean").encode())
        for recording, key in zip(audio, keys, strict=True):
            digest.update(content_hash(recording))
            digest.update(key.encode() if condition is not None else b"")
        return self.folder / f"{digest.hexdigest()[:32]}.npy"


def make_folder(folder: Path) -> None:
    """CacheError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder}: {error.strerror}. Give another folder as --embedding_cache.") from error


def fingerprint_of(model: EdrlMeaForAudioClassification) -> str:
    """16 hexadecimal digits that change with anything that changes layer statistics."""
    config = model.config
    settings = (
        "mean_std",  # the statistics
        config.normalize_waveform,
        config.max_window_seconds,
        config.window_overlap_seconds,
    )
    return fingerprint_of_weights(model.backbone, settings=repr(settings))


def _name_of(recording) -> str:
    if isinstance(recording, dict):
        return str(recording.get("path") or fingerprint(recording["bytes"], 64))
    return Path(recording).name


def _is_whole(path: Path) -> bool:
    """Whether a chunk is there and ends with the checksum of the rest."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return False
    return len(content) > 4 and checksum(path, [content[:-4]]) == content[-4:]


@contextmanager
def _clear_errors(path: Path):
    """OSErrors as CacheErrors that say what to do."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{path}: {error.strerror or error}. Make room, or give another folder as --embedding_cache; what is "
            "cached already is kept."
        ) from error
