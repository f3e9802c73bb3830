"""Embeddings and scores of any number of recordings, as Parquet shards.

    accelerate launch scripts/embed_corpus.py --model MODEL --input FOLDER --output OUT
    torchrun --nproc_per_node 4 scripts/embed_corpus.py --model MODEL --input manifest.csv --output OUT

`--input`: a folder (audio files at any depth), a manifest (.csv, .tsv, .json, .jsonl with a column of paths, relative
to it), a folder by `save_to_disk`, or the id of a dataset on the Hub. Folders, manifests, what these list and
`--output` may be addresses too (s3://…, https://…, whatever fsspec has a package for). Run it again after a kill and it
goes on: whole shards stay, and what is damaged, what failed and files that changed since are done again. What does not
decode is listed in OUT/failed.csv with its reason. Several processes share the shards; on the CPU accelerate needs
`--multi_gpu --num_processes N` to start N of them (its `--cpu` starts one), torchrun does not. With `--engine ray`
those of a Ray cluster do, which all see the same paths: that of RAY_ADDRESS, or this machine's cores. A task is a
shard, takes 1 + `--workers` cores, and a GPU where there are some; if its process dies it is done again. Read back:

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
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from train.corpus_embedding import EMBEDDINGS  # noqa: E402 (torch and all that needs it later: --help comes at once)

BARRIER_LIMIT = timedelta(days=30)  # processes wait for one another at the end, however long the slowest takes
SOME_FAILED = 3  # exit status


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
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes", help="who shares out the shards")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", help="default: each process's GPU, or the CPU")
    parser.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="skip: failed files are fine"
    )
    args = parser.parse_args(argv)
    for name, least in (("shard_size", 1), ("batch_seconds", 0.1), ("max_seconds", 0), ("workers", 0)):
        if not getattr(args, name) >= least:  # nor NaN
            parser.error(f"--{name} {getattr(args, name)}: give {least} or more.")
    if args.batch_seconds == float("inf"):
        parser.error("--batch_seconds inf: give as many as fit the memory.")
    if args.engine == "ray" and find_spec("ray") is None:
        parser.error("--engine ray needs Ray: pip install -e '.[ray]'")
    if args.engine == "ray" and "WORLD_SIZE" in os.environ:
        parser.error("--engine ray starts its own processes: run it without torchrun or accelerate.")
    return args


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    args = parse_arguments(argv)
    import torch
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from train.corpus_embedding.job import Job

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_cpu = args.device == "cpu" or args.engine == "ray" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, **({"timeout": BARRIER_LIMIT} if several else {}))
    job = Job(args, state.device if on_cpu else args.device or state.device, lists=state.is_main_process)
    with job.store.lock() if state.is_main_process else nullcontext():
        if state.is_main_process:
            job.open()
        state.wait_for_everyone()
        todo = job.attach().todo(range(job.store.n_shards)[state.process_index :: state.num_processes])
        with tqdm(total=sum(map(len, todo.values())), unit="rec", disable=None) as progress:
            run(args, job, todo, progress.update)
        print(f"process {state.process_index + 1} of {state.num_processes} embedded {len(todo)} shards", flush=True)
        state.wait_for_everyone()
        n_rows, n_failed = job.store.close() if state.is_main_process else (0, 0)
    if state.is_main_process:
        failed = job.store.folder / "failed.csv"
        print(f"{n_rows} rows in {job.store.n_shards} shards, {n_failed} failed (see {failed})")
    if several:
        state.destroy_process_group()
    return SOME_FAILED if n_failed and args.on_bad_audio == "error" else 0


def run(args, job, todo: dict[int, list[int]], told) -> None:
    if args.engine == "ray":
        from train.corpus_embedding.ray_cluster import run_on_ray

        return run_on_ray(args, todo, told)
    for shard, places in todo.items():
        job.run(shard, places, told)


def is_expected(error: Exception) -> bool:
    """Whether one line tells all of it."""
    from modeling_edrl_mea import RecordingError
    from train.data.recordings import CorpusError
    from train.run_folder import RunError

    return isinstance(error, (RunError, CorpusError, RecordingError, OSError))


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run it again and it goes on") from None
    except Exception as error:
        if not is_expected(error):
            raise
        raise SystemExit(f"error: {error}") from error
    sys.exit(status)
