"""One pretraining run: its steps, its log, what it saves and goes on from."""

import itertools
import json
import math
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from modeling_edrl_mea.recordings import SAMPLING_RATE
from train.data.files import atomic_write

from .mixtures import MixtureStream
from .student import Pretraining

AVERAGE_DECAY = 0.999  # of the weights' moving average
WARMUP_STEPS = 200


class _MovingAverage:
    """Exponential moving average of a module's weights; its decay grows to AVERAGE_DECAY as steps are taken."""

    def __init__(self, module: nn.Module):
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int):
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value.detach(), 1 - decay)


def export(config: WavLMConfig, weights: dict, output: Path) -> Path:
    """Write averaged backbone weights, config and preprocessor config as one folder, whole or not at all."""
    temporary, final = output / "backbone.partial", output / "backbone"
    shutil.rmtree(temporary, ignore_errors=True)
    model = WavLMModel(config)
    model.load_state_dict(weights)
    model.save_pretrained(temporary)
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLING_RATE, do_normalize=True, return_attention_mask=True, padding_value=0.0
    )
    extractor.save_pretrained(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    return final


class _Since:
    """What happened since the last line of the log: sums of losses by name, steps, how many of them were skipped,
    seconds of audio."""

    def __init__(self):
        self.sums, self.steps, self.skipped, self.audio_seconds, self.started = {}, 0, 0, 0.0, time.monotonic()

    def add(self, losses: dict, lengths: torch.Tensor):
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.steps += 1
        self.skipped += not losses
        self.audio_seconds += float(lengths.sum()) / SAMPLING_RATE


class Run:
    """One pretraining run in a folder: `training.pt` (all to resume from), `log.jsonl`, `backbone/`.

    `args` are those of scripts/pretrain_backbone.py: output, learning_rate, steps or hours, workers, log_every,
    save_minutes.
    """

    def __init__(self, args, accelerator: Accelerator, model: Pretraining):
        self.args, self.accelerator, self.output = args, accelerator, Path(args.output)
        self.average = _MovingAverage(model.backbone)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds, self.audio_hours = 0, 0.0, 0.0  # of training, over all resumptions
        self.model, self.processes = model, accelerator.num_processes
        if (self.output / "training.pt").exists():
            self.load()
        self.parallel, self.optimizer = accelerator.prepare(model, self.optimizer)
        self.average.weights = {k: v.to(accelerator.device) for k, v in self.average.weights.items()}

    def load(self):
        state = torch.load(self.output / "training.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.weights = state["average"]
        self.step, self.seconds, self.audio_hours = state["step"], state["seconds"], state["audio_hours"]
        self.accelerator.print(f"resuming at step {self.step}, {self.audio_hours:.1f} h of audio seen")

    def save(self):
        if self.accelerator.is_main_process:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.weights,
                "step": self.step,
                "seconds": self.seconds,
                "audio_hours": self.audio_hours,
            }
            with atomic_write(self.output / "training.pt") as temporary:
                torch.save(state, temporary)
            export(self.model.backbone.config, self.average.weights, self.output)

    def progress(self) -> float:
        """Share of the budget used, 0 to 1, the same in every process."""
        if self.args.steps:
            return min(1.0, self.step / self.args.steps)
        used = torch.tensor(self.seconds / 3600 / self.args.hours, device=self.accelerator.device)
        return min(1.0, broadcast(used).item())

    def learning_rate(self, progress: float) -> float:
        warm_up = min(1.0, (self.step + 1) / WARMUP_STEPS)
        return self.args.learning_rate * warm_up * (1.0 - progress)

    def train(self, stream: MixtureStream):
        workers = self.args.workers
        batches = DataLoader(stream, sampler=itertools.count(self.step), batch_size=None, num_workers=workers)
        saved = stepped = time.monotonic()
        since = _Since()
        for batch in batches:
            progress = self.progress()
            if progress >= 1.0:
                break
            since.add(self.take_step(batch, self.learning_rate(progress)), batch["lengths"])
            self.step += 1
            self.audio_hours += float(batch["lengths"].sum()) / SAMPLING_RATE / 3600 * self.processes
            now = time.monotonic()
            self.seconds, stepped = self.seconds + now - stepped, now
            if self.step % self.args.log_every == 0:
                self.log(since, self.learning_rate(progress))
                since = _Since()
            if now - saved > 60 * self.args.save_minutes:
                self.save()
                saved = now
        if since.steps:
            self.log(since, self.learning_rate(progress))
        self.save()

    def take_step(self, batch: dict, learning_rate: float) -> dict:
        """Losses by name; nothing where the gradient was not finite, and no step was taken."""
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.accelerator.autocast():
            losses = self.parallel(batch)
        self.accelerator.backward(losses["loss"])
        norm = self.accelerator.clip_grad_norm_(self.parallel.parameters(), 1.0)
        is_finite = math.isfinite(norm)
        if is_finite:  # under bfloat16 now and then it is not, and the step would leave no weight finite
            self.optimizer.step()
            self.average.update(self.model.backbone, self.step)
        self.optimizer.zero_grad()
        return losses if is_finite else {}

    def log(self, since: _Since, learning_rate: float):
        if since.skipped == since.steps:
            raise RuntimeError(
                f"none of the {since.steps} steps up to {self.step} had a finite gradient; lower --learning_rate and "
                "resume"
            )
        means = {name: round(float(total) / (since.steps - since.skipped), 4) for name, total in since.sums.items()}
        speed = since.audio_seconds * self.processes / (time.monotonic() - since.started)
        line = {
            "step": self.step,
            **means,
            "skipped": since.skipped,
            "learning_rate": round(learning_rate, 7),
            "audio_hours": round(self.audio_hours, 3),
            "training_hours": round(self.seconds / 3600, 4),
            "times_real_time": round(speed, 1),
        }
        if self.accelerator.is_main_process:
            print(json.dumps(line), flush=True)
            with open(self.output / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
