"""Stage 2 for training with the stock `Trainer` of transformers."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from . import closed_form
from .embeddings import Embeddings
from .labels import IGNORED, as_ids


class AlignmentCallback(TrainerCallback):
    """Gives the stock `Trainer` stage 2: standardization before training, MEA and its classifier after it.

    The training set must yield `input_values`, `attention_mask` and `labels` (ids, or shares of the classes, of which
    stage 2 takes the largest; -100: left out). Batches carry no speakers, so the classifier's regularization is not
    cross-validated. Needs scikit-learn.
    """

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        aligns = model.config.arrangement == "mea_edrl" and not model.alignment.is_fitted
        standardizes = not model.edrl_mea.speech_embedding.is_fitted
        data = embed_dataloader(model, train_dataloader) if aligns or standardizes else None
        if standardizes:
            closed_form.fit_speech_embedding(model, data)
        if aligns:
            closed_form.fit_alignment(model, data)
        if data is not None and model.config.starts_from_regression:
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
    statistics, labels = [], []
    for batch in dataloader:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items() if hasattr(tensor, "to")}
        statistics.append(model.edrl_mea.layer_statistics(batch["input_values"], batch.get("attention_mask")).cpu())
        labels.append(as_ids(batch["labels"], model.config.num_labels).cpu())
    statistics, labels = torch.cat(statistics), torch.cat(labels)
    if dist.is_initialized():  # each process had its share of the batches
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (statistics, labels))
        statistics, labels = (torch.cat(parts) for parts in zip(*shares, strict=True))
    statistics, labels = statistics[labels != IGNORED], labels[labels != IGNORED]
    return Embeddings(statistics, labels, [""] * len(labels), torch.arange(len(labels)))
