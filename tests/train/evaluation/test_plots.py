from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support.figures import overlaps
from tests.train.benchmark.test_comparisons import cell
from train.benchmark.comparisons import summaries
from train.evaluation import plots as report_plots
from train.evaluation.report import model_entry, new_report, result_row

EMOTIONS = ["anger", "happiness", "neutral", "sadness"]


@pytest.fixture
def figures(monkeypatch):
    """Figures as they would be saved."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: found.append(figure))
    return found


def cells(corpora=("a", "b"), models=("linear", "ours")):
    found = [cell(model, corpus, 0.8) for model in models for corpus in corpora]
    found += [
        cell(m, c, 0.5, "noise_x", level, snr) for m in models for c in corpora for level, snr in ((1, 20), (3, 0))
    ]
    pairs = [(train, test) for train in corpora for test in corpora if train != test]
    found += [cell(m, test, 0.4, protocol="cross_corpus", train=(train,)) for m in models for train, test in pairs]
    for one in found:
        one.temperatures = np.full(len(one.predictions), 1.5)
        one.train = one.train or (one.test,)
    return found


def report_of(given) -> dict:
    rows = [
        result_row(c.model, EMOTIONS, c.predictions, test=c.test, train=c.train, protocol=c.protocol,
                   condition=c.condition, level=c.level, setting=c.setting, resamples=20)
        for c in given
    ]  # fmt: skip
    models = [model_entry(name, EMOTIONS, source="x") for name in dict.fromkeys(c.model for c in given)]
    return new_report("x", seed=0, models=models, results=rows, summaries=summaries(given))


def test_a_line_for_each_model_falls_from_clean_to_the_lowest_snr(figures, tmp_path):
    assert report_plots.uar_against_snr(report_of(cells()), tmp_path / "x.png")
    (axis,) = figures[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["clean", "20", "0"]
    lines = {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}
    assert set(lines) == {"linear", "ours"} and lines["ours"].get_ydata()[0] > lines["ours"].get_ydata()[-1]


def test_rows_that_adapt_have_a_panel_of_their_own(figures, tmp_path):
    adapted = [replace(one, model="ours + adaptation by speaker") for one in cells() if one.model == "ours"]
    assert report_plots.uar_against_snr(report_of(cells() + adapted), tmp_path / "x.png")
    drawn = [[line.get_label() for line in axis.get_lines() if line.get_label()[0] != "_"] for axis in figures[0].axes]
    assert drawn == [["linear", "ours"], ["ours"]]


def test_the_heat_map_has_within_corpus_results_on_its_diagonal(figures, tmp_path):
    report = report_of(cells())
    assert report_plots.cross_corpus(report, tmp_path / "x.png")
    shown = [float(text.get_text()) for text in figures[0].axes[0].texts]
    found = {
        (r["train"][0], r["test"]): 100 * r["metrics"]["uar"]["value"] for r in report["results"] if not r["level"]
    }
    expected = [found["a", "a"], found["a", "b"], found["b", "a"], found["b", "b"]]
    assert shown == [float(f"{value:.0f}") for value in expected]


def test_rows_of_confusion_matrices_add_up_to_a_hundred(figures, tmp_path):
    assert report_plots.confusion(report_of(cells()), tmp_path / "x.png")
    assert len(figures[0].axes) == 4  # two models, clean and noisy
    for axis in figures[0].axes:
        assert np.asarray(axis.images[0].get_array()).sum(1) == pytest.approx(100)


def test_a_model_as_sure_as_it_is_right_lies_on_the_diagonal(figures, tmp_path):
    one = cell("ours", "a", 1.0)
    right = np.arange(160) % 10 < 7
    one.predictions.references = np.where(right, 0, 1)
    one.predictions.probabilities = np.tile([0.7, 0.1, 0.1, 0.1], (160, 1))
    assert report_plots.reliability([one], tmp_path / "x.png")
    x, y = figures[0].axes[0].get_lines()[1].get_xydata()[0]
    assert x == pytest.approx(0.7) and y == pytest.approx(0.7)


def test_the_map_shows_every_emotion_and_corpus(figures, tmp_path):
    rng = np.random.default_rng(0)
    emotions, corpora = np.array(EMOTIONS * 10), np.repeat(["a", "b"], 20)
    assert report_plots.embedding_map(rng.normal(size=(40, 6)), emotions, corpora, "u", tmp_path / "x.png")
    legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figures[0].axes]
    assert legends == [EMOTIONS, ["a", "b"]]


@pytest.mark.parametrize("models", [1, 2, 5])
def test_no_legend_covers_a_label_or_what_is_drawn(figures, tmp_path, models):
    found = cells(corpora=("emodb", "ravdess", "a long name"), models=[f"model number {i}" for i in range(models)])
    report, path = report_of(found), tmp_path / "x.png"
    for draw in (report_plots.uar_against_snr, report_plots.cross_corpus, report_plots.confusion):
        assert draw(report, path)
    assert report_plots.reliability(found, path)
    emotions, corpora = np.array(EMOTIONS * 10), np.repeat(["a", "b"], 20)
    assert report_plots.embedding_map(np.random.default_rng(0).normal(size=(40, 6)), emotions, corpora, "u", path)
    assert len(figures) == 5
    for figure in figures:
        assert all(axis.has_data() for axis in figure.axes) and not overlaps(figure)
        legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
        panels = [axis.get_window_extent() for axis in figure.axes]
        assert not any(legend.get_window_extent().overlaps(panel) for legend in legends for panel in panels)


def test_nothing_is_drawn_where_there_is_nothing_to_draw(figures, tmp_path):
    clean = [cell("ours", "a", 0.8)]
    assert not report_plots.uar_against_snr(report_of(clean), tmp_path / "x.png")
    assert not report_plots.cross_corpus(report_of(clean), tmp_path / "x.png")
    assert report_plots.confusion(report_of(clean), tmp_path / "x.png") and len(figures) == 1
