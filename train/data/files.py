"""Files that are there whole or not at all, at whatever moment the process that writes them is killed; and the hashes
by which their content is known."""

import ast
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from modulefinder import ModuleFinder
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save

from modeling_edrl_mea.recordings import check_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("modeling_edrl_mea", "train")  # whose code decides what a model predicts
SETTLED = 10**9  # nanoseconds after which a change of a file shows in its times, on any file system
UNFINISHED = ".tmp"  # ends the names of files that are being written, so that no pattern for finished ones finds them


def is_address(source) -> bool:
    """Of a storage that fsspec reaches (s3://…, gs://…, https://…, memory://…), and no path on this machine."""
    return "://" in str(source)


def as_path(source, **options) -> Path:
    """A path on this machine or, of an address, what does as one; `options` are fsspec's for its storage."""
    if not is_address(source):
        return Path(source)
    from upath import UPath

    path = UPath(source, **options)
    return Path(path.path) if path.protocol in ("file", "local") else path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Where to write a file that gets its name `path` when it is whole and on the disk, or in the storage of an
    address.

    `path` stays what it was where the block raises or the process dies. Several processes may write one file at a
    time: each has a temporary file of its own beside it, and the last to finish wins.
    """
    if is_address(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (temporary := Path(folder, path.name))
            path.fs.put_file(str(temporary), path.path)  # an object is there when all of it is
        return
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:12]}{UNFINISHED}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)  # or a power failure may take the name back
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. The library's own `save_file` makes it readable by its owner alone, leaves a hidden file
    beside it where the process is killed, and says of a full disk what is no OSError."""
    path.write_bytes(save(tensors, metadata))


def write_json(path: Path, content) -> None:
    """What a benchmark found; folders that are not there are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, default=str, indent=1), encoding="utf-8")


def write_sealed(path: Path, content: dict) -> None:
    """JSON with its checksum; keys have to be text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"checksum": fingerprint(content), "content": content}))


def read_sealed(path: Path) -> dict | None:
    """What [`write_sealed`] wrote; None where it is not there or damaged."""
    try:
        sealed = json.loads(path.read_bytes())
        return sealed["content"] if sealed["checksum"] == fingerprint(sealed["content"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remove_unfinished(folder: str | Path, name: str = "*") -> None:
    """Remove what killed writers of files of this name left in a folder (not below it) that no other process is writing
    to; nobody else's files end like that."""
    if is_address(folder):
        return
    for leftover in Path(folder).glob(f"{name}.{'[0-9a-f]' * 12}{UNFINISHED}"):
        leftover.unlink(missing_ok=True)


class StampedFacts:
    """What reading whole files told of them: each is read again only when it has changed since, by its size and times.
    From one run to the next they are kept in a file, which may be lost."""

    def __init__(self, path: Path | None = None):
        self.path, self.known, self.has_news = None, {}, False
        self.keep_in(path)

    def keep_in(self, path: Path | None) -> None:
        if path != self.path:
            self.path, self.known = path, self.known | (read_sealed(path) or {})

    def of(self, path: Path, read: Callable[[Path], object]):
        """`read(path)`, which JSON can hold, from memory where it is known."""
        try:
            status = path.stat()
        except OSError:
            return read(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self.known.get(str(path))
        if known is None or known[0] != stamp:
            known = stamp, read(path)
            if time.time_ns() - status.st_ctime_ns > SETTLED:  # else another change might not show
                self.known[str(path)], self.has_news = known, True
        return known[1]

    def save(self) -> None:
        if self.has_news and self.path:
            with suppress(OSError):  # read-only, or full: it is only remembered
                write_sealed(self.path, self.known)
            self.has_news = False


# --- hashes ---------------------------------------------------------------------------------------------------


def fingerprint(content, digits: int = 16) -> str:
    """Hexadecimal digits of SHA-256 that change with text, bytes, or settings that JSON can hold."""
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:digits]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with as_path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksum(path: Path, content: Iterable) -> bytes:
    """4 bytes that change with a file's content, given in parts, and with its place: so another file in its stead is
    found too."""
    value = zlib.crc32(f"{path.parent.name}/{path.stem}".encode())
    for part in content:
        value = zlib.crc32(part, value)
    return value.to_bytes(4, "little")


NOT_LEARNED = ("corpus", "language", "text", "split")  # columns that no model learns from


def content_hash(recording) -> bytes:
    """SHA-256 of a recording's file; RecordingError where there is none."""
    if isinstance(recording, dict):
        if recording.get("bytes"):
            return hashlib.sha256(recording["bytes"]).digest()
        recording = recording["path"]
    check_file(recording)
    return bytes.fromhex(HASHES.of(Path(recording), file_hash))


HASHES = StampedFacts()  # of recordings' files


def fingerprint_of_data(dataset) -> str:
    """16 hexadecimal digits of the recordings' content, labels, ratings and speakers, in their order."""
    digest = hashlib.sha256()
    told = [name for name in dataset.column_names if name not in ("audio", "label", "speaker", *NOT_LEARNED)]
    columns = (dataset[name] for name in ("audio", "label", "speaker", *told))
    for recording, *known in zip(*columns, strict=True):
        digest.update(content_hash(recording) + f"{' '.join(map(str, known))}\n".encode())
    return digest.hexdigest()[:16]


def fingerprint_of_weights(*modules, settings: str = "") -> str:
    """16 hexadecimal digits of torch modules' parameters and buffers, and of what else decides their output."""
    digest = hashlib.sha256(settings.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of_code(module: str, root: Path = ROOT) -> str:
    """16 hexadecimal digits of a module's code and of all that it imports from [`PACKAGES`]; comments and docstrings
    do not count."""
    digest = hashlib.sha256()
    for name, path in sorted(imported_files(module, root).items()):
        digest.update(f"{name} {ast.dump(_without_docstrings(path))}".encode())
    return digest.hexdigest()[:16]


def imported_files(module: str, root: Path = ROOT) -> dict[str, Path]:
    """The files of a module and of all that it imports, at any depth, from [`PACKAGES`] under `root`, by name."""
    finder = _OwnImports([str(root)])
    finder.import_hook(module)
    return {name: Path(found.__file__) for name, found in finder.modules.items() if found.__file__}


class _OwnImports(ModuleFinder):
    """Follows imports inside [`PACKAGES`] alone; libraries are known by their versions."""

    def find_module(self, name, path, parent=None):
        if path is None and name not in PACKAGES:
            raise ImportError(name)
        return super().find_module(name, path, parent)


def _without_docstrings(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), *_]:
                node.body.pop(0)
    return tree
