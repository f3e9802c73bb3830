"""The real huggingface_hub client against a Hub on this machine: push, load elsewhere, go on, and be refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http as client
import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

from hub_card.publish import assemble, publish
from hub_card.report import PublishError
from tests.conftest import EMOTIONS, noise_recordings
from tests.support.hub_server import READ_TOKEN, TOKEN, Fault, hub_server
from tests.support.published_models import saved_model, write_model_report
from tests.support.tones import write_corpus

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/edrl-mea"


@pytest.fixture(scope="module")
def model_dir(tiny_model, tmp_path_factory):
    return saved_model(tiny_model("edrl_mea"), tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def report(model_dir):
    return write_model_report(model_dir.parent / "report", model_dir, list(EMOTIONS.values()))


@pytest.fixture(scope="module")
def whole(model_dir, report):
    """What the repository shall show."""
    upload = assemble(model_dir, report, NAME)
    return {name: part if isinstance(part, bytes) else part.read_bytes() for name, part in upload.items()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        pages = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(client.time, "sleep", lambda seconds: None)  # between its attempts
        yield server


def published(hub, name: str = NAME) -> dict[str, bytes]:
    """What the repository shows, without what every repository starts with."""
    files = dict(hub.repositories[name].files)
    files.pop(".gitattributes")
    return files


def puts(hub) -> int:
    return sum(request.startswith("PUT") for request in hub.requests)


# --- pushing --------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_of_everything(hub, model_dir, report, whole):
    assert publish(model_dir, report, NAME, token=TOKEN) == f"{hub.url}/{NAME}"
    assert published(hub) == whole
    assert len(hub.repositories[NAME].commits) == 2  # the Hub's own first one, and ours


def test_pushing_the_same_again_changes_and_sends_nothing(hub, model_dir, report):
    publish(model_dir, report, NAME, token=TOKEN)
    head, sent = hub.repositories[NAME].sha, puts(hub)
    publish(model_dir, report, NAME, token=TOKEN)
    assert (hub.repositories[NAME].sha, puts(hub)) == (head, sent)


def test_files_of_an_earlier_model_do_not_stay_beside_the_new_one(hub, model_dir, report):
    hub.create(NAME, files={"config.json": b'{"model_type": "edrl_mea"}', "old_room.py": b"", "example.wav": b"speech"})
    publish(model_dir, report, NAME, token=TOKEN)
    assert "old_room.py" not in published(hub)
    assert published(hub)["example.wav"] == b"speech"  # somebody else's file is not ours to delete
    assert len(hub.repositories[NAME].commits) == 2


def test_private_repositories_are_private(hub, model_dir, report):
    publish(model_dir, report, NAME, private=True, token=TOKEN)
    assert hub.repositories[NAME].private


# --- what goes wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ("PUT /storage", "drop"),
        ("PUT /storage", 500),
        ("POST .*/batch", 503),
        ("POST .*/commit", "drop"),
        ("POST .*/commit", 500),
        ("GET /api/models", 500),
    ],
)
def test_a_push_that_broke_off_shows_nothing_and_is_repeated(hub, model_dir, report, whole, request_, what):
    hub.faults = [Fault(request_, what)]
    with pytest.raises(PublishError, match=f"{NAME} was not published.*run the same command again"):
        publish(model_dir, report, NAME, token=TOKEN)
    assert NAME not in hub.repositories or not published(hub)
    hub.faults = []
    publish(model_dir, report, NAME, token=TOKEN)
    assert published(hub) == whole


def test_a_single_dropped_connection_is_not_even_noticed(hub, model_dir, report, whole):
    hub.faults = [Fault("PUT /storage", "drop", times=1)]
    publish(model_dir, report, NAME, token=TOKEN)
    assert published(hub) == whole


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, model_dir, report):
    hub.faults = [Fault("POST .*/commit", "drop_answer")]
    with pytest.raises(PublishError, match="run the same command again"):
        publish(model_dir, report, NAME, token=TOKEN)
    publish(model_dir, report, NAME, token=TOKEN)  # the answer to a commit would be lost again
    assert len(hub.repositories[NAME].commits) == 2


def test_an_update_that_breaks_off_leaves_the_published_model(hub, model_dir, report, tiny_model, tmp_path):
    publish(model_dir, report, NAME, token=TOKEN)
    before = published(hub)
    other = saved_model(tiny_model("edrl_mea"), tmp_path / "other")
    hub.faults = [Fault("POST .*/commit", 500)]
    with pytest.raises(PublishError):
        publish(other, write_model_report(tmp_path / "report", other, list(EMOTIONS.values())), NAME, token=TOKEN)
    assert published(hub) == before


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        (NAME, "hf_" + "e" * 34, "refuses the token"),
        (NAME, READ_TOKEN, "may not write there"),
        ("elsewhere/edrl-mea", TOKEN, "may not write there"),
    ],
    ids=["expired", "read-only", "not ours"],
)
def test_a_token_without_the_right_is_told_so_before_anything_is_sent(hub, model_dir, report, name, token, said):
    with pytest.raises(PublishError, match=said) as refusal:
        publish(model_dir, report, name, token=token)
    assert not hub.repositories and not puts(hub)
    assert token not in str(refusal.value)


def test_no_right_to_write_to_an_existing_repository_is_told_before_anything_is_sent(hub, model_dir, report):
    hub.create("elsewhere/edrl-mea")
    with pytest.raises(PublishError, match="may not write there"):
        publish(model_dir, report, "elsewhere/edrl-mea", token=TOKEN)
    assert not published(hub, "elsewhere/edrl-mea") and not puts(hub)


@pytest.mark.parametrize("files", [{"config.json": b'{"model_type": "wav2vec2"}'}, {"model.gguf": b"numbers"}])
def test_a_repository_that_holds_something_else_is_left_alone(hub, model_dir, report, files):
    hub.create(NAME, files=files)
    with pytest.raises(PublishError, match="exists and holds something else"):
        publish(model_dir, report, NAME, token=TOKEN)
    assert published(hub) == files and not puts(hub)


def test_nothing_private_goes_to_a_public_repository(hub, model_dir, report):
    hub.create(NAME)
    with pytest.raises(PublishError, match="exists and is public"):
        publish(model_dir, report, NAME, private=True, token=TOKEN)
    assert not published(hub) and not puts(hub)


def test_a_change_by_somebody_else_is_not_overwritten_unseen(hub, model_dir, report):
    hub.faults = [Fault("POST .*/commit", 412)]
    with pytest.raises(PublishError, match="somebody changed the repository"):
        publish(model_dir, report, NAME, token=TOKEN)


# --- elsewhere: fresh processes with an empty cache -----------------------------------------------------

WITHOUT = """
import importlib.abc, importlib.util, json, sys
import numpy as np

