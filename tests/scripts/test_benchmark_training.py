"""The script that measures training, at a shape that a CPU takes in a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import benchmark_training
from tests.support.tones import write_backbone, write_corpus

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(16,) * 4,
    conv_kernel=(10, 8, 8, 8),
    conv_stride=(5, 4, 4, 4),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


@pytest.mark.parametrize("norm", [{}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}])
def test_steps_of_stock_and_own_models_are_measured_in_bfloat16(norm):
    table = benchmark_training.learning_backbones({"tiny": TINY | norm}, "cpu", n=4, seconds=0.6, steps=1)
    rows = [line.split("|")[2].strip() for line in table.splitlines()[2:]]
    assert rows == ["stock", "ours", "ours, activation checkpointing"]


@pytest.mark.slow
def test_the_whole_script_runs(tmp_path, tiny_backbone_config):
    corpus, backbone = write_corpus(tmp_path / "tones", 6), write_backbone(tmp_path / "backbone", tiny_backbone_config)
    command = [sys.executable, "scripts/benchmark_training.py", "--corpus", corpus, "--backbone", backbone]
    command += ["--epochs", "2", "--folds", "2", "--report", tmp_path / "new" / "report.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in ("EdrlMeaTrainer, empty cache", "EdrlMeaTrainer, full cache", "Trainer, WavLM", "scikit-learn"):
        assert row in done.stdout
    tables = json.loads((tmp_path / "new" / "report.json").read_text())["tables"]
    assert [len(rows) for rows in tables.values()] == [4, 3]
