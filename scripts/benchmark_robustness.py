"""How robust speech emotion models and training recipes are: one report over folds, corpora and corruptions.

    python scripts/benchmark_robustness.py --corpus emodb=DIR --corpus ravdess=DIR --noise DIR --rir DIR --output DIR \\
        --model PATH_OR_HUB_ID --recipe linear=linear.yaml --recipe ours=ours.yaml --baseline linear

A model is tested on whole corpora, clean and corrupted; a recipe (settings of train/run.py, see train/arguments.py) is
trained per speaker-independent fold, per ordered pair of corpora, and with one corpus left out. OUTPUT gets
report.json (hub_card/schema.py says what its fields mean), report.md and plots. Killed, it goes on where it was.
The exit status is 1 where anything could not be measured: the report lists what and why.
"""

import argparse
import logging
import re
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

logger = logging.getLogger("benchmark_robustness")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    some = {"nargs": "+", "default": []}
    rows = {"action": "append", "default": [], "metavar": "[NAME=]…"}
    add("--model", **rows, help="folder or Hub id of an audio-classification model; may be given several times")
    add("--recipe", **rows, help="YAML file with settings of train/run.py; may be given several times")
    add("--corpus", action="append", required=True, metavar="NAME=DIR", help="as train/run.py's --dataset_name")
    add("--output", type=Path, required=True, help="folder of the report")
    add("--noise", help="folder of noise recordings; a part of them never serves in training")
    add("--rir", help="folder of room impulse responses; likewise")
    add("--baseline", help="row that the others are compared to; default: the first")
    add(
        "--adapt",
        **some,
        choices=["test", "speaker"],
        help="further rows: adapted to a test's recordings, or a speaker's",
    )
    add("--on_leak", choices=["error", "drop"], default="error", help="drop what corpora share from the later one")
    add("--label_scheme", default="four_emotions", help="four_emotions, arousal or valence")
    add("--attributes", **some, help="also rated, as arousal valence dominance, where a corpus has ratings")
    add("--label_map", **some, metavar="[MODEL:]LABEL=EMOTION", help="for labels that are no known words")
    add("--protocols", nargs="+", help="some of clean, corruption, cross_corpus, leave_one_corpus_out; default: all")
    add("--corruptions", nargs="+", help="names, such as noise_esc_10 gaussian room mp3; default: all there are")
    add("--levels", nargs="+", type=int, default=[1, 2, 3], help="of the corruptions, 1 mild to 3 hard")
    add("--folds", type=int, help="folds a corpus; default: one a speaker up to 12 speakers, else 5")
    add("--emobox_folds", **some, metavar="NAME=DIR", help="EmoBox's data/<corpus>, for its folds")
    add("--test_list", **some, metavar="NAME=FILE", help="recordings that a model, or a cross-corpus test, is given")
    add("--max_recordings", type=int, help="at most so many a corpus, spread over speakers and emotions")
    add("--jobs", type=int, default=1, help="trainings at once, each on one core (not with a GPU)")
    add("--cache", type=Path, help="folder of embeddings and predictions, may be shared; default: OUTPUT/cache")
    add("--seed", type=int, default=0, help="of folds, corruptions and noisy copies")
    add("--device", help="default: cuda where there is one")
    add("--trust_remote_code", action="store_true", help="run code that a model on the Hub brings")
    options = parser.parse_args(argv)
    if not options.model + options.recipe:
        parser.error("nothing to measure: give --model or --recipe")
    return options


def main(argv: list[str] | None = None) -> dict:
    """Returns the report."""
    options = parse(argv)
    start = time.perf_counter()
    import transformers

    from train.benchmark import report as benchmark_report
    from train.evaluation.report import write_report

    transformers.utils.logging.set_verbosity_error()
    benchmark, contenders = prepare(options)
    cells = benchmark.run(contenders)
    report = benchmark_report.make_report(
        benchmark,
        contenders,
        cells,
        command=shlex.join(["python", *(sys.argv if argv is None else ["scripts/benchmark_robustness.py", *argv])]),
        seed=options.seed,
        baseline=options.baseline or contenders[0].name,
        noise_dir=options.noise,
        rir_dir=options.rir,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    benchmark_report.add_plots(report, benchmark, cells, contenders, options.output)
    report["duration_seconds"] = round(time.perf_counter() - start, 1)
    path = write_report(report, options.output)
    print(f"\n{path}: {len(report['results'])} results, {len(report['errors'])} not measured")
    return report


def prepare(options):
    """(Benchmark, contenders), or ValueError for what the options ask for and there is not."""
    import torch

    from train.benchmark.protocols import PROTOCOLS, plan, read_folds, read_list
    from train.benchmark.runner import Benchmark
    from train.data.corpora import concatenate_corpora
    from train.data.ratings import scales_of
    from train.data.summary import as_text, summary_of
    from train.degradation.augmentation import Augmentation
    from train.degradation.corruptions import corruptions
    from train.evaluation.predictions import SUFFIXES

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    protocols = options.protocols or list(PROTOCOLS)
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"No protocol {', '.join(sorted(unknown))}; there are {', '.join(PROTOCOLS)}.")
    cache = options.cache or options.output / "cache"
    corpora, classes, notes = read_corpora(options, cache)
    scales = scales_of(concatenate_corpora(corpora.values()))
    contenders = make_contenders(options, classes, cache, scales)
    notes += [note for contender in contenders for note in contender.notes(corpora)]
    data = summary_of(corpora, notes)
    print(f"\n{as_text(data)}\n", flush=True)
    names = [contender.name for contender in contenders]
    rows = [name + SUFFIXES[mode] for name in names for mode in ("plain", *options.adapt)]
    if options.baseline and options.baseline not in rows:
        raise ValueError(f"--baseline {options.baseline} is no row; there are {', '.join(names)}.")
    given = {name: read_folds(folder, corpora[name]) for name, folder in pairs(options.emobox_folds, corpora)}
    listed = {name: read_list(file, corpora[name]) for name, file in pairs(options.test_list, corpora)}
    trials, errors = [], []
    if options.recipe:
        trials, errors = plan(corpora, protocols, options.folds, given, listed, seed=options.seed)
    conditions = []
    if "corruption" in protocols:
        chosen = tuple(options.corruptions) if options.corruptions else None
        conditions = corruptions(options.noise, options.rir, chosen, tuple(options.levels), options.seed)
    augmentation = None
    if any(contender.noisy_copies for contender in contenders):
        # No babble: a fold's training voices would be another fold's test voices.
        augmentation = Augmentation(options.noise, options.rir, seed=options.seed)
    jobs = options.jobs if options.device == "cpu" else 1
    about = (augmentation, options.adapt, jobs, listed, errors, data)
    return Benchmark(corpora, trials, conditions, cache, *about, scales=scales), contenders


