"""The console command `edrl-mea`: a model's daily work without writing Python."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .recordings import RecordingError, find_audio

EMBEDDINGS = ("speech_embedding", "aligned_embedding")
TIMELINE_FORMATS = {".json": "to_json", ".csv": "to_csv", ".txt": "to_audacity", ".textgrid": "to_textgrid"}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    try:
        arguments.act(arguments)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edrl-mea", description="Speech emotion recognition with EDRL-MEA models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("model", help="folder of a model, or its id on the Hub")
        sub.set_defaults(act=act)
        return sub

    predict = command("predict", _predict, "Each recording's emotions with their probabilities, if anybody speaks.")
    predict.add_argument("recordings", nargs="+", help="audio files or folders of them")
    predict.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    predict.add_argument("--coverage", type=float, help="as 0.9: also the emotions that hold the right one so often")

    embed = command("embed", _embed, "Embeddings and scores of recordings in one Parquet file.")
    embed.add_argument("recordings", nargs="+", help="audio files or folders of them")
    embed.add_argument("-o", "--output", required=True, help="file that ends in .parquet")

    timeline = command("timeline", _timeline, "Emotions over time of one recording of any length.")
    timeline.add_argument("recording")
    timeline.add_argument("-o", "--output", help="file: .json, .csv, .txt (Audacity), .TextGrid (Praat), .png")
    timeline.add_argument("--window_s", type=float, default=4, help="seconds in a window")
    timeline.add_argument("--hop_s", type=float, default=1, help="seconds from one window to the next")

    adapt = command("adapt", _adapt, "Adapt a model to a folder of recordings, with or without labels, and save it.")
    adapt.add_argument("folder", help="of recordings; emotion and speaker may stand in its metadata.csv")
    adapt.add_argument("-o", "--output", required=True, help="folder for the adapted model and adaptation.json")
    adapt.add_argument(
        "--expected",
        type=_mix,
        default="balanced",
        help="how often each emotion occurs: balanced (the default), LABEL=SHARE,… or unknown",
    )

    export = command("export", _export, "Write model.onnx and model_int8.onnx, which need no torch.")
    export.add_argument("-o", "--output", required=True, help="folder for both")
    export.add_argument("--recordings", help="folder of recordings on which both are compared with the model")
    return parser


def _model(source: str):
    from transformers.utils import logging

    from .modeling_edrl_mea import EdrlMeaForAudioClassification

    logging.disable_progress_bar()
    return EdrlMeaForAudioClassification.from_pretrained(source).eval()


def _files(sources: Sequence[str]) -> list[Path]:
    """The recordings named, and those in the folders named; every path is checked before a model is loaded."""
    files: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise RecordingError(f"{source}: no such file or folder.")
        found = find_audio(source) if source.is_dir() else [source]
        if not found:
            raise RecordingError(f"{source} holds no audio file.")
        files += found
    return files


def _predictions(model, files: Sequence[Path], failed: list[Path], coverage: float | None = None) -> Iterator[tuple]:
    """(file, prediction, output of the model) of each recording. One that cannot be read is named and added to
    `failed`: the others are still worth the work."""
    from .prediction import Listener

    hear = Listener(model, coverage)
    for file in files:
        try:
            waveform = hear.load(file)
        except RecordingError as error:
            print(f"error: {error}", file=sys.stderr)
            failed.append(file)
            continue
        output = hear.forward([waveform])
        yield file, hear.told(output, [hear.gate.share(waveform)])[0], output


def _refuse_failed(failed: list[Path], files: Sequence[Path]) -> None:
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(files)} recordings could not be read.")


def _predict(arguments) -> None:
    files, failed = _files(arguments.recordings), []
    width = max(len(str(file)) for file in files)
    for file, prediction, _ in _predictions(_model(arguments.model), files, failed, arguments.coverage):
        if arguments.json:
            print(json.dumps({"path": str(file), **prediction.to_dict()}))
        else:
            print(f"{file!s:<{width}}  {_in_words(prediction, arguments.coverage)}")
    _refuse_failed(failed, files)


def _in_words(prediction, coverage: float | None) -> str:
    if not prediction.speech_share:
        return "no speech"
    scores = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
    numbers = [f"{name} {value:.2f}" for name, value in (*scores, *(prediction.attributes or {}).items())]
    covering = [] if coverage is None else [f"[{coverage:.0%}: {', '.join(prediction.emotions)}]"]
    return "  ".join(numbers + covering)


def _embed(arguments) -> None:
    output = Path(arguments.output)
    if output.suffix != ".parquet":
        raise ValueError(f"{output}: embeddings are written as Parquet; give a file that ends in .parquet.")
    try:
        from pyarrow import Table, parquet
    except ImportError as error:
        raise ImportError("embed writes Parquet: pip install pyarrow") from error
    files, failed, rows = _files(arguments.recordings), [], []
    for file, prediction, found in _predictions(_model(arguments.model), files, failed):
        row = {"path": str(file), "label": prediction.emotion, "scores": prediction.scores}
        row["speech_share"] = prediction.speech_share
        embeddings = {name: found[name] for name in EMBEDDINGS if found.get(name) is not None}
        rows.append(row | {name: values[0].float().tolist() for name, values in embeddings.items()})
    output.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(rows), output)
    print(f"{len(rows)} recordings in {output}")
    _refuse_failed(failed, files)


def _timeline(arguments) -> None:
    (file,) = _files([arguments.recording])
    output = Path(arguments.output) if arguments.output else None
    if output and output.suffix.lower() not in (*TIMELINE_FORMATS, ".png"):
        raise ValueError(f"{output}: write to a file that ends in {', '.join(TIMELINE_FORMATS)} or .png.")
    timeline = _model(arguments.model).predict_timeline(file, window_s=arguments.window_s, hop_s=arguments.hop_s)
    if output is None:
        print(timeline.to_csv(), end="")
    elif output.suffix.lower() == ".png":
        timeline.plot().figure.savefig(output, dpi=150)
    else:
        getattr(timeline, TIMELINE_FORMATS[output.suffix.lower()])(output)


def _mix(given: str) -> str | dict[str, float] | None:
    """`--expected` as [`EdrlMeaForAudioClassification.adapt`] takes it."""
    if given in ("balanced", "unknown"):
        return given if given == "balanced" else None
    try:
        return {label.strip(): float(share) for label, share in (part.split("=") for part in given.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r}: write balanced, unknown, or neutral=0.7,anger=0.1") from None


def _adapt(arguments) -> None:
    if not Path(arguments.folder).is_dir():
        raise RecordingError(f"{arguments.folder}: no such folder.")
    files = _files([arguments.folder])
    labels, speakers = _labels_and_speakers(Path(arguments.folder), files)
    model = _model(arguments.model)
    model.adapt(files, arguments.expected, speakers, labels)
    model.save_pretrained(arguments.output)
    report = json.dumps(model.adaptation.to_dict(), ensure_ascii=False, indent=1)
    Path(arguments.output, "adaptation.json").write_text(report, encoding="utf-8")
    print(f"{model.adaptation}\nSaved to {arguments.output}")


def _labels_and_speakers(folder: Path, files: list[Path]) -> tuple[list[str | None] | None, list[str] | None]:
    """Of each file, as metadata.csv tells (file_name, and emotion, speaker or both); None where it does not."""
    table = folder / "metadata.csv"
    if not table.exists():
        return None, None
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if "file_name" not in columns or not columns & {"emotion", "speaker"}:
            raise ValueError(f"{table} has the columns {sorted(columns)}; name them file_name, emotion, speaker.")
        rows = {folder / row["file_name"]: row for row in reader}
    strange = sorted(str(path) for path in rows.keys() - set(files))
    if strange:
        raise ValueError(f"{table} names {strange[0]}, which is no recording in {folder}.")
    told = [rows.get(path, {}) for path in files]
    speakers = [row.get("speaker") for row in told]
    if "speaker" in columns and not all(speakers):
        lacking = files[[bool(name) for name in speakers].index(False)]
        raise ValueError(f"{table} names no speaker of {lacking}: name one for every recording, or drop the column.")
    labels = [row.get("emotion") or None for row in told]
    return labels if "emotion" in columns else None, speakers if "speaker" in columns else None


def _export(arguments) -> None:
    from .onnx_export import export_to_folder, require_libraries

    require_libraries()
    model = _model(arguments.model).float()
    for graph in export_to_folder(model, arguments.output, arguments.recordings):
        print(f"{graph.path}: {graph.mebibytes:.1f} MiB, probabilities within {graph.difference:.1e} of the model's")


if __name__ == "__main__":
    main()
