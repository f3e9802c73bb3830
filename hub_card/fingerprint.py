"""Which weights a report is of."""

import hashlib
from pathlib import Path

WEIGHTS = "model*.safetensors"  # as save_pretrained names them, whole or in shards; training may leave others beside


def weights_fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits of the weights' files in a model directory.

    Raises:
        ValueError: there are none.
    """
    files = sorted(Path(folder).glob(WEIGHTS))
    if not files:
        raise ValueError(f"{folder} holds no {WEIGHTS} file: it is no saved model.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
