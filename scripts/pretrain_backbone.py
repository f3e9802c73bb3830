#!/usr/bin/env python
"""Pretrain a compact WavLM on folders of recordings, without labels.

Noisy or overlapped speech goes in; what the *clean* recording sounds like is to be predicted:

- at every frame, masked ones counting most: its log-mel spectrum, its autocorrelation over pitch lags
  (voicing, pitch and its strength without a pitch tracker's hard decisions) and, with `--opensmile`, ComParE's
  low-level descriptors (jitter, shimmer, spectral shape);
- with `--opensmile`, from the mean and standard deviation of every layer: ComParE's functionals of the recording, so
  that what pooling keeps is what emotion is told by.

Masked prediction of clean targets from mixtures follows WavLM (Chen et al. 2022, arXiv:2110.13900); the
targets are ours. Recordings are decoded once into a memory-mapped file. Batch n is a function of the seed and
n alone, so that a run resumed after a kill goes on with the batches it would have seen.

    python scripts/pretrain_backbone.py OUT --speech FOLDER... --noise FOLDER... --hours 1.5

With `--teacher DIR_OR_HUB_ID`, any speech encoder that the package takes as a backbone, frames and recordings are also
to be what the teacher's layers say of the clean recording (Chang et al. 2022, DistilHuBERT, arXiv:2110.01900, of whom
the frames' part is): a teacher's answers cost no labels, so speech is varied too (`--varied_share`), for both.
With a network, `--teacher microsoft/wavlm-base-plus` does this with a larger teacher.

`accelerate launch scripts/pretrain_backbone.py ...` for several GPUs. Run the same command again to resume;
`--backbone DIR` starts from the weights of a finished backbone instead of random ones.
"""

import argparse
import itertools
import json
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.audio_utils import mel_filter_bank
from transformers.models.wavlm.modeling_wavlm import WavLMLayerNormConvLayer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea.backbone import input_settings, load_backbone  # noqa: E402
from modeling_edrl_mea.frames import frame_lengths, receptive_field, samples_per_frame  # noqa: E402
from train.data.files import atomic_write, remove_unfinished  # noqa: E402
from train.data.mixtures import N_DESCRIPTORS, SAMPLING_RATE, MixtureStream, Recordings  # noqa: E402

HOP = 320  # samples between frames: 20 ms, as every WavLM
WINDOW = 1024  # samples of a target frame: 64 ms, two periods of a 31 Hz voice
TEACHER_LEVEL = 0.07  # root mean square of what a teacher hears that was not trained on normalized waveforms
PITCH_HZ = (60.0, 500.0)  # range of speaking voices
SEEN_WEIGHT = 0.5  # of the loss at frames that are not masked
POOLED_WEIGHT = 3.0  # of what the teacher says of whole recordings
AVERAGE_DECAY = 0.999  # of the weights' moving average
WARMUP_STEPS = 200

COMPACT = dict(
    conv_dim=(64, 128, 256, 256),
    conv_kernel=(10, 8, 8, 8),
    conv_stride=(5, 4, 4, 4),  # a frame every 20 ms
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=16,
    num_buckets=160,
    max_bucket_distance=400,
)


def backbone_config(**sizes) -> WavLMConfig:
    """Configuration of the backbone; `sizes` replaces fields of COMPACT. Hop 320 samples, padding exact."""
    return WavLMConfig(
        **{**COMPACT, **sizes},
        feat_extract_norm="layer",  # statistics over channels of one frame: padding changes no result
        mask_time_prob=0.05,  # transformers' default; masks are given here, but at 0 it has no mask embedding
        layerdrop=0.0,
        hidden_dropout=0.0,  # a few passes over the data: nothing to regularize, and resuming is exact
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
    )


# --- targets ------------------------------------------------------------------------------------------------


