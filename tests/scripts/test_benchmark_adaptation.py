"""scripts/benchmark_adaptation.py as a whole, on tones and a tiny backbone, and its figures."""

import json

import numpy as np
import pytest
import soundfile
import yaml

from scripts import benchmark_adaptation
from tests.support.tones import EMOTIONS, PITCHES, write_backbone, write_corpus


@pytest.mark.slow  # ten trainings
def test_the_study_fills_every_table_from_four_corpora(tmp_path, tiny_backbone_config, monkeypatch):
    for name, size in zip("abcd", (4, 4, 5, 5), strict=True):
        write_corpus(tmp_path / name, size, PITCHES if name == "a" else EMOTIONS)
    (tmp_path / "noise").mkdir()
    for number in range(4):
        noise = 0.1 * np.random.default_rng(number).standard_normal(1600)
        soundfile.write(tmp_path / "noise" / f"{number}.wav", noise, 16_000)
    backbone = write_backbone(tmp_path / "backbone", tiny_backbone_config)
    recipe = {"model_name_or_path": str(backbone), "num_train_epochs": 1, "noisy_copies": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(benchmark_adaptation, "DRAWS", 2)
    given = [part for name in "abcd" for part in ("--corpus", f"{name}={tmp_path / name}")]
    given += ["--noise", str(tmp_path / "noise"), "--recipe", str(tmp_path / "recipe.yaml")]
    report = benchmark_adaptation.main([*given, "--output", str(tmp_path / "out")])
    assert len(report["tables"]) == 6 and all(len(rows) > 1 for rows in report["tables"].values())
    assert json.loads((tmp_path / "out" / "adaptation.json").read_text())["tables"].keys() == report["tables"].keys()
    assert "| recordings | clean | noise at 0 dB |" in (tmp_path / "out" / "adaptation.md").read_text()
    assert (tmp_path / "out" / "adaptation.png").is_file()
