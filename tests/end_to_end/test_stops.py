"""Stopped at any step or write, on a full disk, with a damaged file: the same command ends with the uninterrupted run's
weights, bit for bit, or says in one line what to do.

A few cases run by default; `pytest -m slow -s tests/end_to_end/test_stops.py` tries all and prints how many held.
"""

import os
import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.support.forked_runs import Disk, Ended, differences, stop_at_step, train
from tests.support.tables import tried
from tests.support.tones import write_backbone, write_corpus
from train.data import embeddings

N_EPOCHS, STEPS_PER_EPOCH = 2, 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_backbone_config):
    """Settings of a training of a second: of the heads, above a frozen backbone."""
    folder = tmp_path_factory.mktemp("stops")
    return {
        "model_name_or_path": write_backbone(folder / "backbone", tiny_backbone_config),
        "dataset_name": write_corpus(folder / "tones", n_speakers=4, n_takes=1),
        **{"arrangement": "edrl_mea", "num_train_epochs": N_EPOCHS, "per_device_train_batch_size": 4, "patience": 2},
        **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_steps": 1, "save_total_limit": 2},
    }


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """(the folder of a run that nothing disturbs, what it changed on the disk, a line each)"""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = train(flags | {"output_dir": folder / "out"}, Disk(folder / "out", copies=folder))
    assert ended.code == 0, ended.output
    return folder / "out", (folder / "changes.txt").read_text().splitlines()


def ends_well(ended: Ended) -> bool:
    """In a result, or in one line that says what to do."""
    return "Traceback" not in ended.output and (ended.code == 0 or ended.last_line.startswith("error: "))


def goes_on_to(expected: Path, flags: dict) -> str:
    """What is wrong once the same command was given again; "" where nothing is."""
    ended = train(flags)
    if ended.code or "Traceback" in ended.output:
        return ended.output[-1000:]
    return differences(Path(flags["output_dir"]), expected)


def test_all_that_a_run_leaves_is_as_readable_as_any_new_file(undisturbed, tmp_path):
    (tmp_path / "new").write_text("")
    mode = (tmp_path / "new").stat().st_mode
    strange = [path.name for path in undisturbed[0].rglob("*") if path.is_file() and path.stat().st_mode != mode]
    assert strange in ([], [".lock"]) and (undisturbed[0] / "model.safetensors").stat().st_mode == mode


# --- at every step --------------------------------------------------------------------------------------------


def stopped_at_step(flags: dict, expected: Path, folder: Path, case: tuple) -> str:
    strategy, number, step = case
    output_dir = folder / f"{strategy}-{number.name}-{step}" / "out"
    output_dir.parent.mkdir()
    flags = flags | {"output_dir": output_dir, "save_strategy": strategy}
    ended = train(flags, partial(stop_at_step, step, number))
    if ended.code != (-number if number == signal.SIGKILL else 128 + number) or "Traceback" in ended.output:
        return f"{ended.code}: {ended.output[-1000:]}"
    return goes_on_to(expected, flags)


