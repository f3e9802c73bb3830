"""What is published, what never is, and what is refused before anything is sent."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hub_card import __main__ as command
from hub_card.machine_traces import machine_traces, without_machine_traces
from hub_card.publish import assemble, write_upload
from hub_card.report import PublishError
from tests.conftest import EMOTIONS
from tests.support.published_models import copied, saved_model, write_model_report

LABELS = list(EMOTIONS.values())
NAME = "org/edrl-mea"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tiny_model, tmp_path_factory):
    """A model directory with the report inside, as train/run.py leaves it."""
    folder = saved_model(tiny_model("edrl_mea"), tmp_path_factory.mktemp("trained") / "model")
    # What transformers keeps of a backbone that was loaded from a directory.
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["_name_or_path"] = f"{folder.parent}/backbones/wavlm-compact"
    (folder / "config.json").write_text(json.dumps(config))
    write_model_report(folder, folder, LABELS)
    return folder


@pytest.fixture
def model_dir(original, tmp_path):
    return copied(original, tmp_path / "model")


def contents(upload: dict) -> dict[str, bytes]:
    return {name: part if isinstance(part, bytes) else part.read_bytes() for name, part in upload.items()}


# --- what is published ----------------------------------------------------------------------------------


def test_the_upload_is_weights_extractor_code_card_plots_report_and_settings(original):
    upload = assemble(original, original / "report.json", NAME)
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(upload)
    assert {"report.json", "training_config.yaml", "plots/uar_against_snr.png"} <= set(upload)
    assert not {"training_args.bin", "steps.safetensors", "notes.py", "report.md"} & set(upload)
    assert not any(name.startswith("embeddings") for name in upload)


CODE = """
    adaptation alignment backbone configuration_edrl_mea correction disentanglement evaluation_mode
    exact_buffers feature_encoder feature_extraction_edrl_mea frames global_batch loading log_mel_encoders
    modeling_edrl_mea prediction prepared_weights pretrained recordings speech_embedding speech_gate stock_encoders
    targets timeline timeline_stream wavlm windows
"""


def test_the_code_sent_is_the_forward_pass_without_the_solver(original):
    sent = {Path(name).stem for name in assemble(original, original / "report.json", NAME) if name.endswith(".py")}
    assert sent == set(CODE.split())


def does_something(statement: ast.stmt) -> bool:
    """Whether a statement at the top of a module does more than import, define and name things."""
    if isinstance(statement, ast.Try):  # of an optional import
        caught = {handler.type.id for handler in statement.handlers if isinstance(handler.type, ast.Name)}
        parts = statement.body + [part for handler in statement.handlers for part in handler.body]
        return caught != {"ImportError"} or any(map(does_something, parts))
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)  # a docstring
    defines = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return not isinstance(statement, defines)


def test_published_code_does_nothing_at_import_but_define(original):
    upload = contents(assemble(original, original / "report.json", NAME))
    for name, content in upload.items():
        if name.endswith(".py"):
            active = [ast.unparse(part) for part in ast.parse(content).body if does_something(part)]
            assert not active, f"{name}: {active}"


IMPORT_WATCHED = """
import sys
import torch, transformers
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel, WavLMModel
from transformers import SequenceFeatureExtractor

FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.putenv", "os.mkdir", "os.remove")
seen = []

def watch(event, arguments):
    if event.startswith(FORBIDDEN) or (event == "open" and set(str(arguments[1])) & set("wax+")):
        seen.append((event, str(arguments)[:200]))

state = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
sys.addaudithook(watch)
import modeling_edrl_mea
after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
print(seen)
sys.exit(bool(seen) or not torch.equal(state[0], after[0]) or state[1:] != after[1:])
"""


@pytest.mark.slow  # a fresh process
def test_importing_the_package_touches_no_network_file_process_or_global_state():
    process = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_WATCHED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_no_token_and_no_path_of_this_machine_is_in_the_upload(original, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    forbidden = [str(original), str(original.parent), str(Path.home()) + "/", str(ROOT), sys.prefix]
    forbidden += ["hf_" + letter * 34 for letter in "as"]  # in the report's settings, in the environment
    upload = contents(assemble(original, original / "report.json", NAME))
    upload.pop("model.safetensors")  # its numbers may be anything; its header is searched below
    for name, content in upload.items():
        assert not [trace for trace in forbidden if trace.encode() in content], name
    config = json.loads(upload["config.json"])
    assert config["backbone_config"]["_name_or_path"] == "wavlm-compact"
    report = json.loads(upload["report.json"])
    assert report["command"] == "python scripts/benchmark_robustness.py --model model --noise_dir noise"
    assert "hub_token" not in report["training"]["config"]


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("python run.py --data emodb=/home/me/emodb,/x/y/z", "python run.py --data emodb=emodb,z"),
        ("--hub_token hf_" + "x" * 34, "--hub_token TOKEN"),
        ("--hub_token=secret --seed 1", "--hub_token=TOKEN --seed 1"),
        (r"C:\Users\me\emodb", "emodb"),
        ("~/corpora/emodb", "emodb"),
        ("train/run.py --output_dir outputs/a", "train/run.py --output_dir outputs/a"),
        ("https://zenodo.org/records/1188976", "https://zenodo.org/records/1188976"),
        ("noise at 10/0 dB, arousal/valence", "noise at 10/0 dB, arousal/valence"),
        ("org/edrl-mea", "org/edrl-mea"),
    ],
)
def test_paths_become_names_and_everything_else_stays(kept, told):
    assert without_machine_traces(["", {"a": kept}]) == ["", {"a": told}]


@pytest.mark.parametrize("leak", ["hf_" + "b" * 34, "/home/somebody/corpora", str(Path.cwd().resolve())])
@pytest.mark.parametrize("where", ["frames.py", "uar_against_snr.png", "model.safetensors"])
def test_an_upload_with_a_token_or_path_is_refused(model_dir, where, leak):
    if leak.count("/") == 1:
        pytest.skip("run from a directory directly under the root")
    file = model_dir / where
    if where == "model.safetensors":
        save_file(load_file(file), file, metadata={"format": "pt", "made_in": leak})
        write_model_report(model_dir, model_dir, LABELS)
    else:
        file.write_bytes(file.read_bytes() + f"\n# {leak}\n".encode())
    with pytest.raises(PublishError, match=f"{where} would publish") as refusal:
        assemble(model_dir, model_dir / "report.json", NAME)
    assert "hf_b" not in str(refusal.value)


def test_a_token_is_recognized_by_its_value(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-unusual-form")
    assert machine_traces(b"x = 'a-token-of-unusual-form'") == ["a token"]


# --- what is refused ------------------------------------------------------------------------------------


def damage_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def other_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no saved model: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\*.safetensors"),
        (lambda folder: (folder / "frames.py").unlink(), "lacks frames.py, which"),
        (lambda folder: damage_config(folder, model_type="wav2vec2"), "of type 'wav2vec2'"),
        (lambda folder: damage_config(folder, auto_map=None), "names no code"),
        (lambda folder: damage_config(folder, auto_map={"AutoModel": "a" * 5000 + ".X"}), "lacks aaaa"),
        (lambda folder: damage_config(folder, id2label=dict(enumerate(LABELS[::-1]))), "reports on the labels"),
        (other_weights, "is the report of another model: .*edrl-mea-tiny"),
        (lambda folder: (folder / "report.json").unlink(), "no such report"),
        (lambda folder: (folder / "report.json").write_text("not JSON"), "is not JSON"),
        (lambda folder: (folder / "report.json").write_text('{"schema": 1}'), "has the schema 1"),
        (lambda folder: (folder / "report.json").write_text("[]"), "has the schema None"),
        (lambda folder: (folder / "uar_against_snr.png").unlink(), "plot 'uar_against_snr' is missing"),
        (lambda folder: damage_config(folder, block_size="16"), "Nobody could load"),
        (lambda folder: os.truncate(folder / "model.safetensors", 20_000), "model.safetensors is damaged"),
    ],
)
def test_a_bad_directory_or_report_is_refused_by_name(model_dir, damage, named):
    damage(model_dir)
    with pytest.raises(PublishError, match=named):
        assemble(model_dir, model_dir / "report.json", NAME)


def test_plots_of_one_name_are_refused(model_dir):
    (model_dir / "other").mkdir()
    shutil.copy(model_dir / "uar_against_snr.png", model_dir / "other")
    damage_report(model_dir, plots={"a": "uar_against_snr.png", "b": "other/uar_against_snr.png"})
    with pytest.raises(PublishError, match="have one name"):
        assemble(model_dir, model_dir / "report.json", NAME)


def test_what_was_published_can_be_published_again(original, tmp_path):
    first = assemble(original, original / "report.json", NAME)
    write_upload(first, tmp_path / "model")
    assert contents(assemble(tmp_path / "model", tmp_path / "model" / "report.json", NAME)) == contents(first)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PublishError, match="no such directory"):
        assemble(tmp_path / "nothing", tmp_path / "report.json", NAME)


@pytest.mark.parametrize("name", ["edrl-mea", "org/edrl/mea", "org/ed rl", "org/-mea", "org/a..b"])
def test_a_bad_name_is_refused(original, name):
    with pytest.raises(PublishError, match="repo_id="):
        assemble(original, original / "report.json", name)


def damage_report(folder, **changes):
    document = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(document | changes))


def link_to_outside(folder, name):
    (folder.parent / "outside").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "outside")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: damage_report(folder, plots={"x": "../outside.txt"}),
        lambda folder: damage_report(folder, plots={"x": "frames.py"}),
        lambda folder: damage_report(folder, plots={"x": "\0"}),
        lambda folder: link_to_outside(folder, "uar_against_snr.png"),
        lambda folder: link_to_outside(folder, "frames.py"),
        lambda folder: link_to_outside(folder, "config.json"),
        lambda folder: damage_config(folder, auto_map={"AutoModel": "../outside.X"}),
        lambda folder: (folder / "frames.py").write_text("def :"),
    ],
)
def test_nothing_from_outside_is_published(model_dir, damage):
    (model_dir.parent / "outside.txt").write_text("private")
    (model_dir.parent / "outside.py").write_text("")
    damage(model_dir)
    with pytest.raises(PublishError):
        assemble(model_dir, model_dir / "report.json", NAME)


@pytest.mark.parametrize(
    "secret",
    [
        *("glpat-" + "x" * 20, "xoxb-123456789012-abcdef", "AIza" + "x" * 35, "AKIA" + "A" * 16, "ASIA" + "A" * 16),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0x.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
        "https://me:secret@example.org/x",
    ],
)
def test_tokens_of_every_kind_are_known(secret):
    assert machine_traces(f"x = {secret!r}".encode()) == ["a token"] or "\n" in secret
    assert machine_traces(without_machine_traces(secret).encode()) == []


def test_secrets_are_known_by_their_keys_and_homes_with_spaces_by_their_place():
    secrets = {"gitlab_token": "a", "client_secret": "b", "db_password": "c", "pad_token_id": 0}
    assert without_machine_traces(secrets) == {"pad_token_id": 0}
    for path in ("/home/Jane Doe/data/emodb", r"C:\Users\Jane Doe\data\emodb", r"\\host\share\emodb"):
        assert without_machine_traces(path) == "emodb"


# --- the command ----------------------------------------------------------------------------------------


def test_without_push_the_upload_lies_beside_the_model(model_dir, capsys):
    arguments = [str(model_dir), "--repo_id", NAME]
    command.main(arguments)
    folder = model_dir.with_name("model-upload")
    written = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert written == contents(assemble(model_dir, model_dir / "report.json", NAME))
    assert str(folder) in capsys.readouterr().out
    (folder / "plots" / "old.png").write_bytes(b"")
    command.main(arguments)  # an earlier upload is replaced
    assert not (folder / "plots" / "old.png").exists()


def test_somebody_elses_folder_is_not_replaced(model_dir):
    folder = model_dir.with_name("model-upload")
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    with pytest.raises(PublishError, match="is no earlier upload"):
        command.main([str(model_dir), "--repo_id", NAME])
    assert (folder / "thesis.tex").exists()


def test_no_permission_to_write_is_said(model_dir, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PublishError, match="Cannot write the upload to .*Permission denied"):
        command.main([str(model_dir), "--repo_id", NAME])


def test_the_command_ends_with_one_line_and_no_traceback(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "hub_card", str(tmp_path / "nothing"), "--repo_id", NAME],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*no such directory\.\n", process.stderr)
