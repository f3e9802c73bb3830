"""Time and memory of `MultiblockPLS` against multiblock-pls (NIPALS), scikit-learn and ikpls, in one run.

    python scripts/benchmark_alignment.py [--rows 2000 10000 50000] [--targets 4 768] [--components 8 32]

Five blocks of 256 columns with 40 common factors, float64 in memory. Every cell runs in a process of its own, on
one thread, after a small fit that loads the libraries; seconds are of processor time, so that other work on the
machine counts little, and the best of up to three fits (one where a fit takes over five seconds); memory is the peak
above what the data takes. A method over the time limit is stopped, and not tried again with more rows, targets or
components; its ratio is a lower bound. Needs Linux, and `pip install -e ".[dev]"`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

N_BLOCKS, BLOCK_SIZE, N_FACTORS = 5, 256, 40
OURS = ("fit", "stream")
OTHERS = ("ikpls", "scikit-learn", "multiblock-pls")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def make_data(n_rows: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((n_rows, N_FACTORS)) * np.linspace(3, 0.5, N_FACTORS)

    def observe(width):
        mixing = rng.standard_normal((N_FACTORS, width)) / np.sqrt(N_FACTORS)
        return factors @ mixing + rng.standard_normal((n_rows, width))

    return observe(N_BLOCKS * BLOCK_SIZE), observe(q)


def fit_ours(x, y, k, stream):
    from modeling_edrl_mea.multiblock_pls import MultiblockPLS

    blocks, pls = np.split(x, N_BLOCKS, axis=1), MultiblockPLS(k)
    if not stream:
        pls.fit(blocks, y)
        return None
    for start in range(0, len(x), 4096):
        pls.partial_fit([block[start : start + 4096] for block in blocks], y[start : start + 4096])
    begin = time.process_time()
    pls.solve()
    return time.process_time() - begin


def fit_ikpls(x, y, k):
    from ikpls.numpy import PLS

    PLS(algorithm=1).fit(x, y, k)


def fit_scikit_learn(x, y, k):
    from sklearn.cross_decomposition import PLSRegression

    PLSRegression(k).fit(x, y)


def fit_multiblock_pls(x, y, k):
    from mbpls.mbpls import MBPLS

    MBPLS(k, method="NIPALS").fit(np.split(x, N_BLOCKS, axis=1), y)


METHODS = {
    "fit": lambda x, y, k: fit_ours(x, y, k, stream=False),
    "stream": lambda x, y, k: fit_ours(x, y, k, stream=True),
    "ikpls": fit_ikpls,
    "scikit-learn": fit_scikit_learn,
    "multiblock-pls": fit_multiblock_pls,
}


def resident_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(method: str, data: str, k: int, limit: float) -> dict:
    """One cell, in its own process, which dies of SIGPROF when the first fit takes over `limit` seconds."""
    fit = METHODS[method]
    fit(*make_data(300, 4), 2)
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mb("VmRSS")
    seconds, solve = [], None
    signal.setitimer(signal.ITIMER_PROF, limit)
    while len(seconds) < 3 and (not seconds or seconds[0] < 5):
        begin = time.process_time()
        solve = fit(x, y, k)
        seconds.append(time.process_time() - begin)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"seconds": min(seconds), "solve": solve, "mb": resident_mb("VmHWM") - before}


def measure_apart(method: str, data: str, k: int, limit: float) -> dict | None:
    """`measure` in a new process; None where it takes over `limit` seconds."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", method, data, str(k), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode == -signal.SIGPROF:
        return None
    if done.returncode:
        raise RuntimeError(f"{method} failed with exit status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table_row(n_rows: int, q: int, k: int, cells: dict, limit: float) -> list[str]:
    columns = [f"{n_rows:,}", str(q), str(k)]
    if cells["fit"] is None or cells["stream"] is None:
        return [*columns, f"over the limit of {limit:.0f} s"]
    ours = cells["fit"]["seconds"]
    columns += [f"{cells[name]['seconds']:.2f} s, {cells[name]['mb']:.0f} MB" for name in OURS]
    columns.append(f"{cells['stream']['solve']:.2f} s")
    for name in OTHERS:
        cell = cells[name]
        if cell is None:
            columns.append(f"> {limit:.0f} s (> {limit / ours:.0f} ×)")
        else:
            columns.append(f"{cell['seconds']:.2f} s, {cell['mb']:.0f} MB ({cell['seconds'] / ours:.1f} ×)")
    return columns


def printed(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 10000, 50000])
    parser.add_argument("--targets", type=int, nargs="+", default=[4, 768], help="columns q of the target")
    parser.add_argument("--components", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--limit", type=float, default=1200, help="seconds a method may take for a fit")
    parser.add_argument("--report", type=Path, help="write the table here as JSON")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        method, data, k, limit = arguments.measure
        print(json.dumps(measure(method, data, int(k), float(limit))))
        return
    table = [["rows", "targets", "components", "ours: fit", "ours: stream", "of which solve", *OTHERS]]
    printed(table[0])
    printed(["---"] * len(table[0]))
    slower = []  # method, rows, targets, components of what was over the limit
    for n_rows in arguments.rows:
        for q in arguments.targets:
            with tempfile.TemporaryDirectory() as folder:
                data = f"{folder}/data.npz"
                x, y = make_data(n_rows, q)
                np.savez(data, x=x, y=y)
                del x, y
                for k in arguments.components:
                    cells = {}
                    for name in METHODS:
                        is_hopeless = any(
                            name == slow and n_rows >= n and q >= r and k >= a for slow, n, r, a in slower
                        )
                        cells[name] = None if is_hopeless else measure_apart(name, data, k, arguments.limit)
                        if cells[name] is None:
                            slower.append((name, n_rows, q, k))
                    table.append(table_row(n_rows, q, k, cells, arguments.limit))
                    printed(table[-1])
    if arguments.report:
        from train.data.files import write_json  # not above: the measured processes do without torch

        write_json(arguments.report, {"tables": {"the solver": table}})


if __name__ == "__main__":
    main()
