"""Two-stage training: EDRL by gradients, MEA and its classifier in closed form."""

import logging
import signal
from collections import defaultdict
from functools import partial, wraps
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_edrl_mea import EdrlMeaForAudioClassification, closed_form
from modeling_edrl_mea.embeddings import Embeddings
from modeling_edrl_mea.targets import IGNORED, as_ids
from train.data.dataset import SpeechDataset, WaveformCollator, epoch_loader
from train.data.embeddings import EmbeddingCache
from train.data.files import write_tensors
from train.evaluation.metrics import mean_concordance, scores

from .run_folder import RunFolder

logger = logging.getLogger(__name__)

BEST = "best.safetensors"  # in a checkpoint: the weights of the best epoch until then


def step(method):
    """A step of training that a run which is resumed does not repeat: the trainer records it once it is done."""

    @wraps(method)
    def once(self, *arguments):
        if self.completed is None:  # this run is not to be resumed
            method(self, *arguments)
        elif method.__name__ not in self.completed:
            method(self, *arguments)
            self._record(method.__name__)

    return once


class EdrlMeaTrainer(Trainer):
    """Trains an EDRL-MEA model in its two stages.

    Above a frozen backbone both stages use embeddings, which are computed once and cached; otherwise stage 1 takes
    waveforms, and stage 2 embeds the recordings again with the backbone that it left.

    Args:
        model: an `EdrlMeaForAudioClassification`, its backbone frozen as far as wanted.
        args: `TrainingArguments`, for stage 1.
        train_dataset: [`SpeechDataset`], or its [`Embeddings`].
        eval_dataset: the same of other speakers; with it stage 1 keeps the weights of its best epoch and stops after
            `patience` epochs without a better one.
        embedding_cache: folder; `args.output_dir`/embeddings by default.
        backbone_learning_rate: of the backbone's parameters; `args.learning_rate` is that of all others.
    """

    def __init__(
        self,
        model: EdrlMeaForAudioClassification,
        args,
        train_dataset: SpeechDataset | Embeddings,
        eval_dataset: SpeechDataset | Embeddings | None = None,
        patience: int = 10,
        embedding_cache: str | Path | None = None,
        backbone_learning_rate: float | None = None,
        **kwargs,
    ):
        args.remove_unused_columns = False
        args.label_names = ["labels", *["attributes"] * bool(model.config.n_attributes)]
        args.dataloader_pin_memory &= torch.cuda.is_available()  # else a warning an epoch
        self.embedding_cache = Path(embedding_cache or Path(args.output_dir) / "embeddings")
        self.backbone_learning_rate = backbone_learning_rate
        if model.is_backbone_frozen:
            model.to(args.device)  # before the Trainer does: embedding is most of the work
            train_dataset, eval_dataset = (self.embed(model, data) for data in (train_dataset, eval_dataset))
        else:
            kwargs.setdefault("data_collator", WaveformCollator(model.feature_extractor()))
        kwargs.setdefault("compute_metrics", partial(validation_scores, model.config))
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.folder = RunFolder(args.output_dir)
        self.best = KeepBest(patience)
        if eval_dataset is not None:
            self.add_callback(self.best)
        self.interruption = None
        self.completed: list[str] | None = None  # steps of a run that can be resumed
        self._loss_terms: dict[str, list] = defaultdict(list)

    def train(self, resume_from_checkpoint: bool | str | None = None):
        """Both stages.

        Args:
            resume_from_checkpoint: True goes on where a killed run left `args.output_dir`, or starts if there is
                nothing; a path is a checkpoint of stage 1.
        """
        config = self.model.config
        self.completed = self._load_completed() if resume_from_checkpoint is True else None

        self.fit_speech_embedding()

        # Stage 1: EDRL, by gradients
        if config.starts_as_classifier:
            self.start_disentanglement()
        if config.uses_disentanglement:
            self.train_disentanglement(resume_from_checkpoint)

        # Stage 2: MEA and the classifier, in closed form
        if config.uses_alignment:
            self.fit_alignment()
        if self.model.classifier is not None:
            self.train_classifier()

    @step
    def fit_speech_embedding(self) -> None:
        closed_form.fit_speech_embedding(self.model, self.training_embeddings())

    @step
    def fit_alignment(self) -> None:
        pls = closed_form.fit_alignment(self.model, self.training_embeddings(), self.accelerator)
        self.log({"mea_components": pls.n_components_, "mea_explained_y": float(pls.explained_variance_y_.sum())})

    @step
    def start_disentanglement(self) -> None:
        self.log({"start_regularization": closed_form.start_disentanglement(self.model, self.training_embeddings())})

    @step
    def train_disentanglement(self, resume_from_checkpoint: bool | str | None = None) -> None:
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            with self.accelerator.main_process_first():
                checkpoint = self.folder.newest_checkpoint(repair=self.is_world_process_zero())
        if checkpoint and KeepBest.had_stopped(Path(checkpoint), self.best.patience):
            self._load_from_checkpoint(checkpoint)
            self.best.restore(self.model)
            return
        super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.interruption is not None:
            self.interruption.end_if_requested()

    @step
    def train_classifier(self) -> None:
        self.log({"classifier_regularization": closed_form.train_classifier(self.model, self.training_embeddings())})

    def training_embeddings(self) -> Embeddings:
        """The training recordings by the backbone as it is now."""
        return self.embed(self.model, self.train_dataset)

    def embed(self, model, data: SpeechDataset | Embeddings | None) -> Embeddings | None:
        if not isinstance(data, SpeechDataset):
            return data
        return data.embed(self.cache(model))

    def cache(self, model: EdrlMeaForAudioClassification | None = None) -> EmbeddingCache:
        """Of the backbone as it is now."""
        return EmbeddingCache(model or self.model, self.embedding_cache, PartialState())

    def stop_on_signals(self) -> None:
        """From now on SIGTERM and Ctrl-C save a checkpoint and end, so that the same command can go on."""
        self.interruption = Interruption()
        self.add_callback(self.interruption)

    def get_train_dataloader(self):
        return epoch_loader(self.train_dataset, self.args, self.data_collator)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.backbone_learning_rate is not None:
            of_backbone = {id(parameter) for parameter in self.model.backbone.parameters()}
            for group in list(optimizer.param_groups):
                theirs = [parameter for parameter in group["params"] if id(parameter) in of_backbone]
                if theirs:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_backbone]
                    settings = {name: value for name, value in group.items() if name != "params"}
                    optimizer.add_param_group(settings | {"params": theirs, "lr": self.backbone_learning_rate})
        return optimizer

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

    def _load_completed(self) -> list[str]:
        completed = self.folder.completed_steps()
        if completed:
            self.model.load_state_dict(self.folder.load_steps(), strict=False)
            logger.info("Going on after %s.", ", ".join(completed))
        return completed

    def _record(self, step: str) -> None:
        self.completed.append(step)
        if self.is_world_process_zero():
            self.folder.record_steps(self.completed, changing_state(self.model))
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            self.best.save(checkpoint)
        self.accelerator.wait_for_everyone()  # the others write the state of their random numbers
        if self.args.should_save:
            self.folder.seal(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict=None):
        if not Path(output_dir or self.args.output_dir).name.startswith(PREFIX_CHECKPOINT_DIR):
            return super()._save(output_dir, state_dict)
        # What is frozen is where it came from: writing it with every checkpoint would take most of the time.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_tensors(Path(output_dir) / "model.safetensors", _on_cpu(changing_state(self.model)))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        state = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        (model or self.model).load_state_dict(state, strict=False)
        self.best.load(Path(resume_from_checkpoint))


