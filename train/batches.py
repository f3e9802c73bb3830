"""Which recordings form a batch, and which process takes which of them."""

import numpy as np
from torch.utils.data import DataLoader, Sampler


class EpochBatches(Sampler[list[int]]):
    """Batches of a shuffled epoch, each divided among the processes.

    The batches are those that one process would form: `batch_size` recordings over all processes, every recording once
    an epoch, none repeated to fill the last batch. Where the last batch has fewer recordings than there are processes
    it joins the one before. The order is a function of seed and epoch alone.
    """

    def __init__(self, dataset, batch_size: int, seed: int, rank: int = 0, n_processes: int = 1):
        if len(dataset) < n_processes:
            raise ValueError(f"{len(dataset)} recordings cannot be divided among {n_processes} processes.")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.n_processes = rank, n_processes
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return max(1, whole + (rest >= self.n_processes))

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))
        ends = [self.batch_size * (i + 1) for i in range(len(self) - 1)]
        for batch in np.split(order, ends):
            yield np.array_split(batch, self.n_processes)[self.rank].tolist()


class EpochLoader(DataLoader):
    """A `DataLoader` over [`EpochBatches`] that hands the epoch on to it."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def epoch_loader(dataset, args, collate_fn) -> EpochLoader:
    """For `TrainingArguments`; a drop-in for what `Trainer.get_train_dataloader` returns."""
    batches = EpochBatches(
        dataset,
        args.per_device_train_batch_size * args.world_size,
        args.data_seed if args.data_seed is not None else args.seed,
        args.process_index,
        args.world_size,
    )
    return EpochLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