@pytest.mark.parametrize(
    "case", [("steps", signal.SIGTERM, STEPS_PER_EPOCH), ("epoch", signal.SIGKILL, STEPS_PER_EPOCH + 1)]
)
def test_a_stop_at_a_step_changes_nothing(flags, undisturbed, tmp_path, case):
    assert not stopped_at_step(flags, undisturbed[0], tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_a_stop_at_every_step_changes_nothing(flags, undisturbed, tmp_path, strategy, number):
    cases = [(strategy, number, step) for step in range(1, N_EPOCHS * STEPS_PER_EPOCH + 1)]
    tried(partial(stopped_at_step, flags, undisturbed[0], tmp_path), cases)


@pytest.mark.slow
def test_a_stop_at_every_step_of_a_backbone_that_learns_changes_nothing(flags, tmp_path):
    flags = flags | {"keep_last_n_layers": 1, "output_dir": tmp_path / "whole" / "out"}
    (tmp_path / "whole").mkdir()
    assert train(flags).code == 0
    steps = range(1, N_EPOCHS * STEPS_PER_EPOCH + 1)
    cases = [("steps" if step % 2 else "epoch", number, step) for number in SIGNALS for step in steps]
    tried(partial(stopped_at_step, flags, tmp_path / "whole" / "out", tmp_path), cases)


# --- at every write -------------------------------------------------------------------------------------------


def failed_at_change(flags: dict, expected: Path, folder: Path, case: tuple) -> str:
    how, n, _ = case
    output_dir = folder / f"{how}-{n}" / "out"
    output_dir.parent.mkdir()
    flags = flags | {"output_dir": output_dir}
    ended = train(flags, Disk(output_dir, n, how))
    if not (ends_well(ended) if how == "fails" else ended.code == -signal.SIGKILL):
        return f"{ended.code}: {ended.output[-1000:]}"
    if ended.code == 1 and not ("No space left" in ended.last_line or "disk is full" in ended.last_line):
        return ended.last_line
    wrong = goes_on_to(expected, flags)
    shutil.rmtree(output_dir.parent)
    return wrong


def first(changes: list[str], words: str) -> int:
    """The number of the first change of which a line tells that has all these words."""
    return next(n for n, change in enumerate(changes, 1) if all(word in change for word in words.split()))


@pytest.mark.parametrize(
    ("how", "change"),
    [("fails", "save optimizer.pt"), ("torn", "fsync .npy"), ("killed", "os.rename model.partial/config.json")],
)
def test_a_write_that_fails_costs_no_more_than_itself(flags, undisturbed, tmp_path, how, change):
    folder, changes = undisturbed
    assert not failed_at_change(flags, folder, tmp_path, (how, first(changes, change), change))


@pytest.mark.slow
def test_every_write_may_fail(flags, undisturbed, tmp_path):
    folder, changes = undisturbed
    cases = [("fails", n, change) for n, change in enumerate(changes, 1) if "remove" not in change]
    tried(partial(failed_at_change, flags, folder, tmp_path), cases)


def killed_at_change(flags: dict, expected: Path, folder: Path, case: str) -> str:
    """As `failed_at_change`, from what the kill would have left."""
    output_dir = shutil.copytree(expected.parent / case, folder / case / "out")
    wrong = goes_on_to(expected, flags | {"output_dir": output_dir})
    shutil.rmtree(output_dir.parent)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "torn"])
def test_every_write_may_be_the_last(flags, undisturbed, tmp_path, how):
    copies = sorted(undisturbed[0].parent.glob(f"{how}-*"))
    cases = {contents(copy): copy.name for copy in copies}  # syncing and the like leaves all as it was
    print(f"{len(copies)} changes, {len(cases)} states")
    tried(partial(killed_at_change, flags, undisturbed[0], tmp_path), list(cases.values()))


def left_by_a_kill(flags: dict, expected: Path, folder: Path, case: str) -> str:
    """What a kill leaves otherwise than the copy of the undisturbed run says."""
    how, n = case.split("-")
    out = folder / case / "out"
    out.parent.mkdir()
    train(flags | {"output_dir": out}, Disk(out, int(n), how))
    wrong = sizes(out).items() ^ sizes(expected.parent / case).items()
    return str(sorted(wrong) if wrong else "")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "torn"])
def test_a_kill_leaves_what_the_copies_hold(flags, undisturbed, tmp_path, how):
    whole, changes = undisturbed
    cases = [copy.name for copy in sorted(whole.parent.glob(f"{how}-*"))[::10]]
    # transformers copies the model's code in another order each time
    cases = [case for case in cases if "model.partial" not in changes[int(case.split("-")[1]) - 1]]
    tried(partial(left_by_a_kill, flags, whole, tmp_path), cases)


def sizes(folder: Path) -> dict[str, int]:
    """Of all files, 0 for those that tell times or paths."""
    telling = re.compile(r"\.(json|md)|/(whole|hashes)\b")
    return {name: path.stat().st_size * (not telling.search(name)) for name, path in all_of(folder).items()}


def contents(folder: Path) -> frozenset:
    return frozenset((name, path.is_file() and path.read_bytes()) for name, path in all_of(folder).items())


