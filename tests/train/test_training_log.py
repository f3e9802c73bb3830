"""The training's picture: nothing empty, nothing hidden, and what looks odd explained."""

import json

import pytest
from matplotlib.figure import Figure

from tests.support.figures import is_visible, overlaps
from train import training_log

LOSSES = ("classification", "intra_class", "reconstruction", "decorrelation", "shared_invariance", "aligned")


def write_log(folder, scores, losses=True, start=True):
    lines = [{"step": 0, "epoch": 0, "start_regularization": 0.01}] if start else []
    for epoch, uar in enumerate(scores, start=1):
        if losses:
            lines.append({"step": epoch, "epoch": epoch, "loss": 1, **{f"loss_{name}": 1 / epoch for name in LOSSES}})
        lines.append({"step": epoch, "epoch": epoch, "eval_loss": 1, "eval_uar": uar})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def figure(monkeypatch):
    """What would be saved."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: found.append(figure))
    return found


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5, 0.5], [0.5, 0.6, 0.7]], ids=["one epoch", "level", "rising"])
@pytest.mark.parametrize("losses", [True, False])
def test_every_panel_of_the_training_plot_shows_something_and_hides_nothing(tmp_path, figure, scores, losses):
    write_log(tmp_path, scores, losses)
    drawn = training_log.plot_training(tmp_path)
    if len(scores) == 1 and not losses:
        assert drawn is None
        return
    assert [axis.get_title() for axis in figure[0].axes] == ["Stage 1: losses"] * losses + ["Validation speakers"]
    for axis in figure[0].axes:
        assert axis.lines and all(map(is_visible, axis.lines))
    assert not overlaps(figure[0])


@pytest.mark.parametrize(
    ("scores", "start", "said"),
    [
        ([0.5, 0.5], True, "50.0% in every epoch"),
        ([0.6, 0.5], True, "60.0% after the first epoch, its best"),
        ([0.5, 0.6], True, None),
        ([0.5, 0.5], False, None),
    ],
)
def test_epochs_that_changed_nothing_are_explained_in_the_plot_and_on_the_screen(tmp_path, figure, scores, start, said):
    write_log(tmp_path, scores, start=start)
    explained = training_log.explanation_of_scores(tmp_path)
    assert (said is None and explained is None) or (said in explained and "EDRL started as the classifier" in explained)
    training_log.plot_training(tmp_path)
    assert " ".join(figure[0]._suptitle.get_text().split()) == (explained or "")