class KeepBest(TrainerCallback):
    """Early stopping that keeps the weights of the best epoch, in memory and in checkpoints: by validation UAR of the
    emotions, CCC of the attributes, or the mean of both.

    The checkpoint of an epoch's last step is written after the epoch's validation, never before it: what it holds is
    then a function of seed and step, whatever it was written for.
    """

    def __init__(self, patience: int):
        self.patience, self.saves_later = patience, False
        self._start()

    def _start(self):
        self.score, self.waited, self.weights = -1.0, 0, None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # else the checkpoint brought them
            self._start()

    def on_step_end(self, args, state, control, **kwargs):
        if is_at_epochs_end(state):
            self.saves_later, control.should_save = control.should_save, False

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.saves_later
        self.saves_later = False

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        scores = [metrics[name] for name in ("eval_uar", "eval_ccc") if name in (metrics or {})]
        if not scores or not state.epoch:
            return
        score = sum(scores) / len(scores)
        if score > self.score:
            self.score, self.waited, self.weights = score, 0, _on_cpu(changing_state(model))
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= self.patience

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.restore(model)

    def restore(self, model) -> None:
        if self.weights is not None:
            model.load_state_dict(self.weights, strict=False)

    def save(self, checkpoint: Path) -> None:
        if self.weights is not None:
            write_tensors(checkpoint / BEST, self.weights, {"score": repr(self.score), "waited": str(self.waited)})

    def load(self, checkpoint: Path) -> None:
        self._start()
        if (checkpoint / BEST).exists():
            with safe_open(checkpoint / BEST, "pt") as file:
                self.score, self.waited = float(file.metadata()["score"]), int(file.metadata()["waited"])
            self.weights = load_file(checkpoint / BEST)

    @classmethod
    def had_stopped(cls, checkpoint: Path, patience: int) -> bool:
        """Whether training was over, as no epoch had been better, when a checkpoint was written."""
        kept = cls(patience)
        kept.load(checkpoint)
        return kept.waited >= patience