# All that the project uses beside transformers and torch, as if it were not installed.
HIDDEN = {hidden!r}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in HIDDEN else find_spec(name, *rest)

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, NotInstalled())
"""
PACKAGES = ["modeling_edrl_mea", "train", "hub_card", "datasets", "soundfile", "soxr", "sklearn", "torchaudio"]
PACKAGES += ["accelerate", "evaluate", "audiomentations", "scipy", "matplotlib", "pandas", "librosa"]

BY_REMOTE_CODE = """
from transformers import pipeline

recording, name, folder = np.load(sys.argv[1]), sys.argv[2], sys.argv[3]
classify = pipeline("audio-classification", model=name, trust_remote_code=True)
scores = {row["label"]: row["score"] for row in classify(recording)}
inputs = classify.feature_extractor([recording], sampling_rate=16_000, return_tensors="pt")
shape = list(classify.model(**inputs).speech_embedding.shape)
if folder:
    classify.model.save_pretrained(folder)
print(json.dumps([scores, shape, sorted({name.split(".")[0] for name in sys.modules} & set(HIDDEN))]))
"""

BY_IMPORT = """
import json, sys
import numpy as np
from transformers import pipeline

import modeling_edrl_mea
from modeling_edrl_mea import EdrlMeaForAudioClassification

