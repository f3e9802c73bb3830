"""Measuring what the documents quote, and writing it there."""

import json
import re

import pytest

from scripts import measure
from scripts.measure import BLOCK, BLOCKS, DOCUMENTS, ROOT, Measurement, filled

INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.9}
ADAPTATION = {
    "tables": {
        measure.GAINS: [
            ["recordings", "clean", "noise at 0 dB"],
            ["none", "60.0", "50.0"],
            ["all", "+10.0 (+7.0…+12.0)", "-1.0 (-2.0…+0.1)"],
            ["all, by speaker", "+15.0 (+12.0…+17.0)", "+9.0 (+7.0…+11.0)"],
        ],
    }
}


def shipped(uar=INTERVAL) -> dict:
    places = (("clean", None), ("noise_esc_10", {"snr_db": 10}), ("noise_esc_10", {"snr_db": 0}))
    metrics = {"uar": uar, "ece_calibrated": {"value": 0.025, "low": 0.02, "high": 0.03}}
    return {"results": [{"condition": name, "setting": setting, "metrics": metrics} for name, setting in places]}


def rendered(name: str, **found) -> str:
    problems = []
    text = filled(f"<!--measured:{name}-->old<!--end-->", found, problems)
    assert not problems
    return BLOCK.fullmatch(text)[2]


def test_a_table_is_written_between_its_marks_and_nothing_else_changes():
    page = "before\n\n<!--measured:results-->\n| old |\n<!--end-->\n\nmore: +<!--measured:gain-->1.0<!--end-->, -1\n"
    text = filled(page, {"adaptation": ADAPTATION, "shipped": shipped()}, [])
    assert text == (
        "before\n\n<!--measured:results-->\n"
        "|  | clean | ESC-10 noise, 10 dB | 0 dB |\n"
        "| --- | --- | --- | --- |\n"
        "| speakers held out | 80.0 (70.0–90.0) | 80.0 (70.0–90.0) | 80.0 (70.0–90.0) |\n"
        "| a corpus left out | 60.0 |  | 50.0 |\n"
        "| adapted to it | +10.0 (+7.0…+12.0) |  | −1.0 (−2.0…+0.1) |\n"
        "| adapted to each speaker | +15.0 (+12.0…+17.0) |  | +9.0 (+7.0…+11.0) |\n"
        "<!--end-->\n\nmore: +<!--measured:gain-->10.0<!--end-->, -1\n"
    )
    assert filled(text, {"adaptation": ADAPTATION, "shipped": shipped()}, []) == text


def test_what_was_not_measured_or_does_not_tell_stays_as_it_is():
    page = "<!--measured:results-->old<!--end--> <!--measured:gain-->1.0<!--end--> <!--measured:scale-->2<!--end-->"
    problems = []
    assert filled(page, {"adaptation": ADAPTATION, "scale": {}}, problems) == page.replace("1.0", "10.0")
    assert len(problems) == 1 and "scale" in problems[0] and "'mb'" in problems[0]


def test_settings_are_one_table_and_their_worth_another():
    def options(name, *rows):
        return [["option", "mean", "chosen for"], *([f"{name} = {row}", "50.0", ""] for row in rows)]

    worth = [["setting, as chosen", "clean"], ["size", "+1.0"], ["noise", "+0.0"]]
    found = {"tables": {"size": options("size", 1, 2), "noise": options("noise", 0, 1), "worth": worth}}
    assert rendered("settings", settings=found) == (
        "\n| option | mean | chosen for |\n| --- | --- | --- |\n| size = 1 | 50.0 |  |\n| size = 2 | 50.0 |  |\n"
        "| noise = 0 | 50.0 |  |\n| noise = 1 | 50.0 |  |\n\n"
        "| setting, as chosen | clean |\n| --- | --- |\n| size | +1.0 |\n| noise | +0.0 |\n"
    )


def test_rows_of_what_does_not_run_here_are_left_out():
    rows = [
        ["", "1 s", "2 s"],
        ["stock float32", "2 ms, 1.00 ×", "3 ms"],
        ["ours openvino", "fails: no such module", ""],
    ]
    table = rendered("latency_by_length", latency_compact={"tables": {"lengths": rows}})
    assert "stock float32" in table and "openvino" not in table


def test_backbones_have_their_means_and_each_corpus_left_out():
    def scores(uar):
        within = {condition: {"uar": uar} for condition in ("clean", "10 dB", "0 dB")}
        protocols = ("clean", "clean adapted", "0 dB", "0 dB adapted")
        return {
            "within": {name: within for name in "ab"},
            "left_out": {name: dict.fromkeys(protocols, uar) for name in "ab"},
        }

    report = {"w": scores(70.0), "smile": scores(60.0), "speed": {"WavLM-base": 1.0, "w": 0.1}}
    *_, w, smile = rendered("backbones", backbones=report).strip().splitlines()
    assert w == "| w | 70.0 / 70.0 / 70.0 | " + "70.0 / 70.0; 70.0 | " * 4 + "10.0 |"
    assert smile.endswith("60.0 / 60.0; 60.0 |  |")


