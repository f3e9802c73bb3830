"""Train an EDRL-MEA model, test it three ways, save it:

accelerate launch train/run.py [CONFIG.yaml] --dataset_name DIR --output_dir OUT
"""

import json
import logging
import os
import shlex
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, set_seed

if __package__ in (None, ""):  # started by path, as accelerate does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modeling_edrl_mea import EdrlMeaForAudioClassification
from train.arguments import parse_arguments
from train.augmentation import Augmentation
from train.corpora import concatenate_corpora, load_corpus
from train.corruptions import corruptions
from train.embeddings import EmbeddingCache, Embeddings
from train.evaluation import as_table, evaluate
from train.recordings import CorpusError
from train.splits import SplitError, assert_no_shared_speaker, split_by_speaker
from train.trainer import EdrlMeaTrainer

logger = logging.getLogger(__name__)

TEST_CORRUPTIONS = {
    2: "10 dB",
    3: "0 dB",
}  # levels of recorded noise; Gaussian noise where there are no recordings


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, config_args, training_args = parse_arguments(argv)
    transformers.utils.logging.set_verbosity_warning()
    set_seed(training_args.seed)
    train_set, validation_set, test_set = read_splits(data_args, training_args.seed)
    labels = train_set.features["label"].names
    others = [read_other_corpus(source, data_args, labels) for source in data_args.test_dataset_name]
    model = build_model(model_args.model_name_or_path, labels, config_args)

    cache = EmbeddingCache(model, data_args.embedding_cache or Path(training_args.output_dir) / "embeddings")
    with training_args.main_process_first(desc="embedding recordings"):
        training = embed(cache, train_set, "training speech")
        augmentation = build_augmentation(data_args, train_set, training_args.seed)
        if augmentation is not None:
            training = training.with_copies(noisy_copies(cache, train_set, augmentation, data_args.noisy_copies))
        validation = embed(cache, validation_set, "validation speech")
        tests = embed_tests(cache, test_set, others, data_args)

    trainer = EdrlMeaTrainer(model, training_args, training, validation, patience=model_args.patience)
    trainer.train()
    results = {name: evaluate(trainer.model, data) for name, data in tests.items()}
    if trainer.is_world_process_zero():
        save(
            trainer,
            results,
            augmentation,
            {"train": train_set, "validation": validation_set, "test": test_set},
        )
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return results


def read_splits(args, seed: int):
    """Training, validation and test recordings, which share no speaker."""
    if not args.dataset_name:
        raise CorpusError("No --dataset_name: give a corpus to train on, e.g. --dataset_name emodb=DIR.")
    corpus = concatenate_corpora([read_corpus(source, args, args.train_split_name) for source in args.dataset_name])
    rest, test = split_by_speaker(corpus, args.test_fraction, seed, args.allow_shared_speakers)
    train, validation = split_by_speaker(rest, args.validation_fraction, seed, args.allow_shared_speakers)
    assert_no_shared_speaker(train, validation, test, allow_shared_speakers=args.allow_shared_speakers)
    names = corpus.features["label"].names
    absent = set(range(len(names))) - set(train["label"])
    if absent:
        raise SplitError(
            f"No training speaker shows {', '.join(names[i] for i in sorted(absent))}: add speakers, use another "
            "label_scheme, or another seed."
        )
    return train, validation, test


def read_corpus(source: str, args, split: str | None = None):
    return load_corpus(
        source,
        label_scheme=args.label_scheme,
        audio_column=args.audio_column_name,
        label_column=args.label_column_name,
        speaker_column=args.speaker_column_name,
        split=split,
    )


def read_other_corpus(source: str, args, labels: list[str]):
    """A corpus to test on, its labels in the model's order; recordings of other emotions are left out."""
    other = read_corpus(source, args)
    names = other.features["label"].names
    shared = [name for name in names if name in labels]
    if not shared:
        raise CorpusError(
            f"{source} has none of the model's labels {labels}; it has {names}. Use label_scheme=four_emotions."
        )
    other = other.filter(lambda row: names[row["label"]] in labels)
    return (
        other.map(lambda row: {"label": labels.index(names[row["label"]])}, features=None) if names != labels else other
    )