def read_corpora(options, cache: Path) -> tuple[dict, list[str], list[str]]:
    """Corpora by name, capped, the classes that all of them share, and what was done in reading."""
    from train.benchmark.protocols import capped
    from train.data.corpora import load_corpus
    from train.data.leaks import described, one_voice_a_speaker, shared_rows, without
    from train.data.recordings import NO_LABEL, CorpusError, bad_recordings, listed
    from train.data.summary import collected_notes

    found, notes = {}, []
    for source in options.corpus:
        with collected_notes() as said:
            dataset = load_corpus(source, label_scheme=options.label_scheme, attributes=options.attributes)
            if options.attributes:  # emotions are what folds and rows are about
                dataset = dataset.filter(lambda row: row["label"] != NO_LABEL)
        notes += said
        name = dataset["corpus"][0]
        if name in found:
            raise CorpusError(f"Two corpora are called {name}: give one another name, --corpus NAME={source}.")
        found[name] = capped(dataset, options.max_recordings)
        bad = bad_recordings(list(found[name]["audio"]), cache)
        if bad:
            problems = listed(list(bad.values()))
            raise CorpusError(f"{name}: {len(bad)} recordings cannot be used; repair or remove them:{problems}")
        found[name] = one_voice_a_speaker(found[name], name, options.on_leak == "drop", notes)
    for place, name in enumerate(list(found)[1:], start=1):
        shared = shared_rows(found[name], list(found.values())[:place])
        if shared and options.on_leak != "drop":
            what = described(found[name], shared)
            raise CorpusError(f"{name} shares with the corpora before it {what}: leave them out by --on_leak drop.")
        if shared:
            notes.append(f"{name}: dropped, as shared with the corpora before it, {described(found[name], shared)}")
            found[name] = without(found[name], shared)
    classes = {tuple(dataset.features["label"].names) for dataset in found.values()}
    if len(classes) > 1:
        raise CorpusError("The corpora's emotions differ: use --label_scheme four_emotions, arousal or valence.")
    return found, list(classes.pop()), notes


def make_contenders(options, classes: list[str], cache: Path, scales: dict) -> list:
    from train.benchmark.hub_models import HubModel
    from train.benchmark.recipes import Recipe

    contenders = []
    for source in options.model:
        name, path = named(source)
        own = {}
        for entry in options.label_map:
            target, _, rest = entry.rpartition(":")
            label, equals, emotion = rest.partition("=")
            if not equals:
                raise ValueError(f"--label_map {entry}: write LABEL=EMOTION, or MODEL:LABEL=EMOTION.")
            if target in ("", name):
                own[label] = emotion
        settings = {"cache": cache / "embeddings", "device": options.device}
        settings["trust_remote_code"] = options.trust_remote_code
        contenders.append(HubModel(name, path, classes, options.label_scheme, own, **settings, attributes=list(scales)))
    for source in options.recipe:
        name, path = named(source)
        about = (classes, options.label_scheme, cache / "embeddings", options.device, scales)
        contenders.append(Recipe(name, path, *about))
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise ValueError(f"Rows must differ in name, got {', '.join(names)}: write --recipe NAME=FILE.")
    return contenders


def named(source: str) -> tuple[str, str]:
    """("ours", "x.yaml") of "ours=x.yaml"; without a name the file's or folder's."""
    name, equals, path = source.partition("=")
    if equals and not Path(source).exists():
        return name, path
    return re.sub(r"\.ya?ml$", "", source.rstrip("/").split("/")[-1]), source


def pairs(entries: list[str], corpora: dict) -> list[tuple[str, str]]:
    found = [entry.partition("=")[::2] for entry in entries]
    for name, _ in found:
        if name not in corpora:
            raise ValueError(f"{name} is none of the corpora {', '.join(corpora)}.")
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        finished = main()
    except (ValueError, OSError) as error:  # known before, or independent of, any measurement
        raise SystemExit(f"error: {error}") from error
    raise SystemExit(1 if finished["errors"] else 0)
