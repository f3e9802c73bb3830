"""Whatever a report, a config or a model directory holds: what is published fits the schema, loads and tells nothing
private; all else is refused in words before anything is sent.

A part of the cases runs by default; `pytest -m slow -s tests/hub_card/test_damaged_uploads.py` tries 10,000.
"""

import json
import os
import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from huggingface_hub.errors import RepositoryNotFoundError

from hub_card import publish as door
from hub_card.report import PublishError
from hub_card.schema import validate
from modeling_edrl_mea.loading import check_checkpoint
from tests.conftest import EMOTIONS
from tests.support.published_models import saved_model, write_model_report
from tests.support.tables import in_parallel

LABELS = list(EMOTIONS.values())
PRIVATE = "no-one-may-know"
SECRETS = [  # each with what of it must not be told
    *(("hf_" + "x" * 34, "x" * 16), ("ghp_" + "x" * 36, "x" * 16), ("glpat-" + "x" * 20, "x" * 16)),
    *(("xoxb-123456789012-abcdef", "abcdef"), ("AIza" + "x" * 35, "x" * 16), ("AKIA" + "Q" * 16, "Q" * 16)),
    ("https://me:hush@example.org/x", "hush"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0x.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "BEGIN RSA"),
    *(("/home/Jane Doe/data/emodb", "Jane"), ("/Users/jane/emodb", "jane"), ("C:\\Users\\Jane Doe\\emodb", "Jane")),
    ("\\\\fileserver7\\share\\emodb", "fileserver7"),
]
TELLING = {told.encode() for _, told in SECRETS} | {PRIVATE.encode()}
SECRET_KEYS = ["gitlab_token", "HF_TOKEN", "client_secret", "secret_key", "db_password", "api_key"]
PLACES = ["{}", "seen in {}", "--data={} --seed 1", '"{}"', "a,{},b", "({})"]
ODD_NUMBERS = [-1, 0, 2.5, 10**9, float("nan"), float("inf"), 1e999, 10**400]
ODD_TEXTS = ["", "|`<b>[x](y)", "../../x", "/etc/passwd", "\ud800", "\0", "y" * 100_000, "{{ 1/0 }}", "a\nb\r\n# c"]
ODD_TEXTS += ["<script>alert(1)</script>", "![](http://x)", "---\nlicense: mit\n---", "no: [yes", "\u2028", "```\n"]
ODD_VALUES = [None, True, [], {}, [[]], {"a": None}, ["a", 1], *ODD_NUMBERS, *ODD_TEXTS]
ODD_FILES = ["../outside.txt", "\\\\host\\x.png", "C:/x.png", "./../model/config.json", "", ".", "\0", "a" * 5000]


@pytest.fixture(scope="module")
def original(tiny_model, tmp_path_factory):
    """A model directory with its report, the code in it shortened."""
    folder = saved_model(tiny_model("edrl_mea"), tmp_path_factory.mktemp("trained") / "model")
    for code in folder.glob("*.py"):
        if code.stem.startswith(("configuration", "modeling", "feature_extraction")):
            code.write_text("from .frames import X\n")
        elif code.stem != "frames":
            code.unlink()
    (folder / "frames.py").write_text("")
    write_model_report(folder, folder, LABELS)
    report = json.loads((folder / "report.json").read_text())
    report["results"] = report["results"][:2]  # metadata in YAML would take most of the time
    del report["results"][0]["metrics"]["ece"], report["results"][0]["metrics"]["ece_calibrated"]
    (folder / "report.json").write_text(json.dumps(report))
    shutil.rmtree(folder / "embeddings")
    (folder / "training_args.bin").unlink()
    (folder.parent / "outside.txt").write_text(PRIVATE)
    return folder


class Hub:
    """Takes down what is sent to it."""

    endpoint = "https://huggingface.co"

    def __init__(self):
        self.asked, self.sent = [], {}

    def model_info(self, name):
        self.asked.append(name)
        if len(self.asked) == 1:
            raise RepositoryNotFoundError(
                "no such one", response=httpx.Response(404, request=httpx.Request("GET", "/"))
            )
        return SimpleNamespace(siblings=[], sha="0" * 40)

    def create_repo(self, *_, **__):
        self.asked.append("create_repo")

    def create_commit(self, _, operations, **__):
        for operation in operations:
            with operation.as_file() as file:
                self.sent[operation.path_in_repo] = file.read()


def published(folder: Path) -> dict[str, bytes] | None:
    """What reaches the Hub, by name; None where it is refused, of which the Hub then knows nothing."""
    hub = Hub()
    door.HfApi = lambda token: hub
    try:
        door.publish(folder, folder / "report.json", "org/edrl-mea")
    except PublishError as error:
        assert not hub.asked and len(str(error)) > 20 and "\n" not in str(error)[:50]
        return None
    return hub.sent


