"""One process's part in a bulk embedding: any of its shards, from the recordings to the disk."""

import os
from collections.abc import Callable, Iterable

import torch
from torch.utils.data import DataLoader

from modeling_edrl_mea import EdrlMeaForAudioClassification, SpeechGate
from train.data.files import as_path, fingerprint, fingerprint_of_weights
from train.run_folder import RunError

from . import EMBEDDINGS
from .embedder import Embedder, batches
from .listing import Recordings, fingerprint_of_rows, list_paths, open_dataset
from .shards import ShardStore, check_room

OF_THE_COPY = ("_name_or_path", "transformers_version", "dtype")  # of a config: the same model in another place


def load_model(args, device) -> tuple[EdrlMeaForAudioClassification, list[str]]:
    """The model, and the names of its embeddings that are wanted."""
    model = EdrlMeaForAudioClassification.from_pretrained(args.model).eval().to(device, getattr(torch, args.dtype))
    with torch.inference_mode():
        output = model(torch.zeros(1, model.feature_extractor().minimum_length, device=device, dtype=model.dtype))
    available = [name for name in EMBEDDINGS if getattr(output, name) is not None]
    wanted = args.embeddings or [name for name in EMBEDDINGS[:2] if name in available]
    absent = [name for name in wanted if name not in available]
    if absent:
        raise RunError(f"{args.model} ({model.config.arrangement}) has no {', '.join(absent)}; it has {available}.")
    return model, wanted


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


class Job:
    """The model, the recordings and the output folder.

    Args:
        args: what `scripts/embed_corpus.py` was given.
        device: where the model runs.
        lists: whether this process looks for the recordings, as the one does that opens the folder.
    """

    def __init__(self, args, device, lists: bool = False):
        self.args = args
        self.rows = open_dataset(args.input, args.split, args.audio_column)
        self.paths = list_paths(as_path(args.input), args.audio_column) if lists and self.rows is None else None
        model, embeddings = load_model(args, device)
        self.embed, self.rate = Embedder(model, embeddings), model.config.sampling_rate
        self.store = ShardStore(args.output, settings_of(args, model, embeddings, self.rows))

    def open(self) -> None:
        """Start or resume; by the process that holds the lock."""
        self.store.open(len(self.paths if self.rows is None else self.rows), self.paths)

    def attach(self) -> "Job":
        """Be ready for shards, once the folder is open."""
        args = self.args
        self.store.attach()
        names = self.store.listing()
        source = as_path(args.input)
        self.recordings = Recordings(names, source, self.rows, args.audio_column, self.rate, args.max_seconds)
        self.places, self.schema = [], self.embed.schema()
        self.items = DataLoader(
            self.recordings,
            batch_size=None,
            sampler=self.places,
            collate_fn=_as_it_is,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            multiprocessing_context="spawn" if args.workers else None,  # after inference a fork hangs in OpenMP
        )
        return self

    def todo(self, shards: Iterable[int]) -> dict[int, list[int]]:
        """Places that are to do, by shard; raises RunError where the disk has no room for them."""
        todo = {shard: places for shard in shards if (places := self.store.todo(shard, self.recordings.stamp))}
        check_room(self.store.folder, sum(map(len, todo.values())), self.schema)
        return todo

    def run(self, shard: int, places: list[int], told: Callable = lambda: None) -> None:
        """Embed these places of a shard, and write it; `told()` after each. No batch has recordings of two shards, so
        that it is the same rows, bit for bit, whatever else a process does."""
        self.places[:] = places
        rows, failures = [], []
        for batch in batches(self.items, int(self.args.batch_seconds * self.rate)):
            first = batch[0]
            failed = [{"index": first.place, "path": first.name, "reason": first.reason}] if first.reason else None
            for row in failed or self.embed(batch):
                (failures if "reason" in row else rows).append(row)
                told()
        if failures:
            self.recordings.check_source()
        self.store.write(shard, rows, failures, self.schema)


def _as_it_is(item):
    return item
