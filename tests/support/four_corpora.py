"""Four corpora of tones, noise and a recipe on a tiny backbone: what scripts that leave corpora out are given."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import yaml

from .tones import EMOTIONS, write_backbone, write_corpus


def four_corpora(folder: Path, backbone_config, recipe: Mapping, first=EMOTIONS) -> list[str]:
    """Arguments of such a script but its --output; `first`: the labels of the first corpus."""
    for name, size in zip("abcd", (4, 4, 5, 5), strict=True):
        write_corpus(folder / name, size, first if name == "a" else EMOTIONS)
    (folder / "noise").mkdir()
    for number in range(4):
        noise = 0.1 * np.random.default_rng(number).standard_normal(16_000)
        soundfile.write(folder / "noise" / f"{number}.wav", noise, 16_000)
    backbone = write_backbone(folder / "backbone", backbone_config)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(backbone), **recipe}))
    given = [part for name in "abcd" for part in ("--corpus", f"{name}={folder / name}")]
    return [*given, "--noise", str(folder / "noise"), "--recipe", str(folder / "recipe.yaml")]