class FrameTargets(nn.Module):
    """Batch of clean waveforms (batch, samples) -> targets (batch, frames, width), standardized and clipped at 5.

    Log-mels in 64 ms windows; the autocorrelation of the same window at log-spaced pitch lags, divided by
    that of the window function (Boersma 1993) and faded out where the frame is 30 dB below the recording; openSMILE's
    descriptors where the batch has them.
    """

    def __init__(self, config: WavLMConfig, mels: int = 80, lags: int = 48, descriptors: int = 0):
        super().__init__()
        self.config = config
        self.lead = (WINDOW - receptive_field(config)) // 2  # center each window on what the frame sees
        filters = mel_filter_bank(WINDOW // 2 + 1, mels, 50.0, 8000.0, SAMPLING_RATE, mel_scale="htk")
        window = torch.hann_window(WINDOW)
        positions = SAMPLING_RATE / torch.logspace(*(math.log10(hz) for hz in PITCH_HZ), lags).flip(0)
        register = lambda name, value: self.register_buffer(name, value, persistent=False)  # noqa: E731
        register("filters", torch.from_numpy(filters).float())
        register("window", window)
        register("window_correlation", self.autocorrelation(window))
        register("lower", positions.long())
        register("fraction", positions - positions.long())
        self.register_buffer("mean", torch.zeros(mels + lags + descriptors))
        self.register_buffer("scale", torch.ones(mels + lags + descriptors))

    @staticmethod
    def autocorrelation(frames: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(frames, 2 * WINDOW).abs().square()
        correlation = torch.fft.irfft(power)[..., :WINDOW]
        return correlation / (correlation[..., :1] + 1e-6)

    def forward(self, batch: dict) -> torch.Tensor:
        return ((self.measure(batch) - self.mean) / self.scale).clamp(-5, 5)

    def measure(self, batch: dict) -> torch.Tensor:
        """The targets in their own units."""
        clean = batch["clean"]
        count = frame_lengths(self.config, clean.shape[1])
        tail = max(0, (count - 1) * HOP + WINDOW - self.lead - clean.shape[1])
        frames = F.pad(clean, (self.lead, tail)).unfold(1, WINDOW, HOP)[:, :count]
        frames = (frames - frames.mean(-1, keepdim=True)) * self.window
        power = torch.fft.rfft(frames).abs().square()
        mels = torch.log(power @ self.filters + 1e-2)  # the signal has unit variance: a floor at about -50 dB
        correlation = self.autocorrelation(frames) / self.window_correlation.clamp(min=0.05)
        low, high = correlation[..., self.lower], correlation[..., self.lower + 1]
        energy = power.mean(-1, keepdim=True)
        loud = energy / (energy + 1e-3 * energy.mean(1, keepdim=True))
        pitch = torch.lerp(low, high, self.fraction) * loud
        return torch.cat([mels, pitch, *([batch["descriptors"]] if "descriptors" in batch else [])], -1)

    @torch.no_grad()
    def standardize(self, batches: list[dict]):
        """Set mean and scale from some batches."""
        values = torch.cat([self.measure(batch)[frame_mask(batch, self.config)] for batch in batches])
        self.mean.copy_(values.mean(0))
        self.scale.copy_(values.std(0).clamp(min=1e-6))


def frame_mask(batch: dict, config: WavLMConfig) -> torch.Tensor:
    """(batch, frames) bool: frames of the recording, not of its padding."""
    frames = torch.arange(batch["mask"].shape[1], device=batch["mask"].device)
    return frames < frame_lengths(config, batch["lengths"])[:, None]


def principal_functionals(functionals: np.ndarray, components: int = 256) -> np.ndarray:
    """Functionals (files, 6373) -> standardized, clipped at 5, (files, components) half-whitened.

    Principal component k is divided by the square root of its standard deviation: more even than the raw
    scores, less noise than whitened ones; then all by one constant, so that their mean square is 1.
    """
    values = torch.from_numpy(np.nan_to_num(np.asarray(functionals, np.float32)))
    values = ((values - values.mean(0)) / (values.std(0) + 1e-6)).clamp(-5, 5)
    components = min(components, *values.shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, directions = torch.pca_lowrank(values, components, niter=4)
    scores = values @ directions - values.mean(0) @ directions
    scores = scores / scores.std(0).clamp(min=1e-6).sqrt()
    return (scores / scores.square().mean().sqrt()).numpy()


class Teacher:
    """What a pretrained encoder says of clean speech, at the student's frames. No module: neither trained nor saved.

    `states(batch)`: (layers, batch, frames, width), standardized by each layer's own mean and deviation.
    """

    def __init__(self, checkpoint: str, student: WavLMConfig, device):
        self.encoder = load_backbone(checkpoint).requires_grad_(False).to(device)
        config = self.encoder.config
        if samples_per_frame(config) != HOP:
            raise ValueError(
                f"{checkpoint} has a frame every {samples_per_frame(config)} samples, the student every {HOP}"
            )
        self.level = 1.0 if input_settings(checkpoint, config)["normalize_waveform"] else TEACHER_LEVEL
        late = receptive_field(student) // 2 - receptive_field(config) // 2  # samples from its frame 0 to the student's
        self.skipped = max(0, -(-late // HOP))  # frames; samples in front make the rest of them fall together
        self.lead = self.skipped * HOP - late
        self.mean, self.scale = 0.0, 1.0

    @torch.no_grad()
    def states(self, batch: dict) -> torch.Tensor:
        heard = F.pad(self.level * batch["clean"], (self.lead, 0))
        samples = torch.arange(heard.shape[1], device=heard.device)
        output = self.encoder(heard, (samples < self.lead + batch["lengths"][:, None]).long())
        states = torch.stack(output.hidden_states).float()[:, :, self.skipped :][:, :, : batch["mask"].shape[1]]
        short = batch["mask"].shape[1] - states.shape[2]  # frames at the end that the teacher does not have
        return (F.pad(states, (0, 0, 0, short)) - self.mean) / self.scale

    def standardize(self, batches: list[dict], student: WavLMConfig):
        values = [self.states(batch)[:, frame_mask(batch, student)] for batch in batches]
        values = torch.cat(values, 1)
        self.mean, self.scale = values.mean(1)[:, None, None], values.std(1)[:, None, None].clamp(min=1e-6)


# --- model --------------------------------------------------------------------------------------------------


class ContiguousConvLayer(WavLMLayerNormConvLayer):
    """The stock layer's values and gradients; GELU and its gradient work on contiguous memory."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states).transpose(-2, -1).contiguous()
        return self.activation(self.layer_norm(hidden_states)).transpose(-2, -1).contiguous()


class Pretraining(nn.Module):
    """The backbone and the heads that are thrown away after pretraining."""

    def __init__(self, config: WavLMConfig, targets: FrameTargets, functionals: int, args, teacher=None):
        super().__init__()
        self.backbone, self.targets, self.args, self.teacher = WavLMModel(config), targets, args, teacher
        for layer in self.backbone.feature_extractor.conv_layers:
            layer.__class__ = ContiguousConvLayer
        self.frame_head = nn.Linear(config.hidden_size, len(targets.mean))
        pooled = 2 * config.hidden_size * (config.num_hidden_layers + 1)
        self.recording_head = nn.Linear(pooled, functionals) if functionals else None
        self.teacher_heads = teacher_heads(config, teacher) if teacher else None

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Losses by name; `loss` is their weighted sum."""
        valid = frame_mask(batch, self.targets.config)
        samples = torch.arange(batch["noisy"].shape[1], device=valid.device)
        output = self.backbone(
            batch["noisy"],
            attention_mask=(samples < batch["lengths"][:, None]).long(),
            mask_time_indices=batch["mask"],
            output_hidden_states=True,
        )
        with torch.autocast(valid.device.type, enabled=False):
            error = F.smooth_l1_loss(
                self.frame_head(output.last_hidden_state.float()), self.targets(batch), reduction="none", beta=0.5
            ).mean(-1)
            losses = {"masked": mean_at(error, batch["mask"]), "seen": mean_at(error, valid & ~batch["mask"])}
            loss = losses["masked"] + SEEN_WEIGHT * losses["seen"]
            if self.teacher is not None:
                losses |= self.teacher_losses(output, batch, valid)
                loss = loss + losses["taught_frames"] + POOLED_WEIGHT * losses["taught_recordings"]
            if self.recording_head is not None:
                pooled = pool(output.hidden_states, valid)
                losses["recording"] = F.mse_loss(self.recording_head(pooled), batch["functionals"])
                loss = loss + self.args.recording_weight * losses["recording"]
        return {"loss": loss, **losses}

    def teacher_losses(self, output, batch: dict, valid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Squared error against the teacher's layers, of frames and of their mean and deviation over recordings."""
        targets = self.teacher.states(batch)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        depths = torch.linspace(0, len(states) - 1, len(targets)).round().int().tolist()
        said = [head(states[depth].float()) for head, depth in zip(self.teacher_heads, depths, strict=True)]
        error = (torch.stack(said) - targets).square().mean((0, 3))
        pooled = F.mse_loss(pool(said, valid), pool(targets, valid))
        return {"taught_frames": mean_at(error, valid), "taught_recordings": pooled}


def teacher_heads(config: WavLMConfig, teacher: Teacher) -> nn.ModuleList:
    """One for each of the teacher's layers; where the student has its shape they begin by taking it for the teacher."""
    layers, width = teacher.mean.shape[0], teacher.mean.shape[-1]
    heads = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in range(layers))
    if (layers, width) == (config.num_hidden_layers + 1, config.hidden_size):
        for head, mean, scale in zip(heads, teacher.mean[:, 0, 0], teacher.scale[:, 0, 0], strict=True):
            head.weight.data.copy_(torch.diag(1 / scale))
            head.bias.data.copy_(-mean / scale)
    return heads


def mean_at(error: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean of error (batch, frames) where True; 0 where nothing is."""
    return (error * where).sum() / where.sum().clamp(min=1)


def pool(hidden_states, valid: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation over valid frames of every layer: (batch, layers * 2 * hidden) float32."""
    states = torch.stack(tuple(hidden_states), 1).float()  # (batch, layers, frames, hidden)
    weight = valid[:, None, :, None] / valid.sum(1)[:, None, None, None]
    mean = (states * weight).sum(2)
    variance = ((states - mean[:, :, None]).square() * weight).sum(2)
    return torch.cat([mean, (variance + 1e-6).sqrt()], -1).flatten(1)


class MovingAverage:
    """Exponential moving average of a module's weights; its decay grows to AVERAGE_DECAY as steps are taken."""

    def __init__(self, module: nn.Module):
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int):
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value.detach(), 1 - decay)


# --- training -----------------------------------------------------------------------------------------------


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


class Since:
    """What happened since the last line of the log: sums of losses by name, steps, seconds of audio."""

    def __init__(self):
        self.sums, self.steps, self.audio_seconds, self.started = {}, 0, 0.0, time.monotonic()

    def add(self, losses: dict, lengths: torch.Tensor):
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.steps += 1
        self.audio_seconds += float(lengths.sum()) / SAMPLING_RATE


class Run:
    """One pretraining run in a folder: `training.pt` (all to resume from), `log.jsonl`, `backbone/`."""

    def __init__(self, args, accelerator: Accelerator, model: Pretraining):
        self.args, self.accelerator, self.output = args, accelerator, Path(args.output)
        self.average = MovingAverage(model.backbone)
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
        since = Since()
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
                since = Since()
            if now - saved > 60 * self.args.save_minutes:
                self.save()
                saved = now
        if since.steps:
            self.log(since, self.learning_rate(progress))
        self.save()

    def take_step(self, batch: dict, learning_rate: float) -> dict:
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.accelerator.autocast():
            losses = self.parallel(batch)
        self.accelerator.backward(losses["loss"])
        self.accelerator.clip_grad_norm_(self.parallel.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model.backbone, self.step)
        return losses

    def log(self, since: "Since", learning_rate: float):
        means = {name: round(float(total) / since.steps, 4) for name, total in since.sums.items()}
        speed = since.audio_seconds * self.processes / (time.monotonic() - since.started)
        line = {
            "step": self.step,
            **means,
            "learning_rate": round(learning_rate, 7),
            "audio_hours": round(self.audio_hours, 3),
            "training_hours": round(self.seconds / 3600, 4),
            "times_real_time": round(speed, 1),
        }
        if not math.isfinite(means["loss"]):
            raise RuntimeError(f"loss is {means['loss']} at step {self.step}; lower --learning_rate and resume")
        if self.accelerator.is_main_process:
            print(json.dumps(line), flush=True)
            with open(self.output / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")


def native_precision() -> str:
    """bf16, or no where the GPU or processor would only imitate it, tens of times slower than float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "no"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("output", help="folder of the run; an interrupted run in it is resumed")
    add("--speech", nargs="+", required=True, help="folders of recordings, searched recursively")
    add("--noise", nargs="*", default=[], help="folders of noise recordings")
    add("--noise_leave_out", nargs="*", default=[], help="file-name prefixes of noise kept for testing")
    add("--opensmile", action="store_true", help="also predict ComParE's descriptors and functionals")
    add("--backbone", help="folder of a backbone whose weights and sizes to start from")
    add("--teacher", help="folder or Hub id of a pretrained speech encoder to learn from")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="learning rate falls to zero over so many steps")
    budget.add_argument("--hours", type=float, help="... or over so many hours of training")
    add("--batch_size", type=int, default=16, help="recordings per process")
    add("--crop_seconds", type=float, default=3.0)
    add("--learning_rate", type=float, default=1e-3)
    add("--whole_share", type=float, default=0.2, help="share of recordings in which nothing is masked")
    add("--noisy_share", type=float, default=0.55, help="share of recordings disturbed")
    add("--varied_share", type=float, default=0.0, help="share of recordings played faster, slower, brighter or duller")
    add("--recording_weight", type=float, default=0.5, help="weight of the loss on functionals")
    add("--save_minutes", type=float, default=4.0)
    add("--log_every", type=int, default=50)
    add("--workers", type=int, default=0, help="processes that make batches; 0: the training process itself")
    precisions = {"choices": ("no", "bf16"), "default": native_precision()}
    add("--mixed_precision", **precisions, help="default here: %(default)s (bf16 where it is not imitated)")
    add("--sizes", type=json.loads, default={}, help="JSON: fields of WavLMConfig other than the compact ones")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def open_recordings(args, accelerator: Accelerator):
    cache = Path(args.output) / "cache"
    with accelerator.main_process_first():
        speech = Recordings.build(cache / "speech", args.speech, opensmile=args.opensmile)
        noise = None
        if args.noise:
            noise = Recordings.build(cache / "noise", args.noise, leave_out=args.noise_leave_out)
    return speech, noise


def main(argv=None):
    args = parse_arguments(argv)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())
    if accelerator.is_main_process:
        remove_unfinished(args.output)
    config = WavLMConfig.from_pretrained(args.backbone) if args.backbone else backbone_config(**args.sizes)
    teacher = Teacher(args.teacher, config, accelerator.device) if args.teacher else None
    speech, noise = open_recordings(args, accelerator)
    functionals = principal_functionals(speech.functionals) if args.opensmile else None
    processes = range(accelerator.num_processes)
    streams = [MixtureStream(speech, noise, functionals, args, config, rank) for rank in processes]
    accelerator.print(f"{len(speech)} recordings, {speech.lengths.sum() / SAMPLING_RATE / 3600:.2f} h")

    torch.manual_seed(args.seed)
    some = [streams[0][-1 - i + 2**31] for i in range(16)]
    targets = FrameTargets(config, descriptors=N_DESCRIPTORS if args.opensmile else 0)
    targets.standardize(some)
    if teacher:
        on_device = [{name: value.to(accelerator.device) for name, value in batch.items()} for batch in some]
        teacher.standardize(on_device, config)
    model = Pretraining(config, targets, functionals.shape[1] if args.opensmile else 0, args, teacher)
    if args.backbone:
        model.backbone.load_state_dict(WavLMModel.from_pretrained(args.backbone, dtype=torch.float32).state_dict())
    accelerator.print(f"{sum(p.numel() for p in model.backbone.parameters()) / 1e6:.2f} M parameters")
    Run(args, accelerator, model).train(streams[accelerator.process_index])


if __name__ == "__main__":
    main()