def test_recipes_are_compared_over_what_was_asked_for():
    overs = ("clean", "noise at 10 and 0 dB", "all corruptions", "leave-one-corpus-out", "cross-corpus", "clean: emodb")
    means = [{"model": name, "over": over, "mean": INTERVAL} for name in ("linear", "edrl") for over in overs]
    gain = {"value": 0.01, "low": -0.01, "high": 0.02}
    comparisons = [{"model": "edrl", "over": over, "difference": gain} for over in overs]
    _, _, linear, edrl = (
        rendered("recipes", recipes={"summaries": means, "comparisons": comparisons}).strip().split("\n")
    )
    assert linear == "| linear |" + " 80.0 (70.0–90.0) |  |" * 4
    assert edrl == "| edrl |" + " 80.0 (70.0–90.0) | +1.0 (−1.0 to +2.0) |" * 4


def test_the_documents_show_a_command_for_every_block_and_every_block_is_in_them():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    shown = {mark[1] for text in texts.values() for mark in BLOCK.finditer(text)}
    assert shown == set(BLOCKS)
    assert {need for needs, _ in BLOCKS.values() for need in needs.split()} == set(measure.measurements())
    for name, text in texts.items():
        assert text.count("<!--measured:") == text.count("<!--end-->") == len(BLOCK.findall(text)), name
        # A comment that begins a line is HTML to the end of the line: no paragraph may go on there.
        assert not re.search(r"^ *<!--measured:\w+-->[^\n]+", text, re.M), name


def test_every_command_writes_the_result_that_it_is_marked_with():
    for name, one in measure.measurements().items():
        output = re.search(r"--(?:report|output|output_dir) (outputs/\S+)\s*$", one.command)[1]
        assert one.result.startswith(output), name


def counting(name: str, ends: str = "true") -> Measurement:
    """Each run adds a line to a file, and writes the number of lines as the result."""
    lines = f"{name}-result.json"
    return Measurement(lines, f"echo x >> {name}.txt; echo said; wc -l < {name}.txt > {lines}; {ends}")


def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path):
    measured = {name: counting(name) for name in ("one", "two")}
    measured["broken"] = counting("broken", "echo no more disk >&2; exit 3")
    for runs in (1, 2):
        (problem,) = measure.measure_all(dict(reversed(measured.items())), tmp_path)  # the broken one first
        assert problem.startswith("broken: exit status 3") and "no more disk" in problem
        assert json.loads((tmp_path / "one.json").read_bytes()) == 1
        assert (tmp_path / "broken.txt").read_text() == runs * "x\n" and not (tmp_path / "broken.json").exists()
    assert (tmp_path / "two.txt").read_text() == "x\n" and "said" in (tmp_path / "two.log").read_text()


def test_a_command_that_writes_no_result_has_failed(tmp_path):
    (problem,) = measure.measure_all({"idle": Measurement("outputs/idle.json", "true")}, tmp_path)
    assert problem.startswith("idle: it wrote no") and "outputs/idle.json" in problem


def test_missing_data_is_named_all_at_once_before_anything_runs(tmp_path):
    (tmp_path / "data" / "emodb").mkdir(parents=True)
    with pytest.raises(ValueError) as error:
        measure.main([str(tmp_path / "data"), "--output", str(tmp_path / "runs")])
    assert all(str(tmp_path / "data" / name) in str(error.value) for name in measure.FOLDERS if name != "emodb")
    assert str(tmp_path / "data" / "emodb") not in str(error.value) and not (tmp_path / "runs").exists()


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure.main([str(tmp_path), "--output", str(tmp_path / "runs"), "--only", "scale", "sclae"])
    said = capsys.readouterr().err
    assert "no measurement sclae" in said and "backbones" in said and not (tmp_path / "runs").exists()


def test_commands_find_the_data_by_the_names_that_the_documents_use(tmp_path):
    for name in ("emodb", "noise"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "noise" / "esc10").mkdir()
    command = "ls EMODB NOISE/esc10 scripts/measure.py && mkdir outputs && echo 1 > outputs/x.json"
    one = Measurement("outputs/x.json", command)
    for _ in range(2):  # links are made anew
        measure.link_folders(tmp_path / "data", tmp_path / "runs", [one])
    assert one.folders == ["emodb", "noise"] and measure.measure_all({"x": one}, tmp_path / "runs") == []


def test_what_was_measured_is_written_with_its_plots(tmp_path, monkeypatch, capsys):
    page, plot = tmp_path / "page.md", tmp_path / "train" / "images" / "adaptation.png"
    plot.parent.mkdir(parents=True)
    plot.write_text("old")
    command = (
        "mkdir -p outputs/a; echo new > outputs/a/adaptation.png; cp outputs/a/adaptation.png outputs/a/other.png\n"
    )
    command += f"echo '{json.dumps(ADAPTATION)}' > outputs/a/adaptation.json\n"
    marks = "<!--command:scale outputs/scale.json-->\n```\nfalse\n```\nof <!--measured:scale-->9<!--end--> MB\n"
    marks += (
        f"<!--command:adaptation outputs/a/adaptation.json-->\n```\n{command}```\nby <!--measured:gain-->?<!--end-->\n"
    )
    page.write_text(marks)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "DOCUMENTS", ("page.md",))
    (problem,) = measure.main([str(tmp_path), "--output", str(tmp_path / "runs"), "--write"])
    assert problem.startswith("scale: exit status 1") and "FAILED scale" in capsys.readouterr().err
    assert page.read_text() == marks.replace("?", "10.0") and plot.read_text() == "new\n"
    assert [path.name for path in plot.parent.iterdir()] == ["adaptation.png"]
