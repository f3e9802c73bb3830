"""Labels in whatever form users have them mean the same to training, to evaluation and to what is fitted at once."""

import pytest
import torch
from transformers import Trainer

from modeling_edrl_mea import EdrlMeaConfig
from modeling_edrl_mea.targets import as_ids, as_targets
from tests.conftest import inputs_of, noise_recordings

IDS = torch.tensor([3, 0, 1])
SAME = {
    "int64": IDS,
    "int32": IDS.int(),
    "uint8": IDS.byte(),
    "a column": IDS[:, None],
    "whole floats": IDS.float(),
    "one-hot integers": torch.eye(4).int()[IDS],
    "one-hot floats": torch.eye(4)[IDS],
}


@pytest.mark.parametrize("labels", SAME.values(), ids=SAME)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arrangement", ["edrl_mea", "linear"])
def test_every_form_of_the_same_labels_gives_the_same_loss(tiny_model, arrangement, training, labels):
    model = tiny_model(arrangement).train(training)
    inputs = inputs_of(model, noise_recordings(3))
    torch.manual_seed(1)
    expected = model(**inputs, labels=IDS).loss
    torch.manual_seed(1)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_recording_without_a_label_does_not_count(tiny_model, training):
    model = tiny_model("linear").train(training)
    model.freeze_backbone()
    recordings = noise_recordings(3)
    labeled = model(**inputs_of(model, recordings[:2]), labels=IDS[:2]).loss
    with_third = model(**inputs_of(model, recordings), labels=torch.tensor([3, 0, -100])).loss
    torch.testing.assert_close(with_third, labeled, atol=1e-4, rtol=1e-4)
    assert model(**inputs_of(model, recordings), labels=torch.full((3,), -100)).loss == 0


def test_soft_labels_are_shares_in_training_and_in_evaluation(tiny_model):
    model, shares = tiny_model("linear"), torch.tensor([[0.5, 0.5, 0, 0]])
    inputs = inputs_of(model, noise_recordings(1))
    halves = [model(**inputs, labels=torch.tensor([emotion])).loss for emotion in (0, 1)]
    torch.testing.assert_close(model(**inputs, labels=shares).loss, sum(halves) / 2)
    assert as_ids(torch.tensor([[0.2, 0.8], [-100, -100]]), 2).tolist() == [1, -100]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.tensor([4]), "id 4 is none of the model's 4 classes"),
        (torch.tensor([-1]), "id -1"),
        (torch.tensor([0.3]), "whole numbers"),
        (torch.tensor([[1, 1, 0, 0]]), "multi-label"),
        (torch.tensor([[2.0, -1, 0, 0]]), "add up to 1"),
        (torch.zeros(2, 3), r"\(2, 3\)"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, named):
    with pytest.raises(ValueError, match=named):
        as_targets(labels, 4)


@pytest.mark.parametrize("kind", ["multi_label_classification", "token_classification"])
def test_other_problem_types_are_refused_and_not_taken_for_classification(kind):
    with pytest.raises(ValueError, match=f"problem_type='{kind}'"):
        EdrlMeaConfig(problem_type=kind)
    with pytest.raises(ValueError, match="one emotion"):
        EdrlMeaConfig.from_dict({"model_type": "edrl_mea"}, problem_type=kind)


@pytest.mark.parametrize("form", ["int32", "a column", "one-hot integers", "soft", "with one ignored"])
def test_a_run_of_the_stock_trainer_outlives_its_first_evaluation(tmp_path, tiny_model, form):
    from modeling_edrl_mea import AlignmentCallback
    from tests.train.test_run import Recordings, arguments
    from train.trainer import uar_of_predictions

    model = tiny_model("edrl_mea", fitted=False)
    data = Recordings(model, list(model.config.labels), 12)
    for row in data.rows:
        one_hot = torch.eye(4)[row["labels"]]
        forms = {
            "int32": torch.tensor(row["labels"], dtype=torch.int32),
            "a column": torch.tensor([row["labels"]]),
            "one-hot integers": one_hot.int(),
            "soft": 0.8 * one_hot + 0.05,
            "with one ignored": torch.tensor(-100 if row is data.rows[0] else row["labels"]),
        }
        row["labels"] = forms[form]
    args = arguments(tmp_path, num_train_epochs=1, eval_strategy="epoch")
    settings = {"callbacks": [AlignmentCallback()], "compute_metrics": uar_of_predictions}
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_uar"] > 0.25
