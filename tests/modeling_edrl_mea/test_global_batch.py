"""A batch put together of what two processes hold: in their order, and with the gradient of one process."""

import multiprocessing

import torch
import torch.distributed as dist

from modeling_edrl_mea.global_batch import GlobalBatch


def one_of_two(rank: int, store: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    own = (torch.arange(3.0 - rank) + 10 * rank)[:, None].requires_grad_()  # three rows, and two
    batch = GlobalBatch(len(own), own.device)
    whole = batch.gather(own)
    whole.square().sum().backward()
    results.put((rank, whole.flatten().tolist(), batch.own(whole).flatten().tolist(), own.grad.flatten().tolist()))
    assert batch.gather(torch.zeros(len(own), 0)).shape == (5, 0)
    dist.destroy_process_group()


def test_two_processes_see_the_rows_of_both_and_gradients_come_back(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, tmp_path / "store", results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    whole = [0, 1, 2, 10, 11]
    # Each computes the loss of the whole batch, and DistributedDataParallel halves: the sum is twice the gradient.
    assert found == [(0, whole, whole[:3], [0, 4, 8]), (1, whole, whole[3:], [40, 44])]


def test_one_process_passes_everything_through():
    batch, rows = GlobalBatch(2, torch.device("cpu")), torch.ones(2, 3)
    assert batch.gather(rows) is rows and batch.own(rows) is rows and batch.gather(None) is None