def all_of(folder: Path) -> dict[str, Path]:
    """By name, without the random part of unfinished files' names."""
    return {re.sub(r"\.[0-9a-f]{12}\.", ".", str(path.relative_to(folder))): path for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 64, 256, 512])
def test_on_a_disk_that_is_full_it_says_so_and_room_is_all_it_needs(flags, undisturbed, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> int:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode

    if os.geteuid() != 0 or mount(f"size={kilobytes}k"):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        flags = flags | {"output_dir": disk / "out", "embedding_cache": tmp_path / "embeddings"}
        ended = train(flags)
        assert ended.code == 1 and ends_well(ended), ended.output
        assert "No space left" in ended.last_line or "disk is full" in ended.last_line
        mount("remount,size=64m")
        assert not goes_on_to(undisturbed[0], flags)
    finally:
        subprocess.run(["umount", disk], capture_output=True)


# --- every file damaged ---------------------------------------------------------------------------------------


def one_bit(content: bytes, _) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES = {
    "one bit": one_bit,
    "zeroed": lambda content, _: bytes(len(content)),
    "truncated": lambda content, _: content[: len(content) // 2],
    "removed": lambda content, _: None,
    "of another run": lambda _, other: other,
}


def keep_statistics_in_files() -> None:
    embeddings.HELD_IN_MEMORY = 1000


def stop_with_statistics_in_files() -> None:
    keep_statistics_in_files()
    stop_at_step(N_EPOCHS * STEPS_PER_EPOCH, signal.SIGKILL)


@pytest.fixture(scope="module")
def stopped(flags, tmp_path_factory, tiny_backbone_config):
    """(folder of a run killed in its last step, of another run killed there, whose backbone and seed are others)"""
    folder = tmp_path_factory.mktemp("damage")
    other = {"model_name_or_path": write_backbone(folder / "backbone", tiny_backbone_config, seed=1), "seed": 1}
    for name, more in (("run", {}), ("other", other)):
        (folder / name).mkdir()
        ended = train(
            flags | more | {"output_dir": folder / name / "out", "save_strategy": "steps"},
            stop_with_statistics_in_files,
        )
        assert ended.code == -signal.SIGKILL, ended.output
    return folder / "run" / "out", folder / "other" / "out"


def counterpart(other: Path, file: Path) -> bytes | None:
    """The content of the other run's file of this name."""
    found = sorted(path for path in other.rglob(file.name) if path.parent.name == file.parent.name)
    found = found or sorted(other.rglob(file.name))  # in the cache the folders' names tell the backbones
    return found[0].read_bytes() if found else None


def damaged(flags: dict, expected: Path, stopped: tuple[Path, Path], folder: Path, case: tuple) -> str:
    name, damage = case
    run, other = stopped
    place = folder / f"{name.replace('/', '_')}-{damage}"
    output_dir = shutil.copytree(run, place / "out")
    content = DAMAGES[damage]((output_dir / name).read_bytes(), counterpart(other, output_dir / name))
    (output_dir / name).unlink()
    if content is not None:
        (output_dir / name).write_bytes(content)
    ended = train(flags | {"output_dir": output_dir, "save_strategy": "steps"}, keep_statistics_in_files)
    if not ends_well(ended):
        return ended.output[-1000:]
    if ended.code and "damaged" not in ended.last_line and "other settings" not in ended.last_line:
        return ended.last_line
    wrong = differences(output_dir, expected) if ended.code == 0 else ""
    shutil.rmtree(place)
    return wrong


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("run.json", "truncated"),
        ("steps.safetensors", "of another run"),
        ("optimizer.pt", "zeroed"),
        ("hashes", "one bit"),
        (".npy", "of another run"),
    ],
)
def test_a_damaged_file_is_found_and_made_anew_or_refused(flags, undisturbed, stopped, tmp_path, kind, damage):
    name = [name for name in files_of(stopped[0]) if kind in name][-1]
    assert not damaged(flags, undisturbed[0], stopped, tmp_path, (name, damage))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_may_be_damaged(flags, undisturbed, stopped, tmp_path, damage):
    cases = [(name, damage) for name in files_of(stopped[0])]
    tried(partial(damaged, flags, undisturbed[0], stopped, tmp_path), cases)
