"""Train an EDRL-MEA model, test it three ways, save it:

accelerate launch train/run.py [CONFIG.yaml] --dataset_name DIR --output_dir OUT

The same command again goes on where a killed run stopped.
"""

import logging
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # started by path, as accelerate does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    from train.failures import end_by_ctrl_c

    signal.signal(signal.SIGINT, end_by_ctrl_c)  # also within imports, for seconds
if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv):  # before what takes seconds to import
    from train.help import text

    raise SystemExit(print(text()))

import transformers
from accelerate import PartialState
from datasets import ClassLabel, Features
from transformers import AutoConfig, set_seed

from hub_card.machine_traces import without_tokens
from hub_card.publish import publish
from hub_card.wording import figures_explained
from modeling_edrl_mea import RecordingError
from train.arguments import given_settings, parse_arguments, resolved
from train.data.corpora import concatenate_corpora, load_corpus
from train.data.dataset import SpeechDataset
from train.data.embeddings import fingerprint_of, make_folder
from train.data.files import HASHES, fingerprint_of_data, fingerprint_of_weights
from train.data.given_splits import is_split
from train.data.leaks import copies_in, described, heard_recordings, shared_rows, without
from train.data.ratings import scales_of
from train.data.recordings import NO_LABEL, CorpusError, bad_recordings, listed
from train.data.splits import SplitError, assert_no_shared_speaker, by_given_splits, split_by_speaker
from train.data.summary import as_text, collected_notes, summary_of
from train.degradation.augmentation import Augmentation
from train.degradation.corruptions import corruptions
from train.evaluation.calibration import fit_temperature
from train.evaluation.markdown import attributes_table, results_table
from train.evaluation.predictions import evaluate
from train.evaluation.report import model_entry, new_report, result_row, training_entry, write_report
from train.evaluation.unseen_corpora import thresholds_of
from train.failures import end_by_ctrl_c, explained
from train.model_setup import build_model, freeze
from train.run_folder import RunFolder, about_this_run
from train.trainer import EdrlMeaTrainer
from train.training_log import LogFile, explanation_of_scores, plot_training

logger = logging.getLogger(__name__)

TEST_LEVELS = (2, 3)  # of recorded noise, 10 and 0 dB; of Gaussian noise where there are no recordings


def main(argv: list[str] | None = None) -> dict:
    """Runs the whole of it and returns the report."""
    started = time.monotonic()
    model_args, data_args, config_args, training_args = arguments = parse_arguments(argv)
    push, training_args.push_to_hub = training_args.push_to_hub, False  # once, whole, at the end
    token, training_args.hub_token = training_args.hub_token, None  # the Trainer would write it to training_args.bin
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(training_args.output_dir) / "tensorboard"))
    folder = RunFolder(training_args.output_dir)
    if training_args.process_index == 0:
        folder.lock()
    transformers.utils.logging.set_verbosity_warning()
    set_seed(training_args.seed)
    cache = Path(data_args.embedding_cache or Path(training_args.output_dir) / "embeddings")
    make_folder(cache)
    HASHES.keep_in(cache / "hashes")
    with training_args.main_process_first(), collected_notes() as notes:  # the first streams what is on the Hub
        splits = read_splits(data_args, training_args.seed)
        labels, ranges = splits["train"].features["label"].names, scales_of(splits["train"])
        others = [read_other_corpus(source, data_args, labels) for source in data_args.test_dataset_name]
    splits, others, skipped = without_bad_recordings(splits, others, cache, data_args.on_bad_audio)
    splits, others = without_leaks(splits, others, data_args, notes)
    data = summary_of(splits | {other["corpus"][0]: other for other in others}, notes)
    if training_args.process_index == 0:
        print(f"\n{as_text(data)}\n", flush=True)
    model = build_model(model_args.model_name_or_path, labels, config_args, ranges)
    freeze(model, model_args)
    command = command_line(argv)
    training = training_speech(splits["train"], data_args, training_args.seed)
    claim_output_folder(folder, arguments, model, splits, training.augmentation, command)

    validation = SpeechDataset(splits["validation"], "validation speech")
    trainer = build_trainer(model, training, validation, arguments, cache)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or True)

    report = test(trainer, validation, splits["test"], others, data_args, command)
    report["duration_seconds"] = time.monotonic() - started
    report["training"] = about_training(splits, training.augmentation, arguments) | {"data": data}
    report["skipped_recordings"] = skipped
    thresholds = coverage_thresholds(trainer, validation, report)
    if trainer.is_world_process_zero():
        save(trainer, report, thresholds)
        if push:
            push_to_hub(training_args, token)
    return report


