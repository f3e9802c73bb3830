"""What needs evaluation mode leaves the model as it was, however many threads ask at once."""

import threading

import numpy as np
import torch

from modeling_edrl_mea.evaluation_mode import evaluating
from tests.conftest import noise_recordings


def in_threads(*asked) -> None:
    threads = [threading.Thread(target=ask) for ask in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_overlap_leave_every_module_in_its_own_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).train()
    model[1].eval()
    first_is_in, second_is_in = threading.Event(), threading.Event()
    seen = []

    def first():
        with evaluating(model):
            first_is_in.set()
            second_is_in.wait(10)
        seen.append(model[0].training)  # the second is still within

    def second():
        first_is_in.wait(10)
        with evaluating(model):
            second_is_in.set()
            thread.join(10)
            seen.append(model[0].training)

    thread = threading.Thread(target=first)
    thread.start()
    in_threads(second)
    assert seen == [False, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_explanations_in_threads_agree_and_leave_the_model_in_training(tiny_model):
    model, recordings = tiny_model("edrl_mea").train(), noise_recordings(2)
    expected = model.explain(recordings[0])["logits"]
    told = []
    ask = [lambda: told.append(model.explain(recordings[0])["logits"])] * 4
    ask += [lambda: model.predict_timeline(recordings[1]), lambda: model.embed_recordings(recordings)]
    in_threads(*ask * 3)
    assert model.training and model.edrl_mea.disentanglement.training
    assert len(told) == 12
    for logits in told:
        np.testing.assert_allclose(list(logits.values()), list(expected.values()), atol=1e-5)


def test_a_model_in_evaluation_is_not_touched(tiny_model, monkeypatch):
    model, recordings = tiny_model("edrl_mea").eval(), noise_recordings(1)
    monkeypatch.setattr(torch.nn.Module, "train", None)
    model.explain(recordings[0])
    model.predict_timeline(recordings[0])
    model.embed_recordings(recordings)
    assert not any(module.training for module in model.modules())
