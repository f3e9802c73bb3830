"""Tables of a report: one line a result, and only those that there are."""

from train.evaluation.markdown import as_markdown, attributes_table, markdown_table, results_table

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
ABOUT = {"model": "m", "train": ["a", "b"], "test": "c", "condition": "clean", "level": None, "setting": None}
ROW = ABOUT | {"n_recordings": 9, "n_speakers": 3, "metrics": dict.fromkeys(("uar", "wa", "macro_f1"), INTERVAL)}


def test_every_line_has_the_cells_of_the_head():
    lines = results_table([ROW, ROW | {"train": []}]).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "| a + b | c | clean | 9 | 3 | 50.0 (40.0–60.0) |" in lines[2] and "| ? |" in lines[3]
    assert markdown_table(["n"], [[1]]) == "| n |\n| --- |\n| 1 |"


def test_a_result_without_emotions_is_in_the_table_of_attributes_alone():
    unknown = dict.fromkeys(("value", "low", "high"))
    figures = dict.fromkeys(("ccc", "pearson", "rmse"), INTERVAL) | {"n_recordings": 9, "scale": [1, 7]}
    rated = ROW | {"metrics": {"uar": unknown}, "attributes": {"arousal": figures}}
    assert not results_table([rated]) and not attributes_table([ROW])
    assert "| arousal | 1–7 | 9 | 0.50 (0.40–0.60) |" in attributes_table([rated])


def test_what_could_not_be_measured_is_listed_and_what_is_not_there_has_no_heading():
    report = {
        "created": "2026-01-01",
        "command": "c",
        "models": [{"name": "m"}],
        "results": [ROW | {"protocol": "clean"}],
    }
    report |= {"comparisons": [], "corruption_errors": [], "errors": [{"model": "m", "error": "no sound"}]}
    text = as_markdown(report)
    assert "## Not measured: 1\n\n- m: no sound" in text and "## Clean speech" in text
    assert "Corruption" not in text and "Paired" not in text
