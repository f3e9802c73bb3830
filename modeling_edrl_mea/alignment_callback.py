"""What is solved rather than learned, for training with the stock `Trainer` of transformers."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from . import closed_form
from .embeddings import Embeddings
from .targets import IGNORED, as_ids


class AlignmentCallback(TrainerCallback):
    """Gives the stock `Trainer` what is solved in closed form: before training standardization and EDRL's start, after
    it, in the paper's order, MEA and its classifier.

    The training set must yield `input_values`, `attention_mask` and `labels` (ids, or shares of the classes, of which
    the largest counts; -100: left out). Batches carry no speakers, so the classifier's regularization is not
    cross-validated. Needs scikit-learn.
    """

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if not model.edrl_mea.speech_embedding.is_fitted:
            data = embed_dataloader(model, train_dataloader)
            closed_form.fit_speech_embedding(model, data)
            if model.config.starts_as_classifier:
                closed_form.start_disentanglement(model, data)
        model.train()

    def on_train_end(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if model.classifier is None:
            return
        data = embed_dataloader(model, train_dataloader)
        if model.alignment is not None:
            closed_form.fit_alignment(model, data)
        closed_form.train_classifier(model, data)


@torch.no_grad()
def embed_dataloader(model, dataloader) -> Embeddings:
    """One pass of the backbone, in evaluation mode, over batches of waveforms."""
    model.eval()
    parts = []
    for batch in dataloader:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items() if hasattr(tensor, "to")}
        statistics = model.edrl_mea.layer_statistics(batch["input_values"], batch.get("attention_mask"))
        parts.append([part.cpu() for part in (statistics, *what_is_known(model.config, batch, len(statistics)))])
    if dist.is_initialized():  # each process had its share of the batches
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, parts)
        parts = [part for share in shares for part in share]
    statistics, labels, attributes = (torch.cat(part) for part in zip(*parts, strict=True))
    known = (labels != IGNORED) | attributes.isfinite().any(1)
    statistics, labels, attributes = (part[known] for part in (statistics, labels, attributes))
    rows = torch.arange(len(labels))
    return Embeddings(statistics, labels, [""] * len(labels), rows, attributes=attributes)


def what_is_known(config, batch: dict, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the emotions (n,), -100 where there is none, and ratings (n, A), NaN where missing."""
    ids, ratings = torch.full((n,), IGNORED), torch.full((n, config.n_attributes), torch.nan)
    labels, attributes = batch.get("labels"), batch.get("attributes")
    if config.is_regression:
        attributes = labels if attributes is None else attributes
    elif labels is not None:
        ids = as_ids(labels, config.num_labels)
    return ids, ratings if attributes is None else attributes.float()
