"""Measure all that the documents quote, and write it where they quote it.

    python scripts/measure.py DATA --output RUNS --write

What is measured are the commands in the documents below a mark <!--command:NAME RESULT-->; RESULT is the JSON that one
writes. They are run in RUNS as they stand, where EMODB, NOISE and so on are links to DATA/emodb, DATA/noise and so on,
and `openai/whisper-tiny.en`, if you put it or a link to it there, is used without a network. What one prints goes to
RUNS/NAME.log. Once it has ended well, RUNS/NAME.json holds its result, and it is not run again while that is there.
RUNS/cache keeps embeddings, so that what was killed is soon where it was.

`--write` puts what RUNS holds between the marks <!--measured:BLOCK--> and <!--end--> of the documents, and its plots
into train/images. What fails is reported, and the rest is measured and written all the same; the exit status is then 1.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from hub_card.wording import percent  # noqa: E402
from train.data.catalogue import CORPORA  # noqa: E402
from train.data.files import atomic_write  # noqa: E402
from train.evaluation.markdown import calibration_table, markdown_table  # noqa: E402

DOCUMENTS = ("README.md", "train/README.md", "scripts/README.md", "checkpoints/edrl-mea-whisper-tiny/README.md")
COMMAND = re.compile(r"<!--command:(\w+) (\S+)-->\s*```\n(.*?)```", re.S)
BLOCK = re.compile(r"<!--measured:(\w+)-->(.*?)<!--end-->", re.S)
FOLDERS = ("emodb", "ravdess", "nemo", "ased", "kett", "noise", "rir")  # of DATA


# --- measuring ----------------------------------------------------------------------------------------------


class Measurement(NamedTuple):
    result: str  # the JSON that the command writes
    command: str

    @property
    def folders(self) -> list[str]:
        return [name for name in FOLDERS if re.search(rf"\b{name.upper()}\b", self.command)]


def measurements() -> dict[str, Measurement]:
    """Those that the documents show, by name, in the order of the documents."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    return {name: Measurement(*rest) for text in texts for name, *rest in COMMAND.findall(text)}


def link_folders(data: Path, output: Path, measured: Iterable[Measurement]) -> None:
    """What commands name; ValueError with all folders of the data that are missing."""
    folders = sorted({folder for one in measured for folder in one.folders})
    if missing := [str(data / folder) for folder in folders if not (data / folder).is_dir()]:
        raise ValueError(f"no such folder: {', '.join(missing)}: unpack them there, or link to where they are.")
    links = {folder.upper(): data / folder for folder in folders}
    links |= {name: ROOT / name for name in ("train", "scripts", "checkpoints")}
    output.mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        link, target = output / name, target.resolve()
        if not link.is_symlink() or link.readlink() != target:  # another measurement may be reading through it
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def measure(name: str, one: Measurement, output: Path) -> str:
    """Why it failed, or nothing: then OUTPUT/NAME.json is there."""
    first = {"PATH": Path(sys.executable).parent, "PYTHONPATH": ROOT}
    paths = {key: os.pathsep.join(filter(None, (str(path), os.environ.get(key)))) for key, path in first.items()}
    log = output / f"{name}.log"
    with open(log, "w", encoding="utf-8") as printed:
        about = {"cwd": output, "env": os.environ | paths, "stdout": printed, "stderr": printed}
        status = subprocess.run(["sh", "-ec", one.command], **about).returncode
    if status:
        return f"exit status {status}; {log} ends:\n{log.read_text(encoding='utf-8', errors='replace')[-1000:]}"
    if not (output / one.result).is_file():
        return f"it wrote no {output / one.result}"
    with atomic_write(output / f"{name}.json") as temporary:
        shutil.copyfile(output / one.result, temporary)
    return ""


def measure_all(measured: Mapping[str, Measurement], output: Path) -> list[str]:
    """What of it failed. Nothing is measured twice."""
    left = {name: one for name, one in measured.items() if not (output / f"{name}.json").is_file()}
    problems = []
    for place, (name, one) in enumerate(left.items(), 1):
        print(f"{place} of {len(left)}, {name}; its output: {output / name}.log\n{one.command}", flush=True)
        started = time.perf_counter()
        why = measure(name, one, output)
        print(f"{'failed' if why else 'done'} after {(time.perf_counter() - started) / 60:.1f} min\n", flush=True)
        problems += [f"{name}: {why}"] if why else []
    return problems


# --- blocks of the documents: text made of results ------------------------------------------------------------

GAINS = "Gain by the number of recordings without labels"
HARM = "Harm"
GATES = "What the speech gate lets through"
SETS = "Sets at 0.9: % that hold the right label / labels in a set"
ON_WAVEFORMS = "frozen backbone, all epochs"
NOISE = "noise_esc_10"


def printed(result: dict, title: str) -> str:
    """A table as the benchmark printed it, but for rows of what does not run on this machine."""
    head, *rows = result["tables"][title]
    return markdown_table(head, [[titled(row[0]), *row[1:]] for row in rows if not str(row[1]).startswith("fails:")])


