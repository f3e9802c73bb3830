#!/usr/bin/env python
"""Judge a backbone by what a linear probe on its frozen features recognizes of emotion.

Features: mean and standard deviation over frames of every layer. Probe: class-balanced logistic regression
whose C is chosen inside the training speakers. It is trained on clean speech and tested, speakers held out,
on clean speech and with unseen noise at 10 and 0 dB; trained on the whole of one corpus, on the others; and trained
on all but one, on that (`adapted`: with class biases from its recordings, without labels).
With `--noisy_copies` there is a row for what EDRL starts from in train/configs/whisper_tiny.yaml: a discriminant on the
first backbone, trained with that many noisy copies too, and adapted as `model.adapt` does.
The same probe on openSMILE's eGeMAPS and ComParE functionals (in the dev extra; left out where it is
not installed) and on an untrained copy of the first backbone shows what the numbers are worth.

    python scripts/probe_backbone.py checkpoints/wavlm-compact --corpora DATA/emodb DATA/ravdess \
        --noise DATA/noise/esc10 --cache /tmp/probe

A corpus is what train/run.py takes; noise files' names start with their fold, as ESC's do. Features are cached: a
second run takes minutes less.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from train.data.files import write_json  # noqa: E402
from train.degradation.augmentation import Augmentation  # noqa: E402
from train.degradation.sources import sound_files  # noqa: E402
from train.probing.features import BackboneFeatures, SmileFeatures  # noqa: E402
from train.probing.protocols import FOLD_DRAWS, FOLDS, judge  # noqa: E402
from train.probing.recordings import read_corpus  # noqa: E402
from train.probing.speed import measure_speed  # noqa: E402
from train.probing.tables import table  # noqa: E402


def kinds_of_features(args) -> dict:
    named = {Path(directory).resolve().name for directory in args.backbones}
    short = len(named) == len(args.backbones)  # runs of pretraining all call theirs `backbone`
    kinds = {Path(d).resolve().name if short else d: BackboneFeatures(d) for d in args.backbones}
    if args.untrained:
        kinds["untrained"] = BackboneFeatures(args.backbones[0], untrained=True)
    if args.opensmile:
        try:
            import opensmile  # noqa: F401

            kinds["eGeMAPS"] = SmileFeatures("eGeMAPSv02")
            kinds["ComParE"] = SmileFeatures("ComParE_2016")
        except ImportError:
            print("opensmile is not installed: eGeMAPS and ComParE are left out", file=sys.stderr)
    return kinds


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("backbones", nargs="+", help="folders or Hub ids of speech encoders")
    add("--corpora", nargs="+", required=True, help="as train/run.py's --dataset_name")
    add("--noise", type=Path, required=True)
    add(
        "--noisy_copies",
        type=int,
        default=0,
        help="also train a discriminant on the first backbone with so many copies",
    )
    add("--noise_folds", nargs="+", default=["4", "5"], help="folds of noise never used in training")
    add("--at_most", type=int, default=500, help="recordings per corpus")
    add("--cache", type=Path, default=Path("probe_cache"))
    add("--report", type=Path, help="write all numbers here as JSON")
    add("--untrained", action=argparse.BooleanOptionalAction, default=True)
    add("--opensmile", action=argparse.BooleanOptionalAction, default=True)
    add("--speed", action="store_true", help="also time the backbones against WavLM-base")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    args.cache.mkdir(parents=True, exist_ok=True)
    corpora = [read_corpus(folder, args.at_most) for folder in args.corpora]
    prefixes = tuple(f"{fold}-" for fold in args.noise_folds)
    noise = [str(path) for path in sound_files(args.noise) if path.name.startswith(prefixes)]
    if not noise:
        raise ValueError(f"no noise of folds {', '.join(args.noise_folds)} below {args.noise}")
    for corpus in corpora:
        print(f"{corpus.name}: {len(corpus.files)} recordings, {len(set(corpus.speakers))} speakers")
    print(
        f"noise: {len(noise)} recordings; probe: trained clean, {FOLD_DRAWS} draws of {FOLDS} speaker folds, "
        f"at most {args.at_most} recordings a corpus; UAR % [95% interval over speakers]\n",
        flush=True,
    )
    kinds = kinds_of_features(args)
    report = {kind: judge(corpora, extract, noise, args.cache) for kind, extract in kinds.items()}
    if args.noisy_copies:
        first, augmentation = next(iter(kinds)), Augmentation(args.noise, seed=0)
        name = f"{first}, discriminant with {args.noisy_copies} noisy copies"
        report[name] = judge(corpora, kinds[first], noise, args.cache, augmentation, args.noisy_copies)
    print(table(report, corpora))
    if args.speed:
        speed = report["speed"] = measure_speed(kinds)
        print(f"\n5 s of audio, processor seconds, {torch.get_num_threads()} threads")
        for name, seconds in speed.items():
            print(f"{name}: {seconds:.4f}, {speed['WavLM-base'] / seconds:.1f} times as fast as WavLM-base")
    if args.report:
        write_json(args.report, report)


if __name__ == "__main__":
    main()
