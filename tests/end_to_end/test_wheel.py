"""What `pip install` of the built wheel gives, in a process that sees no checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = """
import sys
import train  # the user's own file of that name
assert train.MINE
import numpy as np
from transformers import pipeline
import modeling_edrl_mea
from modeling_edrl_mea import EdrlMeaForAudioClassification, MultiblockPLS
assert modeling_edrl_mea.__file__.startswith(sys.argv[2]), modeling_edrl_mea.__file__
sounds = [np.random.default_rng(n).standard_normal(16_000).astype("float32") / 10 for n in range(4)]
model = EdrlMeaForAudioClassification.from_pretrained(sys.argv[1]).eval()
model.adapt(sounds)
model.save_pretrained("adapted")
print(len(model.predict_timeline(sounds[0], sampling_rate=16_000, window_s=0.5, hop_s=0.25)), "windows")
print(pipeline("audio-classification", model="adapted")({"array": sounds[0], "sampling_rate": 16_000}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as site-packages, with the wheel alone in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "modeling_edrl_mea"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(command, installed, folder):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_wheel_brings_one_name_and_no_solver_of_others(installed):
    names = {path.name for path in installed.iterdir() if path.suffix not in (".dist-info", "")} | {
        path.name for path in installed.iterdir() if path.is_dir() and not path.name.endswith(".dist-info")
    }
    assert names - {"bin", "__pycache__"} == {"modeling_edrl_mea"}


def test_an_installed_package_loads_adapts_and_times_beside_a_users_own_train_py(installed, model_folder, tmp_path):
    (tmp_path / "train.py").write_text("MINE = True")
    (tmp_path / "use.py").write_text(USE)
    printed = run([sys.executable, "use.py", model_folder, str(installed)], installed, tmp_path)
    assert "windows" in printed and "score" in printed


def test_the_console_command_is_installed(installed, model_folder, tmp_path):
    assert "predict" in run([installed / "bin" / "edrl-mea", "--help"], installed, tmp_path)