def titled(name) -> str:
    return CORPORA[name].title if name in CORPORA else name


def cells(result: dict, title: str, row: str) -> list[str]:
    return next(rest for name, *rest in result["tables"][title][1:] if str(name) == row)


def gain(result: dict, row: str) -> str:
    """ "10.3" of "+10.3 (+7.6…+12.7)"."""
    return cells(result, GAINS, row)[0].split()[0].lstrip("+")


def accuracy_change(result: dict, way: int) -> str:
    """Where 70% of a set have one emotion."""
    return f"{float(cells(result, HARM, '70% one emotion')[way].split(' / ')[1]):+.0f}"


def shipped_metric(report: dict, metric: str, condition: str = "clean", snr_db: int | None = None) -> str:
    places = {(row["condition"], (row["setting"] or {}).get("snr_db")): row["metrics"] for row in report["results"]}
    return percent(places[condition, snr_db][metric])


def results(shipped: dict, adaptation: dict) -> str:
    rows = {"a corpus left out": "none", "adapted to it": "all", "adapted to each speaker": "all, by speaker"}
    held_out = [shipped_metric(shipped, "uar", *place) for place in ((), (NOISE, 10), (NOISE, 0))]
    gained = [(title, *cells(adaptation, GAINS, row)) for title, row in rows.items()]
    lines = [["speakers held out", *held_out], *([title, clean, "", noisy] for title, clean, noisy in gained)]
    return markdown_table(["", "clean", "ESC-10 noise, 10 dB", "0 dB"], lines)


def backbones_compared(report: dict) -> str:
    from train.probing.recordings import CONDITIONS
    from train.probing.tables import left_out_rows

    speed, kinds = report.get("speed", {}), {name: found for name, found in report.items() if name != "speed"}
    names = list(next(iter(kinds.values()))["within"])
    protocols = list(next(iter(kinds.values()))["left_out"][names[0]])
    lines = []
    for (kind, found), apart in zip(kinds.items(), left_out_rows(kinds, names, protocols), strict=True):
        held_out = [sum(found["within"][name][c]["uar"] for name in names) / len(names) for c in CONDITIONS]
        ratio = f"{speed['WavLM-base'] / speed[kind]:.1f}" if kind in speed else ""
        lines.append([kind, " / ".join(f"{one:.1f}" for one in held_out), *apart[1:], ratio])
    head = ["features", f"speakers held out: {' / '.join(CONDITIONS)}", *(f"left out: {one}" for one in protocols)]
    return markdown_table([*head, "× WavLM-base's speed"], lines)


def recipes_compared(report: dict) -> str:
    """Means over corpora, with what a recipe gains over the baseline."""
    columns = {
        "clean": "clean",
        "noise at 10 and 0 dB": "noise at 0 dB",  # the command measures no other
        "leave-one-corpus-out": "a corpus left out",
        "cross-corpus": "trained on one other",
    }
    means = {(one["model"], one["over"]): percent(one["mean"]) for one in report["summaries"]}
    columns = {over: title for over, title in columns.items() if any(over == found for _, found in means)}
    gains = {(one["model"], one["over"]): percent(one["difference"], signed=True) for one in report["comparisons"]}
    head = ["recipe", *(cell for title in columns.values() for cell in (title, "less `linear`"))]
    lines = [
        [name, *(cell for over in columns for cell in (means.get((name, over), ""), gains.get((name, over), "")))]
        for name in dict.fromkeys(name for name, _ in means)
    ]
    return markdown_table(head, lines)


def settings_compared(result: dict) -> str:
    """A row an option, and what the choice was worth on the tests."""
    *varied, worth = result["tables"].values()
    head, options = varied[0][0], [row for table in varied for row in table[1:]]
    return "\n\n".join(markdown_table(head, rows) for head, *rows in ([head, *options], worth))


def scale_in_words(found: dict) -> str:
    memory = f"{found['mb']:,.0f} MB at most, {found['mb_before_training']:,.0f} of them before training"
    return f"{memory}, and {found['seconds']:.0f} s of processor time"


def times_faster(result: dict) -> str:
    return cells(result, ON_WAVEFORMS, "EdrlMeaTrainer, empty cache")[1].split()[0]


