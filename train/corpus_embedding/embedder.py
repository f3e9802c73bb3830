"""Decoded recordings in batches of similar lengths, through the model, into shards."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_edrl_mea import EdrlMeaForAudioClassification
from modeling_edrl_mea.prediction import Listener

from .listing import Item, Recordings
from .shards import ShardStore, check_room

POOL_BATCHES = 8  # batches' worth of decoded audio that is held to be sorted by length


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
    """Batches of waveforms to rows, with these of the model's embeddings."""

    def __init__(self, model: EdrlMeaForAudioClassification, embeddings: list[str]):
        self.embeddings, self.labels, self.hear = embeddings, model.config.labels, Listener(model)

    def __call__(self, batch: list[Item]) -> Iterator[dict]:
        """A row each, or one with a `reason` where the model gives no finite scores."""
        waveforms = [item.waveform for item in batch]
        output = self.hear.forward(waveforms)
        found = {name: output[name].float().flatten(1).cpu().numpy() for name in self.embeddings}
        for i, (item, heard) in enumerate(
            zip(batch, self.hear.told(output, map(self.hear.gate.share, waveforms)), strict=True)
        ):
            row = {"index": item.place, "path": item.name}
            if not np.isfinite(list(heard.scores.values())).all():
                yield row | {"reason": "the model's scores are not finite; see whether other recordings' are"}
                continue
            row |= {"stamp": item.stamp, "seconds": len(item.waveform) / self.hear.rate}
            row |= {"speech_share": heard.speech_share, "label": heard.emotion, "scores": heard.scores}
            yield row | {name: rows[i] for name, rows in found.items()}

    def schema(self) -> pa.Schema:
        probe = next(self([Item(0, "", waveform=np.zeros(self.hear.extract.minimum_length, np.float32))]))
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
