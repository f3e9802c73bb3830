"""Decoded recordings in batches of similar lengths, through the model, to rows."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from modeling_edrl_mea import EdrlMeaForAudioClassification
from modeling_edrl_mea.prediction import Listener

from .listing import Item

POOL_BATCHES = 8  # batches' worth of decoded audio that is held to be sorted by length


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
