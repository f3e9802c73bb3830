"""scripts/benchmark_adaptation.py as a whole, on tones and a tiny backbone, and its figures."""

import json

import pytest

from scripts import benchmark_adaptation
from tests.support.four_corpora import four_corpora
from tests.support.tones import PITCHES


@pytest.mark.slow  # ten trainings
def test_the_study_fills_every_table_from_four_corpora(tmp_path, tiny_backbone_config, monkeypatch):
    given = four_corpora(tmp_path, tiny_backbone_config, {"num_train_epochs": 1, "noisy_copies": 1}, first=PITCHES)
    monkeypatch.setattr(benchmark_adaptation, "DRAWS", 2)
    report = benchmark_adaptation.main([*given, "--output", str(tmp_path / "out")])
    assert len(report["tables"]) == 6 and all(len(rows) > 1 for rows in report["tables"].values())
    assert json.loads((tmp_path / "out" / "adaptation.json").read_text())["tables"].keys() == report["tables"].keys()
    assert "| recordings | clean | noise at 0 dB |" in (tmp_path / "out" / "adaptation.md").read_text()
    assert (tmp_path / "out" / "adaptation.png").is_file()
