"""One commit on the Hub: weights, feature extractor, code, card, plots, report, training config. All or nothing."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .card import build_card, emotions_of
from .machine_traces import machine_traces, without_machine_traces
from .model_directory import read_model_directory
from .report import PublishError, read_report

logger = logging.getLogger(__name__)

NOT_A_MODEL = {".gitattributes", ".gitignore", "README.md", "LICENSE"}  # what a repository may hold before its model
OURS = (".py", ".safetensors", ".safetensors.index.json")  # replaced as a whole: a stale shard or module would mislead
Upload = dict[str, "Path | bytes"]


def publish(
    model_dir: str | Path, report: str | Path, repo_id: str, private: bool = False, token: str | None = None
) -> str:
    """Publish a saved model with its report on the Hub, in one commit; a repetition sends only what differs.

    Args:
        report: of `scripts/benchmark_robustness.py` or `train/run.py`, on these very weights.
        repo_id: "ORG/NAME"; made where it does not exist.
        token: with the right to write; the stored one by default.

    Returns:
        The model's address.

    Raises:
        PublishError: what is wrong with directory, report, token or repository; nothing is half-published.
    """
    upload = assemble(model_dir, report, repo_id)
    api = HfApi(token=token)
    with _clear_errors(repo_id):
        _check_repository(api, repo_id, private)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        head = api.model_info(repo_id)
        present = {file.rfilename for file in head.siblings or []}
        stale = [name for name in present - set(upload) if name.endswith(OURS) or name.startswith("plots/")]
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in upload.items()
        ]
        api.create_commit(
            repo_id,
            additions + [CommitOperationDelete(name) for name in sorted(stale)],
            commit_message=f"Publish {repo_id.split('/')[-1]}",
            parent_commit=head.sha,
        )
    return f"{api.endpoint}/{repo_id}"


def assemble(model_dir: str | Path, report: str | Path, repo_id: str) -> Upload:
    """Everything that is published, by its path in the repository. Needs no network. Raises PublishError."""
    model_dir, report = Path(model_dir), Path(report)
    _check_repo_id(repo_id)
    configurations, files = read_model_directory(model_dir)
    configurations = without_machine_traces(configurations)
    found = read_report(report, model_dir, emotions_of(configurations["config.json"]))
    plots = {title: f"plots/{file.name}" for title, file in found.plots.items()}
    upload: Upload = {file.name: file for file in files}
    upload |= {name: _json(content) for name, content in configurations.items()}
    upload |= {place: found.plots[title] for title, place in plots.items()}
    upload["report.json"] = _json(found.document | {"plots": plots})
    if found.training.get("config"):
        upload["training_config.yaml"] = yaml.safe_dump(found.training["config"], allow_unicode=True).encode()
    upload["README.md"] = _card(found, configurations["config.json"], repo_id, plots)
    _search_for_traces(upload, (model_dir, report.parent))
    return dict(sorted(upload.items()))


def _card(found, config: dict, repo_id: str, plots: dict) -> bytes:
    try:
        return build_card(found, config, repo_id, plots).encode()
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, PublishError):
            raise
        raise PublishError(
            f"No card can be made of this report and config.json ({type(error).__name__}: {error}). Make them anew."
        ) from error


def write_upload(upload: Upload, folder: Path) -> None:
    """The upload as a folder; an earlier one is replaced. Raises PublishError where that cannot be."""
    if folder.exists() and not (folder / "report.json").is_file():
        raise PublishError(f"{folder} exists and is no earlier upload: move it away.")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in upload.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
    except OSError as error:
        raise PublishError(f"Cannot write the upload to {folder} ({error}).") from error


def _json(value) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# --- checks before anything is sent ---------------------------------------------------------------------


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"repo_id={repo_id!r} is no name on the Hub: {error}") from error
    if repo_id.count("/") != 1:
        raise PublishError(f"repo_id={repo_id!r} must be ORG/NAME or USER/NAME.")


def _check_repository(api: HfApi, repo_id: str, private: bool) -> None:
    """An existing repository must be one that holds such a model or nothing, and as private as asked."""
    try:
        existing = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return
    if private and not existing.private:
        raise PublishError(f"{repo_id} exists and is public: make it private in its settings, or take another name.")
    names = {file.rfilename for file in existing.siblings or []} - NOT_A_MODEL
    kind = "no config.json"
    if "config.json" in names:
        config = api.hf_hub_download(repo_id, "config.json", revision=existing.sha)
        kind = json.loads(Path(config).read_text(encoding="utf-8")).get("model_type")
    if names and kind != "edrl_mea":
        raise PublishError(f"{repo_id} exists and holds something else ({kind}); nothing was sent. Take another name.")


def _search_for_traces(upload: Upload, folders: tuple[Path, ...]) -> None:
    for name, content in upload.items():
        found = machine_traces(content if isinstance(content, bytes) else _readable_part(content), folders)
        if found:
            raise PublishError(
                f"{name} would publish {', '.join(found)}. Nothing was sent; take it out of the model directory or the "
                "report."
            )


def _readable_part(file: Path) -> bytes:
    """A file's content; of weights their header alone, as the rest is numbers."""
    with open(file, "rb") as stream:
        if file.suffix == ".safetensors":
            return stream.read(int.from_bytes(stream.read(8), "little"))
        return stream.read()


# --- the Hub's errors, in words -------------------------------------------------------------------------


@contextlib.contextmanager
def _clear_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except PublishError:
        raise
    except (HTTPError, RuntimeError, OSError, ValueError) as error:
        raise PublishError(f"{repo_id} was not published: {_explanation(error, repo_id)}") from error


def _explanation(error: BaseException, repo_id: str) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) and cause.response is not None else None
    message = str(cause).strip().split("\n")[0]
    if status == 401:
        return "the Hub refuses the token: missing, wrong or expired. Log in with `hf auth login`, or give another one."
    if status == 403:
        return f"the token may not write there ({message}). Ask for the right to write, or take another name."
    if status == 412:
        return "somebody changed the repository meanwhile. Look at the change, and push again."
    if status is not None and status < 500:
        return f"the Hub refuses it ({message})."
    return (
        f"the connection broke off or the Hub failed ({message}). The commit arrives whole or not at all: run the same "
        "command again, which sends what is missing."
    )
