"""Statistics do not depend on how rows were cut into chunks, ordered, or spread over processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_edrl_mea import MultiblockPLS

ROOT = Path(__file__).resolve().parents[2]
SIZES = (6, 3, 10)


def rows_of_data(n_rows=120, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n_rows, 5)) * 1.5 ** -np.arange(5)
    blocks = [factors @ rng.standard_normal((5, p)) + 0.3 * rng.standard_normal((n_rows, p)) + offset for p in SIZES]
    return blocks, factors @ rng.standard_normal((5, 4)) + 0.3 * rng.standard_normal((n_rows, 4)) + offset


def assert_same_solution(ours, theirs, atol):
    for name in (
        "rotations_",
        "loadings_",
        "y_loadings_",
        "super_weights_",
        "x_mean_",
        "explained_variance_y_",
    ):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=atol, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 120), max_size=10),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 100.0, -1e6]),
)
def test_size_and_order_of_chunks_change_nothing(cuts, order, offset):
    blocks, y = rows_of_data(offset=offset)
    edges = [0, *sorted(cuts), 120]
    chunks = list(zip(edges, edges[1:], strict=False))
    order.shuffle(chunks)
    streamed = MultiblockPLS(4)
    for start, stop in chunks:
        streamed.partial_fit([b[start:stop] for b in blocks], y[start:stop])
    # Numbers near a million have ten digits after the point.
    assert_same_solution(streamed.solve(), MultiblockPLS(4).fit(blocks, y), 1e-9 if abs(offset) < 1e6 else 1e-8)


def test_merged_parts_equal_the_whole():
    blocks, y = rows_of_data()
    whole = MultiblockPLS(4).partial_fit(blocks, y)
    parts = [
        MultiblockPLS(4).partial_fit([b[start:stop] for b in blocks], y[start:stop])
        for start, stop in ((0, 5), (5, 5), (5, 90), (90, 120))
    ]
    merged = MultiblockPLS(4).merge(MultiblockPLS(4)).merge(parts[0]).merge(parts[3]).merge(parts[1]).merge(parts[2])
    assert_same_solution(merged.solve(), whole.solve(), 1e-10)
    with pytest.raises(ValueError, match="Cannot merge"):
        merged.merge(MultiblockPLS(4).partial_fit(blocks[:2], y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_blocks_of_any_dtype_are_summed_in_float64(dtype):
    blocks, y = rows_of_data()
    rounded = [(torch.tensor(b) * 10).to(dtype) for b in blocks]
    ours = MultiblockPLS(3).fit(rounded, torch.tensor(y, dtype=torch.float32))
    theirs = MultiblockPLS(3).fit([b.double() for b in rounded], torch.tensor(y, dtype=torch.float32).double())
    assert_same_solution(ours, theirs, 1e-10)


def test_tensors_that_require_grad_are_taken_in_without_their_graph():
    blocks, y = rows_of_data()
    tracked = [torch.tensor(b, requires_grad=True) for b in blocks]
    assert not MultiblockPLS(3).fit(tracked, y).rotations_.requires_grad


PEAK_MEMORY = """
import resource, numpy, torch
from modeling_edrl_mea.multiblock_pls import MultiblockPLS
torch.set_num_threads(1)
rng = numpy.random.default_rng(0)
pls = MultiblockPLS(4)
for chunk in range(100):
    x = rng.standard_normal((10_000, 40), dtype=numpy.float32)
    pls.partial_fit([x[:, :20], x[:, 20:]], x[:, :3])
    if chunk in (0, 99):
        print(pls.solve().n_rows_, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream():
    lines = subprocess.check_output([sys.executable, "-c", PEAK_MEMORY], cwd=ROOT, text=True).splitlines()
    peaks = dict(map(int, line.split()) for line in lines[-2:])
    assert peaks[1_000_000] < 1.3 * peaks[10_000]


class TwinProcesses:
    """Stands for an accelerator of two processes that saw the same, and takes tensors of its own device only."""

    num_processes, is_main_process = 2, True

    def __init__(self, device):
        self.device = torch.device(device)

    def reduce(self, tensor, reduction):
        assert tensor.device.type == self.device.type and reduction == "sum"
        return 2 * tensor

    def gather(self, tensor):
        assert tensor.device.type == self.device.type
        return torch.cat([tensor, tensor])


@pytest.mark.parametrize("rows_on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("accelerator_on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_sums_over_processes_happen_on_the_accelerators_device(rows_on, accelerator_on):
    if "cuda" in (rows_on, accelerator_on) and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    blocks, y = rows_of_data(offset=50.0)
    on_device = [torch.tensor(block, device=rows_on) for block in blocks]
    pls = MultiblockPLS(4).partial_fit(on_device, torch.tensor(y))
    pls.reduce(TwinProcesses(accelerator_on)).solve()
    twice = MultiblockPLS(4).partial_fit(blocks, y).partial_fit(blocks, y)
    assert_same_solution(pls, twice.solve(), 1e-10)
    assert pls.n_rows_ == 240


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_solution_of_the_cpu():
    blocks, y = rows_of_data()
    on_gpu = [torch.tensor(block, device="cuda") for block in blocks]
    streamed = MultiblockPLS(4).partial_fit(on_gpu, torch.tensor(y, device="cuda")).solve()
    assert_same_solution(streamed, MultiblockPLS(4).partial_fit(blocks, y).solve(), 1e-10)


ON_EACH_PROCESS = """
import json, sys, warnings
import torch
from accelerate import Accelerator
sys.path.insert(0, {root!r})
from modeling_edrl_mea.multiblock_pls import LEARNED, MultiblockPLS
from tests.modeling_edrl_mea.test_pls_moments import rows_of_data

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
blocks, y = rows_of_data(offset=50.0)

def shared(bounds, k=4):
    start, stop = bounds[rank]
    pls = MultiblockPLS(k)
    if stop > start:
        pls.partial_fit([b[start:stop] for b in blocks], y[start:stop])
    return pls.reduce(accelerator)

whole = MultiblockPLS(4).partial_fit(blocks, y).solve()
report = {{"world_size": accelerator.num_processes, "rank": rank}}
for name, bounds in {{"unequal": ((0, 17), (17, 120)), "one empty": ((0, 0), (0, 120))}}.items():
    pls = shared(bounds)
    pls.solve(accelerator=accelerator)
    differences = [(getattr(pls, each) - getattr(whole, each)).abs().max() for each in LEARNED]
    report[name] = float(torch.stack(differences).max())
    flat = torch.cat([getattr(pls, each).flatten() for each in LEARNED])
    everyone = accelerator.gather(flat).view(2, -1)
    report[name + " identical"] = bool(torch.equal(everyone[0], everyone[1])) and pls.n_rows_ == 120
twice_the_same = [blocks[0], blocks[0]]  # of rank 6
fewer = MultiblockPLS(10).partial_fit([b[rank::2] for b in twice_the_same], y[rank::2]).reduce(accelerator)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    fewer.solve(accelerator=accelerator)
alone = MultiblockPLS(6).partial_fit(twice_the_same, y).solve()
report["fewer"] = [fewer.n_components_, float((fewer.rotations_ - alone.rotations_).abs().max())]
try:
    pls.reduce(accelerator)
except RuntimeError as problem:
    report["twice"] = str(problem)
try:
    MultiblockPLS(4).partial_fit(blocks[rank:], y).reduce(accelerator)
except ValueError as problem:
    report["widths"] = str(problem)
try:
    MultiblockPLS(4).partial_fit(blocks, 0 * y).reduce(accelerator).solve(accelerator=accelerator)
except ValueError as problem:
    report["constant"] = str(problem)
with open(f"{{sys.argv[1]}}/{{rank}}.json", "w") as file:
    json.dump(report, file)
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()  # gloo may abort where one process leaves the other
"""


def test_two_processes_with_unequal_shares_give_the_one_process_result(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "on_each_process.py"
    script.write_text(ON_EACH_PROCESS.format(root=str(ROOT)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, script, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["world_size"] for report in reports] == [2, 2]
    assert [report["rank"] for report in reports] == [0, 1]
    for report in reports:
        for share in ("unequal", "one empty"):
            assert report[share] < 1e-10
            assert report[f"{share} identical"]
        assert report["fewer"][0] == 6 and report["fewer"][1] < 1e-10
        assert "already" in report["twice"]
        assert "different widths" in report["widths"]
    assert "y is constant" in reports[0]["constant"]
    assert "first process" in reports[1]["constant"]