# --- recordings ---------------------------------------------------------------------------------------------


def read_splits(args, seed: int) -> dict:
    """Training, validation and test recordings: the splits that the corpora give, else split by speaker."""
    if not args.dataset_name:
        raise CorpusError("No --dataset_name: give a corpus to train on, e.g. --dataset_name emodb=DIR.")
    names = {"train": args.train_split_name, "validation": args.validation_split_name, "test": args.test_split_name}
    keep = args.keep_given_splits
    alone = None if keep else args.train_split_name  # which then is split anew
    corpus = concatenate_corpora([read_corpus(source, args, alone) for source in args.dataset_name])
    parts = by_given_splits(corpus, names) if keep else {}
    if parts:
        logger.info("The splits that the corpus gives are kept: %s.", ", ".join(parts))
        if "validation" not in parts:
            parts["train"], parts["validation"] = split_off(parts["train"], args.validation_fraction, seed, args)
        return parts
    if keep and args.train_split_name:
        corpus = corpus.select(
            [row for row, split in enumerate(corpus["split"]) if is_split(split or "", args.train_split_name)]
        )
    rest, test = split_off(corpus, args.test_fraction, seed, args)
    train, validation = split_off(rest, args.validation_fraction, seed, args)
    return {"train": train, "validation": validation, "test": test}


def split_off(dataset, fraction: float, seed: int, args):
    return split_by_speaker(dataset, fraction, seed, args.allow_shared_speakers)


def without_leaks(splits: dict, others: list, args, notes: list[str]) -> tuple[dict, list]:
    """The parts without what two of them share: recordings, and speakers unless they may be shared. Training and
    validation give way to the test, other corpora to training. SplitError unless to be dropped."""

    def cleaned(dataset, name: str, against: list, partner: str):
        found = shared_rows(dataset, against, not args.allow_shared_speakers)
        if not found:
            return dataset
        what = f"{name} shares with {partner} {described(dataset, found)}"
        if args.on_leak != "drop":
            raise SplitError(
                f"{what}. Results would be too good: leave them out by --on_leak drop, or, where the corpus's own "
                "splits share them, split by speaker by --keep_given_splits False."
            )
        notes.append(f"dropped, as {what}")
        return without(dataset, found)

    for name, dataset in [*splits.items(), *((other["corpus"][0], other) for other in others)]:
        repeated = sum(len(same) - 1 for same in copies_in(dataset, name))
        if repeated:
            notes.append(f"{name}: {repeated} recordings are copies of others in it")
    test = splits["test"]
    validation = cleaned(splits["validation"], "validation", [test], "test")
    train = cleaned(splits["train"], "train", [validation, test], "validation or test")
    assert_no_shared_speaker(train, validation, test, allow_shared_speakers=args.allow_shared_speakers)
    check_parts(train, validation, test)
    others = [cleaned(other, other["corpus"][0], [train, validation], "training") for other in others]
    return {"train": train, "validation": validation, "test": test}, [other for other in others if len(other)]


def check_parts(train, validation, test) -> None:
    names = train.features["label"].names
    if len(names) == 1:  # none: a model that rates attributes alone
        raise SplitError(f"All recordings show {names[0]!r}: a classifier needs recordings of two emotions or more.")
    absent = set(range(len(names))) - set(train["label"])
    if absent or not len(validation) or not len(test):
        lacking = ", ".join(names[i] for i in sorted(absent)) or "anything: validation or test is empty"
        raise SplitError(
            f"No training speaker shows {lacking}: add speakers, use another label_scheme, another seed, or "
            "--keep_given_splits False."
        )


def read_corpus(source: str, args, split: str | None = None):
    return load_corpus(
        source,
        label_scheme=args.label_scheme,
        audio_column=args.audio_column_name,
        label_column=args.label_column_name,
        speaker_column=args.speaker_column_name,
        split=split,
        config_name=args.dataset_config_name,
        revision=args.dataset_revision,
        skip_missing=args.on_bad_audio == "skip",
        attributes=args.attributes,
        emotions=args.problem_type != "regression",
        soft_labels=args.soft_labels,
    )


