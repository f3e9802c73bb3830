"""The log of a run as JSON lines, and as a picture: losses and validation UAR over the epochs of stage 1."""

import json
import textwrap
from pathlib import Path

from transformers import TrainerCallback


class LogFile(TrainerCallback):
    """Appends what `Trainer` logs to `log.jsonl` in the output directory."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "log.jsonl"

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "epoch": state.epoch, **logs}) + "\n")


def read_log(folder: str | Path) -> list[dict]:
    """What was logged; of a step that was repeated after a kill, the last time."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    lines = {}
    for line in path.read_bytes().splitlines():
        try:
            logged = json.loads(line)
            step, _ = logged["step"], logged["epoch"]
        except (ValueError, KeyError, TypeError):  # a kill can cut a line short, and a disk lose a part
            continue
        kind = "eval" if "eval_loss" in logged else "loss" if "loss" in logged else "other"
        lines[step, kind] = logged
    return list(lines.values())


def plot_training(folder: str | Path) -> Path | None:
    """training.png from log.jsonl, a panel each for losses and validation UAR where there are any; None where stage 1
    logged nothing."""
    log = read_log(folder)
    losses = [logged for logged in log if any(name.startswith("loss_") for name in logged)]
    scores = [logged for logged in log if "eval_uar" in logged]
    if not losses and len(scores) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if losses and scores else 5, 4), layout="constrained")
    axes = figure.subplots(1, bool(losses) + bool(scores), squeeze=False)[0]
    if losses:
        _plot_losses(figure, axes[0], losses)
    if scores:
        _plot_scores(figure, axes[-1], scores)
    figure.suptitle(textwrap.fill(explanation_of_scores(folder) or "", 110), fontsize="small")
    path = Path(folder) / "training.png"
    figure.savefig(path, dpi=120)
    return path


def explanation_of_scores(folder: str | Path) -> str | None:
    """Why validation UAR was the same in all epochs, or best after the first, where it was."""
    scores = [logged["eval_uar"] for logged in read_log(folder) if "eval_uar" in logged]
    started = any("start_regularization" in logged for logged in read_log(folder))
    if not scores or not started or max(scores) > scores[0]:
        return None
    when = "in every epoch" if min(scores) == scores[0] else "after the first epoch, its best"
    return (
        f"Validation UAR was {100 * scores[0]:.1f}% {when}: EDRL started as the classifier fitted at once, and "
        "the epochs only refined it."
    )


def _plot_losses(figure, axis, losses: list[dict]) -> None:
    for name in sorted({name for logged in losses for name in logged if name.startswith("loss_")}):
        points = [(logged["epoch"], logged[name]) for logged in losses if name in logged]
        axis.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("loss_").replace("_", " "))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch", ylabel="weighted loss", title="Stage 1: losses", yscale="log")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize="small")


def _plot_scores(figure, axis, scores: list[dict]) -> None:
    axis.plot([s["epoch"] for s in scores], [100 * s["eval_uar"] for s in scores], color="black", marker=".")
    best = max(scores, key=lambda logged: logged["eval_uar"])
    kept = axis.plot(best["epoch"], 100 * best["eval_uar"], "o", color="tab:red", label="kept")
    figure.legend(handles=kept, loc="outside lower right", fontsize="small")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch", ylabel="UAR, %", title="Validation speakers")
