"""Which weights a report is of."""

import hashlib
from pathlib import Path


def weights_fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits of the weights' files (safetensors) in a model directory.

    Raises:
        ValueError: there are none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors file: it is no saved model.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