def build_model(source: str, labels: list[str], config_args) -> EdrlMeaForAudioClassification:
    """New heads around a WavLM, or an EDRL-MEA model with these labels; the backbone is frozen."""
    settings = {name: value for name, value in vars(config_args).items() if value is not None}
    id2label = dict(enumerate(labels))
    config = AutoConfig.from_pretrained(source)
    if config.model_type == "edrl_mea":
        model = EdrlMeaForAudioClassification.from_pretrained(
            source, id2label=id2label, ignore_mismatched_sizes=True, **settings
        )
    else:
        model = EdrlMeaForAudioClassification.from_backbone(source, id2label=id2label, **settings)
    model.freeze_backbone()
    return model


def build_augmentation(args, train_set, seed: int) -> Augmentation | None:
    if not args.noisy_copies:
        return None
    voices = [recording for recording in train_set["audio"] if isinstance(recording, str)]
    return Augmentation(args.noise_dir, args.rir_dir, babble=voices, seed=seed)


def embed(cache: EmbeddingCache, dataset, title: str, condition=None) -> Embeddings:
    statistics = cache.embed(list(dataset["audio"]), condition, title=title)
    n = len(dataset)
    return Embeddings(statistics, torch.tensor(dataset["label"]), list(dataset["speaker"]), torch.arange(n))


def noisy_copies(cache: EmbeddingCache, dataset, augmentation: Augmentation, n_copies: int) -> list[torch.Tensor]:
    """Statistics of `n_copies` differently augmented copies of all recordings."""
    audio = list(dataset["audio"])
    names = [f"{corpus}/{row}" for row, corpus in enumerate(dataset["corpus"])]
    return [
        cache.embed(audio, augmentation, [f"{name}#{copy}" for name in names], f"noisy copy {copy + 1} of {n_copies}")
        for copy in range(n_copies)
    ]


def embed_tests(cache: EmbeddingCache, test_set, others, args) -> dict[str, Embeddings]:
    """What the model is tested on, by name: clean, noisy, and other corpora."""
    tests = {"clean": embed(cache, test_set, "test speech")}
    for corruption in corruptions(args.noise_dir, levels=tuple(TEST_CORRUPTIONS)):
        recorded = corruption.name.startswith("noise_")
        if recorded or (corruption.name == "gaussian" and not args.noise_dir):
            snr = corruption.setting["snr_db"]
            name = f"{corruption.name.removeprefix('noise_')} noise, {snr:g} dB"
            tests[name] = embed(cache, test_set, name, corruption)
    for other in others:
        name = f"other corpus: {other['corpus'][0]}"
        tests[name] = embed(cache, other, name)
    return tests


def save(trainer: EdrlMeaTrainer, results: dict, augmentation, splits: dict) -> None:
    """The model directory: weights, code, feature extractor, report; and the table on the screen."""
    folder = Path(trainer.args.output_dir)
    trainer.save_model()
    report = {
        "schema": 1,
        "command": shlex.join(["python", *sys.argv]),
        "labels": trainer.model.config.labels,
        "stage": trainer.model.stage,
        "augmentation": augmentation.describe() if augmentation is not None else None,
        "speakers": {name: sorted(set(dataset["speaker"])) for name, dataset in splits.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "results": results,
    }
    temporary = folder / "report.json.tmp"
    temporary.write_text(json.dumps(report, indent=2))
    os.replace(temporary, folder / "report.json")
    print(f"\n{as_table(results)}\n\nSaved to {folder}: pipeline('audio-classification', model='{folder}')")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "huggingface_hub", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
    except (CorpusError, SplitError) as error:
        raise SystemExit(f"error: {error}") from error
