"""What exported graphs cost in UAR, against the model that they were exported from:

edrl-mea export MODEL --output OUT
python scripts/benchmark_onnx.py MODEL OUT --corpus emodb=EMODB --speakers emodb_03 emodb_08
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, load_recording  # noqa: E402
from modeling_edrl_mea.onnx_export import prepare, session  # noqa: E402
from train.data.corpora import load_corpus  # noqa: E402
from train.data.files import write_json  # noqa: E402
from train.evaluation.markdown import markdown_table  # noqa: E402
from train.evaluation.metrics import uar  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("exported", type=Path, help="folder that edrl-mea export wrote")
    parser.add_argument("--corpus", required=True, help="labeled corpus, as train/run.py takes it")
    parser.add_argument("--label_scheme", default="four_emotions")
    parser.add_argument("--speakers", nargs="+", help="of the corpus; all by default")
    parser.add_argument("--report", type=Path, help="write the table here as JSON")
    args = parser.parse_args(argv)
    corpus = load_corpus(args.corpus, label_scheme=args.label_scheme)
    if unknown := set(args.speakers or ()) - set(corpus["speaker"]):
        parser.error(f"no speakers {sorted(unknown)}; {args.corpus} has {sorted(set(corpus['speaker']))}")
    if args.speakers:
        corpus = corpus.filter(lambda row: row["speaker"] in args.speakers)
    model = EdrlMeaForAudioClassification.from_pretrained(args.model).float().eval()
    print(f"{len(corpus)} recordings, {len(set(corpus['speaker']))} speakers of {args.corpus}\n")
    head, *rows = table = comparison(model, sorted(args.exported.glob("*.onnx")), corpus)
    print(markdown_table(head, rows))
    if args.report:
        write_json(args.report, {"tables": {"exported graphs": table}})


def comparison(model: EdrlMeaForAudioClassification, graphs: list[Path], corpus) -> list[list]:
    names = corpus.features["label"].names
    references = np.array([model.config.labels.index(names[label]) for label in corpus["label"]])
    inputs = [prepare(model, [load_recording(audio)]) for audio in corpus["audio"]]
    with torch.no_grad():
        tensors = ({name: torch.from_numpy(value) for name, value in row.items()} for row in inputs)
        predicted = {"model": np.array([int(model(**row).logits.argmax()) for row in tensors])}
    for graph in graphs:
        run = session(graph)
        predicted[graph.name] = np.array([int(run.run(["logits"], row)[0].argmax()) for row in inputs])
    reached = {name: 100 * uar(references, found) for name, found in predicted.items()}
    rows = [
        [name, f"{value:.2f}", f"{reached['model'] - value:.2f}", str((predicted[name] != predicted["model"]).sum())]
        for name, value in reached.items()
    ]
    return [["", "UAR %", "cost", "predictions changed"], *rows]


if __name__ == "__main__":
    main()