BLOCKS: dict[str, tuple[str, Callable[..., str]]] = {  # the measurements, and what makes text of their results
    "gain": ("adaptation", partial(gain, row="all")),
    "gain_by_speaker": ("adaptation", partial(gain, row="all, by speaker")),
    "accuracy_balanced": ("adaptation", partial(accuracy_change, way=1)),
    "accuracy_told": ("adaptation", partial(accuracy_change, way=2)),
    "gains": ("adaptation", partial(printed, title=GAINS)),
    "harm": ("adaptation", partial(printed, title=HARM)),
    "methods": ("adaptation", partial(printed, title="Against published methods, all recordings of the test")),
    "labels": ("adaptation", partial(printed, title="Labeled recordings")),
    "new_label": ("adaptation", partial(printed, title="A new label, fear, from four recordings")),
    "results": ("shipped adaptation", results),
    "speakers_tested": ("shipped", lambda report: str(report["results"][0]["n_speakers"])),
    "calibration_error": ("shipped", lambda report: shipped_metric(report, "ece_calibrated").split()[0]),
    "windows_of_noise": ("rejection", lambda result: cells(result, GATES, "esc10")[1]),
    "windows_of_speech": ("rejection", lambda result: cells(result, GATES, "speech: emodb")[1]),
    "sets_right": ("rejection", lambda result: cells(result, SETS, "mean")[3].split(" / ")[0]),
    "sets_size": ("rejection", lambda result: cells(result, SETS, "mean")[3].split(" / ")[1]),
    "gates": ("rejection", partial(printed, title=GATES)),
    "sets": ("rejection", partial(printed, title=SETS)),
    "signs": ("rejection", partial(printed, title="Warning signs, area under the ROC curve")),
    "backbones": ("backbones", backbones_compared),
    "recipes": ("recipes", recipes_compared),
    "calibration": ("recipes", calibration_table),
    "settings": ("settings", settings_compared),
    "times_faster": ("training_emodb", times_faster),
    "recall_ours": ("training_emodb", lambda result: cells(result, ON_WAVEFORMS, "EdrlMeaTrainer, empty cache")[2]),
    "recall_stock": ("training_emodb", lambda result: result["tables"][ON_WAVEFORMS][-1][3]),
    "training_emodb": ("training_emodb", partial(printed, title=ON_WAVEFORMS)),
    "stage_2_emodb": ("training_emodb", partial(printed, title="on cached embeddings")),
    "scale": ("scale", scale_in_words),
    "machine_compact": ("latency_compact", lambda result: result["machine"]),
    "latency_compact": ("latency_compact", partial(printed, title="recordings")),
    "latency_by_length": ("latency_compact", partial(printed, title="lengths")),
    "latency_base": ("latency_base", partial(printed, title="lengths")),
    "latency_whisper": ("latency_whisper", partial(printed, title="recordings")),
    "timeline_compact": ("latency_compact", lambda result: cells(result, "timeline", "ours float32")[0].split()[0]),
    "timeline_whisper": ("latency_whisper", lambda result: cells(result, "timeline", "ours float32")[0].split()[0]),
    "exported_compact": ("exported_compact", partial(printed, title="exported graphs")),
    "exported_whisper": ("exported_whisper", partial(printed, title="exported graphs")),
    "solver": ("solver", partial(printed, title="the solver")),
}


def filled(text: str, found: Mapping[str, dict], problems: list[str]) -> str:
    """A document with the blocks whose results were found; `problems` gets what they do not say."""

    def renewed(mark: re.Match) -> str:
        needs, made_of = BLOCKS[mark[1]]
        if not set(needs.split()) <= set(found):
            return mark[0]
        try:
            new = made_of(*(found[need] for need in needs.split()))
        except (LookupError, StopIteration, TypeError, ValueError) as error:
            problems.append(f"{mark[1]} cannot be made of {needs}: {error!r}")
            return mark[0]
        new = re.sub(r"(?<!\w)-(?=\d)", "−", f"\n{new}\n" if "\n" in new else new)
        return f"<!--measured:{mark[1]}-->{new}<!--end-->"

    return BLOCK.sub(renewed, text)


def write(measured: Mapping[str, Measurement], output: Path) -> list[str]:
    """The documents and plots, each whole or not at all. Returns what blocks could not be made."""
    found = {name: json.loads(path.read_bytes()) for name in measured if (path := output / f"{name}.json").is_file()}
    problems: list[str] = []
    for document in DOCUMENTS:
        text = filled((ROOT / document).read_text(encoding="utf-8"), found, problems)
        with atomic_write(ROOT / document) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for plot in (plot for name in found for plot in (output / measured[name].result).parent.glob("*.png")):
        if (target := ROOT / "train/images" / plot.name).is_file():
            with atomic_write(target) as temporary:
                shutil.copyfile(plot, temporary)
    return problems


def main(argv=None) -> list[str]:
    """Returns what failed."""
    known = measurements()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help=f"folder that holds {', '.join(FOLDERS)}")
    parser.add_argument("--output", type=Path, required=True, metavar="RUNS", help="folder to run in")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=known, help=f"some of {', '.join(known)}")
    parser.add_argument("--write", action="store_true", help="write into the documents all results that RUNS holds")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"no measurement {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {name: known[name] for name in options.only}
    link_folders(options.data, options.output, chosen.values())
    problems = measure_all(chosen, options.output)
    problems += write(known, options.output) if options.write else []
    print("".join(f"FAILED {problem}\n" for problem in problems), end="", file=sys.stderr)
    return problems


if __name__ == "__main__":
    try:
        raise SystemExit(1 if main() else 0)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
