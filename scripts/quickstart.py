"""The main job on speech that the project makes itself: two synthetic corpora by espeak-ng, both stages of training
from the model in `checkpoints/`, with speakers held out, a table of clean, noisy and cross-corpus results, and one
prediction through `pipeline`.

Real emotions sound different: this shows that everything works, not how well.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import pipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from modeling_edrl_mea import load_recording
    from train import run
    from train.data.corpora import load_corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "quickstart")
    parser.add_argument("--noisy_copies", type=int, default=1, help="augmented copies of each training recording")
    parser.add_argument("--num_train_epochs", type=int, default=8)
    options = parser.parse_args()

    speech, model = options.output_dir / "speech", options.output_dir / "model"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_demo_corpus.py", speech], check=True)
    shutil.rmtree(model, ignore_errors=True)  # of an earlier quickstart, perhaps with other settings
    run.main(
        [
            *("--model_name_or_path", str(ROOT / "checkpoints" / "edrl-mea-compact")),
            *("--dataset_name", str(speech / "demo_studio")),
            *("--test_dataset_name", str(speech / "demo_room")),
            *("--label_scheme", "four_emotions", "--noisy_copies", str(options.noisy_copies)),
            *("--num_train_epochs", str(options.num_train_epochs)),
            *("--output_dir", str(model), "--embedding_cache", str(options.output_dir / "embeddings")),
            *("--disable_tqdm", "True"),
        ]
    )
    unheard = load_corpus(str(speech / "demo_room"), label_scheme="four_emotions")[0]
    classifier = pipeline("audio-classification", model=str(model))
    scores = classifier({"array": load_recording(unheard["audio"]), "sampling_rate": 16_000})
    print(f"\n{Path(unheard['audio']).name}, of the corpus that was not trained on:")
    for score in scores:
        print(f"  {score['label']:<10} {score['score']:.2f}")


if __name__ == "__main__":
    main()
