"""Shards of a bulk embedding as tasks of a Ray cluster: a machine that comes takes its share, and what one that goes
was at is done again elsewhere."""

import functools
import json
import os
import time
from argparse import Namespace
from pathlib import Path

import torch

from train.run_folder import RunError

from .job import Job

ROOT = Path(__file__).resolve().parents[2]
CODE = [str(ROOT / package) for package in ("modeling_edrl_mea", "train")]  # which Ray takes to every machine
PATHS = ("model", "input", "output")  # that must be the same on every machine, wherever a process was started
N_RETRIES = 3  # of a shard whose process died


def run_on_ray(args, todo: dict[int, list[int]], told) -> None:
    """Embed `todo`'s places by shard on the cluster that RAY_ADDRESS names, or all cores of this machine.

    A task is one shard, and takes a GPU where the cluster has some; `told(n)` after each. Raises RunError.
    """
    import ray

    if not ray.is_initialized():
        ray.init(runtime_env={"py_modules": CODE}, include_dashboard=False, logging_level="warning")
    device = args.device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
    needs = {"num_cpus": 1 + args.workers, "num_gpus": int(device != "cpu")}
    task = ray.remote(**needs, max_retries=N_RETRIES, max_calls=0)(_embed_shard)  # a process goes on with its model
    given, begin, spent = _as_text(args, device), time.perf_counter(), 0.0
    running = {task.remote(given, shard, places): shard for shard, places in todo.items()}
    while running:
        (done,), _ = ray.wait(list(running))
        shard = running.pop(done)
        spent += _result(done, shard)
        told(len(todo[shard]))
    print(f"{spent:.0f} s of the workers' processor time in {time.perf_counter() - begin:.0f} s", flush=True)


def _as_text(args, device: str) -> str:
    """The arguments for a process that is started elsewhere."""
    local = {name: os.path.abspath(path) for name, path in vars(args).items() if name in PATHS and os.path.exists(path)}
    return json.dumps(vars(args) | local | {"device": device})


def _result(done, shard: int) -> float:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"Shard {shard} ended {1 + N_RETRIES} processes ({str(error).splitlines()[0]}). Give a smaller "
            "--batch_seconds or --max_seconds if it was the memory, and run this again: it goes on."
        ) from error


def _embed_shard(given: str, shard: int, places: list[int]) -> float:
    """Seconds of this process's time, without those of its start."""
    torch.set_num_threads(1)  # the core that the task asked for
    job, begin = _job(given), time.process_time()
    job.run(shard, places)
    return time.process_time() - begin


@functools.cache
def _job(given: str) -> Job:
    """This process's, kept from one shard to the next."""
    args = Namespace(**json.loads(given))
    return Job(args, args.device).attach()
