"""The card says what the report says, in a form that the Hub reads, and nothing else."""

import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

from hub_card.card import base_model
from hub_card.licences import strictest
from hub_card.publish import assemble
from hub_card.report import read_report
from tests.conftest import EMOTIONS
from tests.support.published_models import answers, saved_model, write_model_report
from train.evaluation.report import model_entry, new_report, result_row, training_entry, write_report

LABELS = list(EMOTIONS.values())
# Numbers that say what things are, not how good: the paper's id, the width of intervals, the Act's article, levels, d
# and k in comments, base packages' names.
NOT_MEASURED = {"2510.09072", "2510", "09072", "95", "5", "1", "2", "3", "0", "2.0", "16000"}


@pytest.fixture(scope="module")
def model_dir(tiny_model, tmp_path_factory):
    return saved_model(tiny_model("edrl_mea"), tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def report(model_dir):
    return write_model_report(model_dir.parent / "report", model_dir, LABELS)


@pytest.fixture(scope="module")
def card(model_dir, report):
    return ModelCard(assemble(model_dir, report, "org/edrl-mea")["README.md"].decode())


def numbers_in(value) -> set[float]:
    """Every number of a JSON value, also those inside its strings."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()), *map(numbers_in, value))
    if isinstance(value, list):
        # counts of what is listed may be told
        return set().union({float(len(value))}, *map(numbers_in, value))
    if isinstance(value, str):
        return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", value)}
    return {float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def test_every_number_on_the_page_is_in_the_report(card, report):
    known = numbers_in(json.loads(report.read_text()))
    spoken = {f"{scale * abs(number):.1f}" for number in known for scale in (1, 100)}
    spoken |= {f"{number:g}" for number in known} | {f"{number:.3g}" for number in known}
    spoken |= {*re.findall(r"\d+(?:\.\d+)?", report.read_text()), *NOT_MEASURED}
    page = re.sub(r"https?://\S+|```bibtex.*?```", "", card.text, flags=re.DOTALL)
    invented = [number for number in re.findall(r"\d+(?:\.\d+)?", page) if number not in spoken]
    assert not invented


def test_every_result_of_this_model_is_in_the_metadata_with_interval_condition_and_command(card, report):
    document = json.loads(report.read_text())
    rows = [row for row in document["results"] if row["model"] == "edrl-mea-tiny"]
    told = {
        (found.dataset_type, found.dataset_config, found.metric_name): (found.metric_value, found.metric_args)
        for found in card.data.eval_results
    }
    assert len(told) == sum(len(row["metrics"]) for row in rows)
    for row in rows:
        condition = row["condition"] + (f"-{row['level']}" if row["level"] else "")
        value, interval = told[row["test"], f"{row['protocol']}-{condition}", "UAR"]
        measured = row["metrics"]["uar"]
        assert value == measured["value"]
        assert interval is None or (interval["low"], interval["high"]) == (measured["low"], measured["high"])
    assert all("scripts/benchmark_robustness.py" in found.source_name for found in card.data.eval_results)


@pytest.mark.parametrize("kind", ["both", "alone"])
def test_attributes_stand_in_metadata_and_page_on_their_scale(tiny_model, tmp_path, kind):
    settings = {"attribute_names": ["arousal"], "attribute_ranges": {"arousal": [1, 7]}}
    if kind == "alone":
        settings |= {"problem_type": "regression", "id2label": {0: "arousal"}}
    model_dir = saved_model(tiny_model("edrl_mea", **settings), tmp_path / "model")
    labels = LABELS if kind == "both" else []
    found = answers(LABELS, 0.8, 1)
    if kind == "alone":
        found.references, found.probabilities = np.full(60, -100), np.zeros((60, 0))
    found.ratings = np.random.default_rng(0).uniform(1, 7, (60, 1))
    found.attributes = found.ratings + 0.5
    row = result_row("rater", labels, found, test="demo", train=["demo"], scales={"arousal": (1, 7)})
    entry = model_entry("rater", labels, source="model", folder=model_dir, temperature=1.2 if labels else None)
    training = training_entry([], "native", config={"model_name_or_path": "microsoft/wavlm-base-plus"})
    write_report(new_report("a command", seed=0, models=[entry], results=[row], training=training), tmp_path)
    card = ModelCard(assemble(model_dir, tmp_path / "report.json", "org/rater")["README.md"].decode())
    told = {figure.metric_name: figure.metric_value for figure in card.data.eval_results}
    assert told["RMSE, arousal"] == pytest.approx(0.5) and told["Pearson, arousal"] == pytest.approx(1)
    assert 0.9 < told["CCC, arousal"] < 0.99
    assert ("UAR" in told) == (kind == "both") and "ccc" in card.data.metrics
    assert "rates arousal of a recording of speech" in card.text and "arousal from 1 to 7" in card.text
    assert "| arousal | 60 | 0." in card.text and ("UAR" in card.text) == (kind == "both")


def test_another_models_results_are_not_this_models(card):
    assert "linear probe" not in card.data.to_yaml()


def test_labels_stand_in_id_order(card):
    rows = re.findall(r"^\| (\d) \| (\w+) \|$", card.text, flags=re.MULTILINE)
    assert rows == [(str(place), label) for place, label in EMOTIONS.items()]


def test_the_metadata_say_where_the_model_belongs(card):
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("audio-classification", "transformers")
    assert data.base_model == "microsoft/wavlm-base-plus"
    assert (data.datasets, data.language) == (["emodb", "ravdess"], ["de", "en"])
    assert data.license == "cc-by-nc-sa-4.0"
    assert "speech-emotion-recognition" in data.tags
    assert all(example["src"].startswith("https://") for example in data.widget)


def test_the_page_shows_plots_that_are_in_the_upload(card, model_dir, report):
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert shown and set(shown) <= set(assemble(model_dir, report, "org/edrl-mea"))


@pytest.mark.parametrize(
    "section", ["Use", "Results", "Training", "Whose is what", "Calibration", "Limits and misuse", "Citation"]
)
def test_the_page_has_what_people_look_for(card, section):
    assert f"\n## {section}\n" in card.text


def test_headings_tables_and_pictures_stand_apart(card):
    """Markdown runs them together with a line before them."""
    lines = card.text.splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        starts = line.startswith(("## ", "![", "```")) and not before.startswith("```")
        starts |= line.startswith("|") and not before.startswith("|")
        in_code = line == "```"
        assert not starts or in_code or not before, line


def test_every_row_of_a_table_has_the_cells_of_its_head(card):
    tables = re.findall(r"(?:^\|.*\n)+", card.text, re.MULTILINE)
    assert len(tables) > 3
    for table in tables:
        n_cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(n_cells) == 1, table


def test_what_was_not_measured_is_not_mentioned(model_dir, tmp_path):
    report = write_model_report(tmp_path, model_dir, LABELS)
    document = json.loads(report.read_text())
    unmeasured = {"training": None, "corruption_errors": [], "comparisons": [], "plots": {}}
    measured = {key: value for key, value in document.items() if key not in ("corpora", "speed", "environment")}
    report.write_text(json.dumps(measured | unmeasured))
    page = assemble(model_dir, report, "org/edrl-mea")["README.md"].decode()
    assert "does not say what the model was trained on" in page
    assert not re.search(r"[^\n]\n## ", page)
    assert not re.search("## Speed|## Environment|Corruption error|Paired differences|training_config|!\\[", page)


def test_a_benchmark_without_training_takes_it_from_the_models_own_report(tiny_model, tmp_path):
    folder = saved_model(tiny_model("edrl_mea"), tmp_path / "model")
    write_model_report(folder, folder, LABELS)
    benchmark = write_model_report(tmp_path / "benchmark", folder, LABELS, training=None)
    assert read_report(benchmark, folder, LABELS).training["label_scheme"] == "four_emotions"


def test_speakers_on_two_sides_are_owned_up_to(model_dir, report, tmp_path):
    assert "No speaker is on two sides" in assemble(model_dir, report, "org/a")["README.md"].decode()
    document = json.loads(report.read_text())
    document["training"]["splits"]["test"] = document["training"]["splits"]["train"]
    (report.parent / "shared.json").write_text(json.dumps(document))
    page = assemble(model_dir, report.parent / "shared.json", "org/a")["README.md"].decode()
    assert "results come out too good" in page and "No speaker is on two sides" not in page


def test_parts_of_one_corpus_are_one_row(model_dir, report):
    found = read_report(report, model_dir, LABELS)
    emodb, ravdess = found.document["training"]["corpora"]
    found.document["training"]["corpora"] = [emodb, ravdess, {**emodb, "recordings": 12, "speakers": 1}]
    assert [(row["name"], row["recordings"], row["speakers"]) for row in found.corpora] == [
        ("emodb", 351, 11),
        ("ravdess", 672, 24),
    ]


@pytest.mark.parametrize(
    ("licences", "strict"),
    [
        (["CC0", "CC BY 4.0"], "cc-by-4.0"),
        (["cc0-1.0", "cc-by-nc-sa-4.0", "other"], "cc-by-nc-sa-4.0"),
        (["cc0-1.0", None], "other"),
        (["cc0-1.0", "on request"], "other"),
    ],
)
def test_weights_inherit_the_strictest_licence(licences, strict):
    assert strictest(licences) == strict


@pytest.mark.parametrize("started_from", ["checkpoints/wavlm-compact", "/data/models/mine", "wavlm-compact"])
def test_a_directory_is_no_base_model_on_the_hub(model_dir, report, started_from):
    found = read_report(report, model_dir, LABELS)
    found.document["training"]["config"]["model_name_or_path"] = started_from
    assert base_model(found, {}) is None


def test_the_compact_backbone_hands_on_its_licence(tiny_model, tmp_path):
    model = tiny_model("edrl_mea")
    folder = saved_model(model, tmp_path / "model")
    report = write_model_report(tmp_path, folder, LABELS)
    document = json.loads(report.read_text())
    document["training"]["corpora"] = document["training"]["corpora"][:1]  # EMO-DB, CC0
    document["training"]["config"]["model_name_or_path"] = "/somewhere/checkpoints/wavlm-compact"
    report.write_text(json.dumps(document))
    assert ModelCard(assemble(folder, report, "org/a")["README.md"].decode()).data.license == "cc-by-nc-sa-4.0"
