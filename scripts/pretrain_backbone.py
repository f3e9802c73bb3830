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
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import WavLMConfig, WavLMModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea.recordings import SAMPLING_RATE  # noqa: E402
from train.data.files import remove_unfinished  # noqa: E402
from train.pretraining.mixtures import MixtureStream  # noqa: E402
from train.pretraining.recordings import N_DESCRIPTORS, Recordings  # noqa: E402
from train.pretraining.student import Pretraining, backbone_config  # noqa: E402
from train.pretraining.targets import FrameTargets, principal_functionals  # noqa: E402
from train.pretraining.teacher import Teacher  # noqa: E402
from train.pretraining.training_run import Run  # noqa: E402

MEASURED_BATCHES = 100  # by which a teacher's answers are standardized


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


def measure_teacher(teacher: Teacher, stream: MixtureStream, config: WavLMConfig, stored: Path):
    if not stored.exists():
        batches = (stream[-1 - i + 2**31] for i in range(MEASURED_BATCHES))
        on_device = [{name: value.to(teacher.device) for name, value in batch.items()} for batch in batches]
        teacher.standardize(on_device, config)
        teacher.save(stored)
    teacher.load(stored)


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
        with accelerator.main_process_first():
            measure_teacher(teacher, streams[0], config, Path(args.output) / "cache/teacher.pt")
    n_functionals = functionals.shape[1] if args.opensmile else 0
    model = Pretraining(config, targets, n_functionals, args.recording_weight, teacher)
    if args.backbone:
        model.backbone.load_state_dict(WavLMModel.from_pretrained(args.backbone, dtype=torch.float32).state_dict())
    accelerator.print(f"{sum(p.numel() for p in model.backbone.parameters()) / 1e6:.2f} M parameters")
    Run(args, accelerator, model).train(streams[accelerator.process_index])


if __name__ == "__main__":
    main()
