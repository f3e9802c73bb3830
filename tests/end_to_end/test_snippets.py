"""Every snippet of the README and of a published model's card runs, each in a process of its own."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hub_card.publish import assemble
from tests.conftest import EMOTIONS, noise_recordings
from tests.support.hub_server import TOKEN, hub_server
from tests.support.published_models import saved_model, write_model_report
from tests.support.tones import write_corpus

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/edrl-mea"
MODEL = "outputs/quickstart/model"  # where the README's first command leaves one
# What people have at hand where a snippet names it and does not make it.
AT_HAND = {
    "model": f"""
from modeling_edrl_mea import EdrlMeaForAudioClassification

model = EdrlMeaForAudioClassification.from_pretrained("{MODEL}").eval()
""",
    "waveform": "waveform = soundfile.read('speech.wav', dtype='float32')[0]",
    "samples": "samples, rate = soundfile.read('speech.wav', dtype='float32')",
    "train_dataset": """
import torch
from transformers import TrainingArguments

train_dataset = [{"input_values": 0.1 * torch.randn(6000), "labels": i % 4} for i in range(16)]
args = TrainingArguments("trained", num_train_epochs=1, use_cpu=True, report_to="none")
""",
}
# What runs elsewhere, and where.
NOT_HERE = {
    "-m venv": "CI runs it on a clean clone",
    "space/app.py": "test_space.py starts it",
}
# transformers and torch take seconds to import, so each snippet's process is a fork of one that did only that.
EACH_IN_A_FORK = """
import os, sys, traceback
import soundfile, torch
from transformers import AutoModelForAudioClassification, Trainer, pipeline

torch.set_num_threads(1)
assert not {"modeling_edrl_mea", "train", "hub_card"} & set(sys.modules)
failed = False
for name in sorted(os.listdir("snippets")):
    child = os.fork()
    if not child:
        code = open(os.path.join("snippets", name)).read()
        try:
            exec(compile(code, name, "exec"), {"__name__": "__main__", "soundfile": soundfile})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
"""


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def model_dir(tiny_model, tmp_path_factory):
    return saved_model(tiny_model("edrl_mea"), tmp_path_factory.mktemp("trained") / "model")


def names_lacking(code: str) -> set[str]:
    """Names that a snippet uses and does not make."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - made


def prepare(pages: dict[str, str], folder: Path, model_dir: Path) -> None:
    """The Python snippets of pages as files in `folder`, with the recordings and the model that they name."""
    named = {"speech.wav"}
    (folder / "snippets").mkdir()
    for title, page in pages.items():
        for place, code in enumerate(snippets(page, "python")):
            known = [AT_HAND[name] for name in AT_HAND if name in names_lacking(code)]
            (folder / "snippets" / f"{title} {place:02d}.py").write_text("\n".join([*known, code]))
            named |= set(re.findall(r'"([\w./-]+\.(?:wav|flac))"', code))
    for place, name in enumerate(sorted(named)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise_recordings(1, seconds=1.5, seed=place)[0], 16_000)
    shutil.copytree(model_dir, folder / MODEL)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="pipeline reads paths with ffmpeg")
def test_the_python_snippets_of_the_card_run(model_dir, tmp_path):
    """From a Hub on this machine; test_readme.py runs the README's."""
    report = write_model_report(tmp_path / "report", model_dir, list(EMOTIONS.values()))
    upload = assemble(model_dir, report, NAME)
    pages = {"card": upload["README.md"].decode()}
    assert snippets(pages["card"], "python")
    prepare(pages, tmp_path, model_dir)
    with hub_server() as hub:
        hub.create(NAME, files={name: c if isinstance(c, bytes) else c.read_bytes() for name, c in upload.items()})
        elsewhere = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        process = subprocess.run(
            [sys.executable, "-c", EACH_IN_A_FORK],
            cwd=tmp_path,
            env={
                **os.environ,
                **elsewhere,
                "HF_HOME": str(tmp_path / "cache"),
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert process.returncode == 0, process.stderr[-4000:]
    assert (tmp_path / "adapted" / "config.json").is_file()


def write_emodb(folder: Path) -> None:
    """Tones under the names of EMO-DB: 6 speakers, 4 emotions, 3 sentences."""
    folder.mkdir(parents=True)
    seconds = np.arange(8000) / 16_000
    for speaker in ("03", "08", "09", "10", "11", "12"):
        for text in ("a01", "a02", "b01"):
            for pitch, emotion in ((600, "W"), (400, "F"), (200, "N"), (100, "T")):
                tone = 0.3 * np.sin(2 * np.pi * (pitch + int(speaker)) * seconds)
                soundfile.write(folder / f"{speaker}{text}{emotion}a.wav", tone, 16_000)


def shell_commands(page: str) -> list[str]:
    """One by one, those that go on over several lines as one."""
    lines = "".join(snippets(page, "bash")).replace("\\\n", "").splitlines()
    return [line for line in lines if line.strip()]


@pytest.mark.slow  # trains with the settings that the pages show
@pytest.mark.parametrize("page", ["README.md", "train/README.md", "scripts/README.md", "hub_card/README.md"])
def test_a_pages_shell_commands_run_in_their_order(page, model_dir, tmp_path):
    for name in ("train", "scripts", "checkpoints", "hub_card", "modeling_edrl_mea"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_emodb(tmp_path / "path/to/emodb")
    (tmp_path / "path/to/noise").mkdir()
    for place, noise in enumerate(noise_recordings(4, seconds=2)):
        soundfile.write(tmp_path / f"path/to/noise/{place}.wav", noise, 16_000)
    write_corpus(tmp_path / "path/to/recordings", n_speakers=6)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(model_dir, tmp_path / MODEL)
    write_model_report(tmp_path / MODEL, tmp_path / MODEL, list(EMOTIONS.values()))
    commands = shell_commands(re.sub(r"\bMODEL(_DIR)?\b", MODEL, (ROOT / page).read_text()))
    run = [command for command in commands if not any(part in command for part in NOT_HERE)]
    assert run
    with hub_server() as hub:
        known = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for command in run:
            process = subprocess.run(
                ["bash", "-ec", command.replace("ORG/", "org/")],
                cwd=tmp_path,
                env={**os.environ, **known, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache")},
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert process.returncode == 0, f"{command}\n{process.stdout[-2000:]}\n{process.stderr[-3000:]}"
