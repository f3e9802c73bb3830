"""The log of a run as JSON lines, and as a picture: losses and validation UAR over the epochs of stage 1."""

import json
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
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            logged = json.loads(line)
        except ValueError:  # a kill can cut a line short
            continue
        kind = "eval" if "eval_loss" in logged else "loss" if "loss" in logged else "other"
        lines[logged["step"], kind] = logged
    return list(lines.values())


def plot_training(folder: str | Path) -> Path | None:
    """training.png from log.jsonl; None where stage 1 logged nothing."""
    log = read_log(folder)
    losses = [logged for logged in log if "loss" in logged]
    scores = [logged for logged in log if "eval_uar" in logged]
    if not losses and not scores:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    terms = sorted({name for logged in losses for name in logged if name.startswith("loss_")})
    for name in terms:
        points = [(logged["epoch"], logged[name]) for logged in losses if name in logged]
        left.plot(*zip(*points, strict=True), label=name.removeprefix("loss_").replace("_", " "))
    left.set(xlabel="epoch", ylabel="weighted loss", title="Stage 1: losses", yscale="log")
    if terms:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize="small")
    if scores:
        right.plot([s["epoch"] for s in scores], [100 * s["eval_uar"] for s in scores], color="black")
        best = max(scores, key=lambda logged: logged["eval_uar"])
        right.plot(best["epoch"], 100 * best["eval_uar"], "o", color="tab:red", label="kept")
        right.legend()
    right.set(xlabel="epoch", ylabel="UAR, %", title="Validation speakers")
    path = Path(folder) / "training.png"
    figure.savefig(path, dpi=120)
    return path