def is_at_epochs_end(state) -> bool:
    """Whether the step just made was the last one of an epoch, or of the training."""
    return float(state.epoch).is_integer() or state.global_step >= state.max_steps


class Interruption(TrainerCallback):
    """SIGTERM and Ctrl-C: within stage 1 a checkpoint and an end; elsewhere, and the second time, an end at once, since
    all else is written whole."""

    def __init__(self):
        self.requested, self.in_stage_one = 0, False  # the signal's number
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        again, self.requested = self.requested, int(number)
        if again or not self.in_stage_one:
            self.end_if_requested()

    def end_if_requested(self) -> None:
        if self.requested:
            logger.warning("Stopped by %s. Run the same command again to go on.", signal.Signals(self.requested).name)
            raise SystemExit(128 + self.requested)

    def on_train_begin(self, args, state, control, **kwargs):
        self.in_stage_one = True

    def on_step_end(self, args, state, control, **kwargs):
        if dist.is_initialized():  # the signal may reach one process a step before another
            requested = torch.tensor(self.requested, device=args.device)
            dist.all_reduce(requested, dist.ReduceOp.MAX)
            self.requested = int(requested)
        if self.requested:
            control.should_training_stop = True
            control.should_save = not is_at_epochs_end(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.requested:  # within an epoch its checkpoint is written, and it is not to be judged
            control.should_save = is_at_epochs_end(state)
            control.should_evaluate &= control.should_save
            control.should_log &= control.should_save

    def on_train_end(self, args, state, control, **kwargs):
        self.in_stage_one = False


def validation_scores(config, prediction) -> dict[str, float]:
    """UAR, WA and macro-F1 of the emotions, and CCC, the mean over attributes, as far as the model has them."""
    if not config.n_attributes:
        return uar_of_predictions(prediction)
    labels, ratings = prediction.label_ids
    if config.is_regression:
        return {"ccc": mean_concordance(ratings, prediction.predictions)}
    logits, rated = prediction.predictions[:2]
    return uar_of_predictions(EvalPrediction(logits, labels)) | {"ccc": mean_concordance(ratings, rated)}


def uar_of_predictions(prediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = as_ids(torch.as_tensor(prediction.label_ids), logits.shape[-1]).numpy()
    found = scores(labels[labels != IGNORED], logits.argmax(-1)[labels != IGNORED])
    return {name: found[name] for name in ("uar", "wa", "macro_f1")}


def changing_state(model: EdrlMeaForAudioClassification) -> dict[str, torch.Tensor]:
    """Weights and buffers but for the frozen ones of the backbone, which training leaves as they were."""
    frozen = {
        f"edrl_mea.backbone.{name}" for name, weight in model.backbone.named_parameters() if not weight.requires_grad
    }
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
