"""Embeddings and scores of any number of recordings, as Parquet shards.

    accelerate launch scripts/embed_corpus.py --model MODEL --input FOLDER --output OUT
    torchrun --nproc_per_node 4 scripts/embed_corpus.py --model MODEL --input manifest.csv --output OUT

`--input`: a folder (audio files at any depth), a manifest (.csv, .tsv, .json, .jsonl with a column of paths, relative
to it), a folder by `save_to_disk`, or the id of a dataset on the Hub. Run it again after a kill and it goes on: whole
shards stay, and what is damaged, what failed and files that changed since are done again. What does not decode is
listed in OUT/failed.csv with its reason. Several processes share the shards; on the CPU accelerate needs `--multi_gpu
--num_processes N` to start N of them (its `--cpu` starts one), torchrun does not. Read back:

    datasets.load_dataset("parquet", data_files="OUT/shards/*.parquet", split="train")

Columns: index (place in the listing), path, seconds, speech_share, label (none where nobody speaks), scores (by label),
and each of `--embeddings`.

Ends with 0 where every recording has its row or, by `--on_bad_audio skip`, its reason; with 3 where some failed; with 1
and one line where the run could not go on.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea import EdrlMeaForAudioClassification, RecordingError, SpeechGate  # noqa: E402
from train.corpus_embedding.embedder import Embedder, run_shards  # noqa: E402
from train.corpus_embedding.listing import Recordings, fingerprint_of_rows, list_paths, open_dataset  # noqa: E402
from train.corpus_embedding.shards import ShardStore  # noqa: E402
from train.data.files import fingerprint, fingerprint_of_weights  # noqa: E402
from train.data.recordings import CorpusError  # noqa: E402
from train.run_folder import RunError  # noqa: E402

EMBEDDINGS = ("speech_embedding", "aligned_embedding", "shared_embedding", "intra_class_embeddings")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BARRIER_LIMIT = timedelta(days=30)  # processes wait for one another at the end, however long the slowest takes
SOME_FAILED = 3  # exit status
OF_THE_COPY = ("_name_or_path", "transformers_version", "dtype")  # of a config: the same model in another place


def load_model(args, device) -> tuple[EdrlMeaForAudioClassification, list[str]]:
    model = EdrlMeaForAudioClassification.from_pretrained(args.model).eval().to(device, DTYPES[args.dtype])
    with torch.inference_mode():
        output = model(torch.zeros(1, model.feature_extractor().minimum_length, device=device, dtype=model.dtype))
    available = [name for name in EMBEDDINGS if getattr(output, name) is not None]
    wanted = args.embeddings or [name for name in EMBEDDINGS[:2] if name in available]
    absent = [name for name in wanted if name not in available]
    if absent:
        raise RunError(f"{args.model} ({model.config.arrangement}) has no {', '.join(absent)}; it has {available}.")
    return model, wanted


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory or Hub id")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--embeddings", nargs="+", choices=EMBEDDINGS, help="default: speech, and aligned if there is")
    parser.add_argument("--audio_column", default="audio", help="of a manifest or data set")
    parser.add_argument("--split", default="train", help="of a dataset on the Hub")
    parser.add_argument("--shard_size", type=int, default=2048, help="recordings in a shard: what a kill can cost")
    parser.add_argument("--batch_seconds", type=float, default=120, help="audio in a batch, padding included")
    parser.add_argument("--max_seconds", type=float, default=3 * 3600, help="longer files are listed as failed")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes beside each process")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", help="default: each process's GPU, or the CPU")
    parser.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="skip: failed files are fine"
    )
    args = parser.parse_args(argv)
    for name, least in (("shard_size", 1), ("batch_seconds", 0.1), ("max_seconds", 0), ("workers", 0)):
        if not getattr(args, name) >= least:  # nor NaN
            raise RunError(f"--{name} {getattr(args, name)}: give {least} or more.")
    if args.batch_seconds == float("inf"):
        raise RunError("--batch_seconds inf: give as many as fit the memory.")
    return args


def settings_of(args, model: EdrlMeaForAudioClassification, embeddings: list[str], rows) -> dict:
    """What a resumed run must share."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_THE_COPY}
    return {
        "model": fingerprint_of_weights(model, settings=fingerprint(config)),
        "input": os.path.abspath(args.input) if os.path.exists(args.input) else args.input,
        "data_set": None if rows is None else fingerprint_of_rows(rows, os.path.exists(args.input)),
        "embeddings": embeddings,
        "speech_gate": SpeechGate().kind,
        "dtype": args.dtype,
        "shard_size": args.shard_size,
    }


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    args = parse_arguments(argv)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, **({"timeout": BARRIER_LIMIT} if several else {}))
    is_main = state.is_main_process
    rows = open_dataset(args.input, args.split, args.audio_column)
    paths = list_paths(Path(args.input), args.audio_column) if rows is None and is_main else None
    model, embeddings = load_model(args, args.device or state.device)
    store = ShardStore(args.output, settings_of(args, model, embeddings, rows))
    with store.lock() if is_main else nullcontext():
        if is_main:
            store.open(len(paths if rows is None else rows), paths)
        state.wait_for_everyone()
        store.attach()
        rate = model.config.sampling_rate
        recordings = Recordings(store.listing(), Path(args.input), rows, args.audio_column, rate, args.max_seconds)
        shards = range(store.n_shards)[state.process_index :: state.num_processes]
        todo = {shard: places for shard in shards if (places := store.todo(shard, recordings.stamp))}
        run_shards(store, recordings, todo, Embedder(model, embeddings), int(args.batch_seconds * rate), args.workers)
        print(f"process {state.process_index + 1} of {state.num_processes} embedded {len(todo)} shards", flush=True)
        state.wait_for_everyone()
        n_rows, n_failed = store.close() if is_main else (0, 0)
    if is_main:
        print(f"{n_rows} rows in {store.n_shards} shards, {n_failed} failed (see {store.folder / 'failed.csv'})")
    if several:
        state.destroy_process_group()
    return SOME_FAILED if n_failed and args.on_bad_audio == "error" else 0


if __name__ == "__main__":
    try:
        status = main()
    except (RunError, CorpusError, RecordingError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run it again and it goes on") from None
    sys.exit(status)
