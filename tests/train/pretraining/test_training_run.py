"""A run's steps: one whose gradient is not finite is left out."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from train.pretraining.training_run import Run


class Student(nn.Module):
    """A weight that follows its batch."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": self.backbone(batch["noisy"]).mean()}


def run_in(folder, steps: int) -> Run:
    args = SimpleNamespace(output=folder, learning_rate=0.1, steps=steps, workers=0, log_every=4, save_minutes=60)
    torch.manual_seed(0)
    run = Run(args, Accelerator(cpu=True), Student())
    run.save = lambda: None  # what this student is cannot be exported
    return run


def batches(values: list[float]) -> SimpleNamespace:
    made = [{"noisy": torch.tensor([[value]]), "lengths": torch.tensor([16000])} for value in values]
    return type("Batches", (torch.utils.data.Dataset,), {"__getitem__": lambda self, step: made[step % len(made)]})()


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path, capsys):
    run, known = run_in(tmp_path, 4), run_in(tmp_path, 2)
    run.train(batches([1.0, float("nan"), 1.0, float("inf")]))
    known.train(batches([1.0, 1.0]))
    assert '"skipped": 2' in capsys.readouterr().out
    assert all(weight.isfinite().all() for weight in run.average.weights.values())
    for weight, expected in zip(run.model.parameters(), known.model.parameters(), strict=True):
        assert torch.allclose(weight, expected, atol=1e-2)  # but for the rate of learning, which falls by the step


def test_a_run_ends_where_no_gradient_is_finite(tmp_path):
    with pytest.raises(RuntimeError, match="none of the 4 steps up to 4 had a finite gradient"):
        run_in(tmp_path, 4).train(batches([float("nan")] * 4))
