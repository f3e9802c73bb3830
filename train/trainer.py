"""Two-stage training: EDRL by gradients, MEA and its classifier in closed form."""

import copy
from collections import defaultdict

import torch
from transformers import Trainer, TrainerCallback

from modeling_edrl_mea import EdrlMeaForAudioClassification

from . import stages
from .embeddings import Embeddings
from .metrics import scores

STEPS = {
    "linear": ("train_classifier",),
    "edrl": ("train_disentanglement",),
    "mea": ("fit_alignment", "train_classifier"),
    "edrl_mea": ("train_disentanglement", "fit_alignment", "train_classifier"),
    "mea_edrl": ("fit_alignment", "train_disentanglement"),
}


class EdrlMeaTrainer(Trainer):
    """Trains an EDRL-MEA model on cached embeddings of its frozen backbone.

    Args:
        model: an `EdrlMeaForAudioClassification` whose backbone is frozen.
        args: `TrainingArguments`, for stage 1.
        train_dataset: [`Embeddings`].
        eval_dataset: [`Embeddings`] of other speakers; with it stage 1 keeps the weights of its best epoch and stops
            after `patience` epochs without a better one.
    """

    def __init__(
        self,
        model,
        args,
        train_dataset: Embeddings,
        eval_dataset: Embeddings | None = None,
        patience=10,
        **kwargs,
    ):
        args.remove_unused_columns = False
        args.label_names = ["labels"]
        kwargs.setdefault("compute_metrics", uar_of_predictions)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if eval_dataset is not None:
            self.add_callback(KeepBestHeads(patience))
        self._loss_terms: dict[str, list] = defaultdict(list)

    def train(self, resume_from_checkpoint=None, **kwargs):
        self.fit_speech_embedding()
        output = None
        for step in STEPS[self.model.config.arrangement]:
            output = (
                getattr(self, step)(resume_from_checkpoint)
                if step == "train_disentanglement"
                else getattr(self, step)()
            )
        return output

    def fit_speech_embedding(self) -> None:
        stages.fit_speech_embedding(self.model, self.train_dataset)

    def train_disentanglement(self, resume_from_checkpoint=None):
        return super().train(resume_from_checkpoint=resume_from_checkpoint)

    def fit_alignment(self):
        pls = stages.fit_alignment(self.model, self.train_dataset, self.accelerator)
        self.log({"mea_components": pls.n_components_, "mea_explained_y": float(pls.explained_variance_y_.sum())})

    def train_classifier(self):
        self.log({"classifier_C": stages.train_classifier(self.model, self.train_dataset)})

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            for name, value in outputs.losses.items():
                self._loss_terms[name].append(value.detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, *args, **kwargs):
        for name, values in self._loss_terms.items():
            logs[f"loss_{name}"] = torch.stack(values).mean().item()
        self._loss_terms.clear()
        super().log(logs, *args, **kwargs)


class KeepBestHeads(TrainerCallback):
    """Early stopping on validation UAR that keeps the best heads in memory: a checkpoint an epoch would mostly repeat
    the frozen backbone."""

    def __init__(self, patience: int):
        self.patience = patience

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.best, self.waited, self.weights = -1.0, 0, None

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        score = (metrics or {}).get("eval_uar")
        if score is None or not state.epoch:
            return
        if score > self.best:
            self.best, self.waited, self.weights = score, 0, copy.deepcopy(_heads(model))
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= self.patience

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.weights is not None:
            model.load_state_dict(self.weights, strict=False)
            self.weights = None


class AlignmentCallback(TrainerCallback):
    """Gives the stock `Trainer` stage 2: standardisation before training, MEA and its classifier after it.

    The training set must yield `input_values`, `attention_mask` and `labels`; batches carry no speakers, so the
    classifier's regularisation is not cross-validated.
    """

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        data = None
        if not model.edrl_mea.speech_embedding.is_fitted:
            data = embed_dataloader(model, train_dataloader)
            stages.fit_speech_embedding(model, data)
        if model.config.arrangement == "mea_edrl" and not model.alignment.is_fitted:
            stages.fit_alignment(model, data or embed_dataloader(model, train_dataloader))
        model.train()

    def on_train_end(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        if model.classifier is None:
            return
        data = embed_dataloader(model, train_dataloader)
        if model.alignment is not None:
            stages.fit_alignment(model, data)
        stages.train_classifier(model, data)


@torch.no_grad()
def embed_dataloader(model: EdrlMeaForAudioClassification, dataloader) -> Embeddings:
    """One pass of the backbone, in evaluation mode, over batches of waveforms."""
    model.eval()
    statistics, labels = [], []
    for batch in dataloader:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items() if hasattr(tensor, "to")}
        statistics.append(model.edrl_mea.layer_statistics(batch["input_values"], batch.get("attention_mask")).cpu())
        labels.append(batch["labels"].cpu())
    labels = torch.cat(labels)
    return Embeddings(torch.cat(statistics), labels, [""] * len(labels), torch.arange(len(labels)))


def uar_of_predictions(prediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    found = scores(prediction.label_ids, logits.argmax(-1))
    return {name: found[name] for name in ("uar", "wa", "macro_f1")}


def _heads(model) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if ".backbone." not in name}