def read_other_corpus(source: str, args, labels: list[str]):
    """A corpus to test on, its labels in the model's order; recordings of other emotions are left out."""
    other = read_corpus(source, args)
    names = other.features["label"].names
    shared = [name for name in names if name in labels]
    if labels and not shared:
        raise CorpusError(
            f"{source} has none of the model's labels {labels}; it has {names}. Use label_scheme=four_emotions."
        )
    places = {NO_LABEL: NO_LABEL} | {names.index(name): labels.index(name) for name in shared}
    other = other.filter(lambda row: row["label"] in places)
    if names == labels:
        return other
    features = Features({**other.features, "label": ClassLabel(names=labels)})
    return other.map(lambda row: {"label": places[row["label"]]}, features=features)


def without_bad_recordings(splits: dict, others: list, cache: Path, on_bad_audio: str):
    """(splits, others, what was skipped). RecordingError lists all that cannot be used, unless to be skipped."""
    processes, skipped = PartialState(), []

    def good_part(dataset):
        audio = list(dataset["audio"])
        bad = bad_recordings(audio, cache, processes)
        skipped.extend(bad.values())
        return dataset.select([row for row in range(len(audio)) if row not in bad]) if bad else dataset

    splits = {name: good_part(dataset) for name, dataset in splits.items()}
    others = [good_part(dataset) for dataset in others]
    if skipped and on_bad_audio == "error":
        raise RecordingError(
            f"{len(skipped)} recordings cannot be used:{listed(skipped)}\nRepair or remove them, or go on without them "
            "by --on_bad_audio skip."
        )
    if skipped:
        logger.warning("Going on without %d recordings that cannot be used; report.json lists them.", len(skipped))
    return splits, others, skipped


def training_speech(dataset, args, seed: int) -> SpeechDataset:
    """The training recordings with their noisy copies, whose babble is made of their own voices."""
    augmentation = None
    if args.noisy_copies:
        voices = [recording for recording in dataset["audio"] if isinstance(recording, str)]
        augmentation = Augmentation(args.noise_dir, args.rir_dir, babble=voices, seed=seed)
    return SpeechDataset(dataset, "training speech", augmentation, args.noisy_copies, args.max_length_seconds, seed)


# --- model and settings -------------------------------------------------------------------------------------


def build_trainer(model, training: SpeechDataset, validation: SpeechDataset, arguments, cache: Path) -> EdrlMeaTrainer:
    model_args, _, _, training_args = arguments
    trainer = EdrlMeaTrainer(
        model,
        training_args,
        training,
        validation,
        patience=model_args.patience,
        embedding_cache=cache,
        backbone_learning_rate=model_args.backbone_learning_rate,
    )
    trainer.add_callback(LogFile(training_args.output_dir))
    trainer.stop_on_signals()
    return trainer


def command_line(argv: list[str] | None) -> str:
    """The command of this run; tokens are left out."""
    return without_tokens(shlex.join(["python", *sys.argv] if argv is None else ["python", "train/run.py", *argv]))


def claim_output_folder(folder: RunFolder, arguments, model, splits: dict, augmentation, command: str) -> None:
    """Note in the output folder what this run is; RunError where it holds another run. One process does it."""
    training_args = arguments[-1]
    settings = {
        **resolved(arguments),
        "backbone": fingerprint_of(model),
        "source_heads": source_heads(arguments[0].model_name_or_path, model),
        "augmentation": augmentation.fingerprint if augmentation is not None else None,
        "test_noise": [corruption.fingerprint for corruption in test_noise(arguments[1].noise_dir)],
        "data": {name: fingerprint_of_data(dataset) for name, dataset in splits.items()},
    }
    if training_args.process_index == 0:
        folder.open(settings, about_this_run(command, training_args.world_size))


def source_heads(source: str, model) -> str | None:
    """The fingerprint of the heads that training goes on from; None where they start at random."""
    if AutoConfig.from_pretrained(source).model_type != model.config.model_type:
        return None
    return fingerprint_of_weights(model)


def test_noise(noise_dir: str | None) -> list:
    """The corruptions that a run's report tests under."""
    if not noise_dir:
        return corruptions(names=("gaussian",), levels=TEST_LEVELS)
    return [c for c in corruptions(noise_dir, levels=TEST_LEVELS) if c.name.startswith("noise_")]


# --- results ------------------------------------------------------------------------------------------------