classify = pipeline("audio-classification", model=sys.argv[2])
assert type(classify.model) is EdrlMeaForAudioClassification
print(json.dumps({row["label"]: row["score"] for row in classify(np.load(sys.argv[1]))}))
"""

ALONE = WITHOUT.format(hidden=PACKAGES) + BY_REMOTE_CODE
TRAIN = """
import sys

from train import run

sys.argv = ["train/run.py", *sys.argv[2:]]
run.main()
print("null")
"""


@pytest.fixture
def elsewhere(hub, tmp_path, recording):
    """Runs code in a fresh process, with this Hub as its only one and an empty cache that the test keeps."""
    np.save(tmp_path / "recording.npy", recording)
    elsewhere = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "elsewhere")}

    def run(code: str, *arguments: str, **environment) -> object:
        process = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "recording.npy"), *arguments],
            cwd=environment.pop("cwd", tmp_path),
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_TOKEN": TOKEN, **elsewhere, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def recording():
    return noise_recordings(1, seed=3)[0]


@pytest.fixture
def expected(model_dir, recording):
    classify = pipeline("audio-classification", model=str(model_dir))
    return pytest.approx({row["label"]: row["score"] for row in classify(recording)}, abs=1e-4)


def test_a_published_model_needs_nothing_but_transformers_and_torch(hub, elsewhere, model_dir, report, expected):
    publish(model_dir, report, NAME, token=TOKEN)
    scores, shape, seen = elsewhere(ALONE, NAME, "")
    assert scores == expected and len(shape) == 2 and not seen


@pytest.mark.slow  # three fresh processes
def test_it_loads_offline_and_saved_again_needs_the_first_repository_no_more(
    hub, elsewhere, model_dir, report, expected, tmp_path
):
    publish(model_dir, report, NAME, token=TOKEN)
    elsewhere(ALONE, NAME, str(tmp_path / "again"))
    asked = len(hub.requests)
    scores, _, _ = elsewhere(ALONE, NAME, "", HF_HUB_OFFLINE="1")
    assert scores == expected and len(hub.requests) == asked

    again = write_model_report(tmp_path / "again", tmp_path / "again", list(EMOTIONS.values()))
    publish(again.parent, again, "org/second", token=TOKEN)
    del hub.repositories[NAME]
    scores, _, _ = elsewhere(ALONE, "org/second", "", HF_HOME=str(tmp_path / "third"))
    assert scores == expected


@pytest.mark.slow  # a fresh process
def test_a_published_model_loads_where_the_package_is_imported(hub, elsewhere, model_dir, report, expected):
    publish(model_dir, report, NAME, token=TOKEN)
    assert elsewhere(BY_IMPORT, NAME, PYTHONPATH=str(ROOT)) == expected


@pytest.mark.slow  # trains, in a fresh process
def test_it_is_fine_tuned_from_the_hub_and_pushed_again(hub, elsewhere, model_dir, report, tmp_path):
    publish(model_dir, report, NAME, token=TOKEN)
    corpus, target = write_corpus(tmp_path / "tones", n_speakers=6), tmp_path / "tuned"
    training = ["--model_name_or_path", NAME, "--dataset_name", str(corpus), "--label_scheme", "four_emotions"]
    training += ["--num_train_epochs", "3", "--use_cpu", "True", "--report_to", "none", "--output_dir", str(target)]
    push = ["--push_to_hub", "True", "--hub_model_id", "org/tuned", "--hub_private_repo", "True", "--hub_token", TOKEN]
    elsewhere(TRAIN, *training, *push, PYTHONPATH=str(ROOT))
    tuned = hub.repositories["org/tuned"]
    assert tuned.private and len(tuned.commits) == 2
    assert tuned.files["model.safetensors"] == (target / "model.safetensors").read_bytes()
    assert ModelCard(tuned.files["README.md"].decode()).data.base_model == NAME
    for name, content in tuned.files.items():
        assert TOKEN.encode() not in content and str(tmp_path).encode() not in content, name
