"""Finds the recordings that cannot be used, all of them, before anything is computed."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_edrl_mea import RecordingError, load_recording

from .embeddings import content_hash


def bad_recordings(audio: Sequence, memory: str | Path, processes=None) -> dict[int, str]:
    """What is wrong with each recording that cannot be used, by its place in `audio`.

    Every recording is decoded once. Those found good are remembered by their content in the folder `memory`, so that
    a run's repetition need not decode again.

    Args:
        audio: paths, or dicts as `datasets` makes them.
        processes: an accelerate `PartialState`, where several share the work.
    """
    memory = Path(memory)
    good = _remembered(memory)
    rank, n_processes = (processes.process_index, processes.num_processes) if processes else (0, 1)
    mine = range(rank, len(audio), n_processes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda row: _check(audio[row], good), mine)
        found = list(tqdm(found, "checking", len(mine), unit="rec", disable=rank > 0 or len(mine) < 1000, leave=False))
    wrong = [(row, message) for row, (_, message) in zip(mine, found, strict=True) if message]
    _remember(memory / f"good-{rank}.txt", {digest for digest, message in found if not message} - good)
    return dict(sorted(gather_object(wrong) if n_processes > 1 else wrong))


def _check(recording, good: set[str]) -> tuple[str, str | None]:
    try:
        digest = content_hash(recording).hex()
        if digest not in good:
            load_recording(recording)
        return digest, None
    except RecordingError as error:
        return "", str(error)


def _remembered(memory: Path) -> set[str]:
    return {line for file in memory.glob("good-*.txt") for line in file.read_text().split()}


def _remember(file: Path, digests: set[str]) -> None:
    if not digests:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as lines:
            lines.write("".join(f"{digest}\n" for digest in sorted(digests)))
    except OSError:  # a cache that cannot be written may still be read
        pass