def test(trainer: EdrlMeaTrainer, validation: SpeechDataset, test_set, others, args, command: str) -> dict:
    """The report on clean, noisy and other corpora's speech; its temperature is fitted on validation speakers."""
    model, config = trainer.model, trainer.model.config
    labels = config.labels[: config.n_emotions]
    temperature = None
    if labels:
        held_out = evaluate(model, trainer.embed(model, validation)).labeled()
        temperature = fit_temperature(held_out.references, held_out.probabilities, held_out.speakers)
    trained_on = sorted(set(validation.dataset["corpus"]))
    cache, rows = trainer.cache(), []

    def row(dataset, title, corruption=None, **about):
        predictions = evaluate(model, SpeechDataset(dataset, title).embed(cache, corruption))
        about |= {"train": trained_on, "test": " + ".join(dict.fromkeys(dataset["corpus"])), "temperature": temperature}
        rows.append(result_row(name, labels, predictions, scales=config.attribute_scales, **about))

    name = Path(trainer.args.output_dir).name
    row(test_set, "test speech")
    for corruption in test_noise(args.noise_dir):
        about = {"condition": corruption.name, "level": corruption.level, "setting": corruption.setting}
        row(test_set, f"{corruption.name}, level {corruption.level}", corruption, protocol="corruption", **about)
    for other in others:
        row(other, other["corpus"][0], protocol="cross_corpus")
    entry = model_entry(
        name,
        labels,
        source=trainer.args.output_dir,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        temperature=temperature,
        fitted_on="validation speakers",
        stage=model.stage,
    )
    return new_report(command, seed=trainer.args.seed, models=[entry], results=rows)


def about_training(splits: dict, augmentation: Augmentation | None, arguments) -> dict:
    """The report's entry on what the model was trained on and how."""
    trained_on = [splits[name] for name in ("train", "validation")]
    return training_entry(
        trained_on,
        arguments[1].label_scheme,
        augmentation.describe() if augmentation is not None else None,
        given_settings(arguments),
        {name: dataset["speaker"] for name, dataset in splits.items()},
        heard_recordings(*trained_on),
    )


def coverage_thresholds(trainer: EdrlMeaTrainer, validation: SpeechDataset, report: dict) -> dict[str, float] | None:
    """Of the model at its temperature; None where it names no emotions. Every process calls it: they embed together."""
    if trainer.model.config.is_regression:
        return None
    temperature = report["models"][0]["calibration"]["temperature"]
    held_out = trainer.embed(trainer.model, validation)
    return thresholds_of(trainer.model, trainer.training_embeddings(), held_out, temperature)


def save(trainer: EdrlMeaTrainer, report: dict, thresholds: dict[str, float] | None) -> None:
    """The model directory (weights, code, feature extractor, report, plot), and the table on the screen."""
    folder = Path(trainer.args.output_dir)
    model, calibration = trainer.model, report["models"][0]["calibration"]
    if calibration:
        model.set_temperature(model.config.temperature * calibration["temperature"])
    model.config.coverage_thresholds = thresholds
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(partial)
    entry = report["models"][0]
    report["models"][0] = entry | {"fingerprint": model_entry("", [], source="", folder=partial)["fingerprint"]}
    # config.json last: without it the directory is no model, so a half-moved one cannot be loaded.
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, folder / file.name)
    partial.rmdir()
    if plot_training(folder):
        report["plots"]["training"] = "training.png"
    write_report(report, folder)
    why = explanation_of_scores(folder)
    if why:
        print(f"\n{why}")
    tables = results_table(report["results"], with_model=False), attributes_table(report["results"], with_model=False)
    print("", *filter(None, tables), figures_explained(report["results"]), sep="\n\n", end="\n\n")
    print(f"Saved to {folder}: pipeline('audio-classification', model='{folder}')")


def push_to_hub(args, token: str | None) -> None:
    """Publish the saved model with its report."""
    report = Path(args.output_dir) / "report.json"
    place = publish(args.output_dir, report, args.hub_model_id, bool(args.hub_private_repo), token)
    print(f"Published at {place}")


def start(argv: list[str] | None = None) -> None:
    """`main`, ended by one line where the user can do something about it; a fault of ours keeps its traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(argv)
    except KeyboardInterrupt:
        end_by_ctrl_c()
    except Exception as error:
        reason = explained(error)
        if reason is None:
            raise
        raise SystemExit(f"error: {reason}") from error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "huggingface_hub", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    start()