def whats_wrong(sent: dict[str, bytes], place: Path) -> str:
    """With what was sent; "" where it fits the schema, loads, and tells nothing that it must not."""
    strict = partial(json.loads, parse_constant=lambda name: pytest.fail(f"{name} is published"))
    validate(strict(sent["report.json"]))
    told = {name for name, content in sent.items() for private in TELLING if private in content}
    told -= {"model.safetensors"}  # numbers
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (place / name).write_bytes(sent[name])
    check_checkpoint(place, {})
    pictures = {f"plots/{Path(name).name}" for name in strict(sent["report.json"])["plots"].values()}
    return f"{sorted(told)} tell what is private" if told else str(pictures - set(sent) or "")


# --- damages --------------------------------------------------------------------------------------------------


def places_in(value, place=()):
    yield place
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(part, (*place, key))


def change_value(document, rng) -> None:
    """One value, at any depth, replaced, left out, or made a secret."""
    *way, last = rng.choice([place for place in places_in(document) if place])
    within = document
    for key in way:
        within = within[key]
    kind = rng.random()
    if kind < 0.15:
        del within[last]
    elif kind < 0.3 and isinstance(within, dict):
        within[rng.choice(SECRET_KEYS)] = PRIVATE
    elif kind < 0.5:
        within[last] = rng.choice(PLACES).format(rng.choice(SECRETS)[0])
    elif kind < 0.55 and isinstance(within, dict):  # a secret may be a key, too
        within[rng.choice(SECRETS)[0]] = within[last]
    else:
        within[last] = rng.choice(ODD_VALUES)


def change_json(name: str, folder: Path, rng) -> None:
    document = json.loads((folder / name).read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        change_value(document, rng)
    renew(folder / name, json.dumps(document).encode())


def change_file(folder: Path, rng) -> None:
    """One file flipped, cut, removed or a link, or one named that there must not be."""
    file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    odd = rng.choice([*ODD_FILES, str(folder.parent / "outside.txt")])
    kind = rng.randrange(6)
    if kind == 0:
        replace(folder / "report.json", plots={"x": odd})
    elif kind == 1:
        replace(folder / "config.json", auto_map={"AutoModel": odd + ".X"})
    elif kind == 2:
        content = bytearray(file.read_bytes() or b"\0")
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        renew(file, content)
    elif kind == 3:
        renew(file, file.read_bytes()[: rng.randrange(file.stat().st_size or 1)])
    else:
        file.unlink()
        target = rng.choice([folder.parent / "outside.txt", folder, "/dev/zero", "/proc/self/environ", file])
        if kind == 5:
            file.symlink_to(target)


def replace(path: Path, **values) -> None:
    renew(path, json.dumps(json.loads(path.read_text()) | values).encode())


def renew(path: Path, content: bytes) -> None:
    """A new file, for the old one is the original's."""
    path.unlink()
    path.write_bytes(content)


DAMAGES = {
    "reports": partial(change_json, "report.json"),
    "configs": partial(change_json, "config.json"),
    "uploads": change_file,
}


def attempt(original: Path, folder: Path, kind: str, seeds: range) -> list[tuple[str, str]]:
    """(how it ended, what was wrong with that) for each seed."""
    yaml.SafeLoader = yaml.CSafeLoader  # which reads the card many times faster, to the same
    ended = []
    for seed in seeds:
        place = folder / f"{kind}-{seed}"
        model = shutil.copytree(original, place / "model", copy_function=os.link)
        shutil.copy(original.parent / "outside.txt", place)
        try:
            DAMAGES[kind](model, random.Random(seed))
            sent = published(model)
            wrong = whats_wrong(sent, place) if sent else ""
            ended.append(("published" if sent else "refused", f"seed {seed}: {wrong}" if wrong else ""))
        except BaseException as error:
            ended.append(("failed", f"seed {seed}: {type(error).__name__}: {str(error)[:500]}"))
        shutil.rmtree(place)
    return ended


def tried(ended: list[tuple[str, str]], kind: str) -> None:
    """Prints the table's line and fails with all that did not hold."""
    wrong = [what for _, what in ended if what]
    refused = sum(how == "refused" for how, _ in ended)
    print(f"{kind}: tried {len(ended)}, refused {refused}, published {len(ended) - refused}, wrong {len(wrong)}")
    assert not wrong, "\n".join(wrong[:10])
    assert 0 < refused < len(ended)


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_damaged_is_refused_in_words_or_harmless(original, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(door, "HfApi", None)  # put back afterwards
    tried(attempt(original, tmp_path, kind, range(40)), kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("reports", 4000), ("configs", 3000), ("uploads", 3000)])
def test_thousands_that_are_damaged_are_refused_in_words_or_harmless(original, tmp_path, kind, count):
    parts = [range(start, start + 50) for start in range(1000, 1000 + count, 50)]
    ended = in_parallel(partial(attempt, original, tmp_path, kind), parts)
    tried([one for part in ended for one in part], kind)
