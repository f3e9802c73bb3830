"""A report as Markdown tables, rates in percent."""

from hub_card.wording import condition_and_setting, figures_explained, number, percent
from train.data.summary import as_text

TITLES = {
    "clean": "Clean speech",
    "corruption": "Corruptions",
    "cross_corpus": "Cross-corpus",
    "leave_one_corpus_out": "Leave-one-corpus-out",
}


def as_markdown(report: dict) -> str:
    """The whole report for people: what was run, means with intervals, comparisons, and every result."""
    parts = [
        f"# Robustness report, {report['created']}",
        f"```\n{report['command']}\n```",
        _data(report),
        figures_explained(report["results"]),
        _errors(report),
        _summaries(report),
        _comparisons(report),
        _corruption_errors(report),
        _calibration(report),
        _results(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def results_table(results: list[dict], with_model: bool = True) -> str:
    """One line a result that has emotions; nothing where none has."""
    results = [row for row in results if row["metrics"]["uar"]["value"] is not None]
    if not results:
        return ""
    head = ["model"] * with_model + ["trained on", "tested on", "condition", "recordings", "speakers"]
    head += ["UAR (95%)", "WA", "macro-F1", "ECE", "calibrated"]
    lines = []
    for row in results:
        metrics = row["metrics"]
        cells = [row["model"]] * with_model + [" + ".join(row["train"]) or "?", row["test"], condition_and_setting(row)]
        cells += [str(row["n_recordings"]), str(row["n_speakers"]), percent(metrics["uar"])]
        cells += [_value_alone(metrics.get(name)) for name in ("wa", "macro_f1", "ece", "ece_calibrated")]
        lines.append(cells)
    return markdown_table(head, lines)


def attributes_table(results: list[dict], with_model: bool = True) -> str:
    """One line a result and attribute; nothing where none is rated."""
    head = ["model"] * with_model + ["trained on", "tested on", "condition", "attribute", "scale", "recordings"]
    head += ["CCC (95%)", "Pearson", "RMSE"]
    lines = []
    for row in results:
        for name, found in row.get("attributes", {}).items():
            low, high = found["scale"]
            cells = [row["model"]] * with_model + [" + ".join(row["train"]) or "?", row["test"]]
            cells += [condition_and_setting(row), name, f"{low:g}–{high:g}", str(found["n_recordings"])]
            lines.append(cells + [number(found[metric]) for metric in ("ccc", "pearson", "rmse")])
    return markdown_table(head, lines) if lines else ""


def _value_alone(entry: dict | None) -> str:
    return percent((entry or {}).get("value"))


def markdown_table(head: list, lines: list[list]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


def _data(report: dict) -> str:
    data = (report.get("training") or {}).get("data") or report.get("data")
    return f"## What was read\n\n{as_text(data)}" if data else ""


def _errors(report: dict) -> str:
    errors = report.get("errors") or []
    if not errors:
        return ""
    lines = [f"- {error['model']}: {error['error']}" for error in errors]
    return f"## Not measured: {len(errors)}\n\n" + "\n".join(lines)


def _summaries(report: dict) -> str:
    summaries = [entry for entry in report.get("summaries") or [] if ":" not in entry["over"]]
    if not summaries:
        return ""
    columns = list(dict.fromkeys(entry["over"] for entry in summaries))
    found = {(entry["model"], entry["over"]): entry["mean"] for entry in summaries}
    models = [model["name"] for model in report["models"] if any(name == model["name"] for name, _ in found)]
    lines = [[model, *(percent(found.get((model, over))) for over in columns)] for model in models]
    return "## UAR %, mean over corpora and conditions\n\n" + markdown_table(["model", *columns], lines)


def _comparisons(report: dict) -> str:
    if not report["comparisons"]:
        return ""
    parts = []
    for whole in (True, False):
        lines = [
            [entry["model"], entry["baseline"], entry["over"], percent(entry["difference"], signed=True)]
            for entry in report["comparisons"]
            if (":" not in entry["over"]) == whole
        ]
        if lines:
            title = "## Paired differences in UAR, points" if whole else "### The same, corpus by corpus"
            parts.append(f"{title}\n\n" + markdown_table(["model", "less", "over", "difference (95%)"], lines))
    return "\n\n".join(parts)


def _corruption_errors(report: dict) -> str:
    entries = report["corruption_errors"]
    if not entries:
        return ""
    conditions = list(dict.fromkeys(entry["condition"] for entry in entries))
    found = {(entry["model"], entry["condition"]): entry for entry in entries}
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    lines = [[model, *(_ce(found.get((model, condition))) for condition in conditions)] for model in models]
    title = f"## Corruption error (relative), % of {entries[0]['baseline']}'s"
    return f"{title}\n\n" + markdown_table(["model", *conditions], lines)


def _ce(entry: dict | None) -> str:
    if entry is None or entry["ce"] is None:
        return "–"
    relative = entry["relative_ce"]
    return (f"{entry['ce']:.0f}" + (f" ({relative:.0f})" if relative is not None else "")).replace("-", "−")


def _calibration(report: dict) -> str:
    table = calibration_table(report)
    title = "## Expected calibration error %, mean over tests: as it is → at a temperature fitted on other speakers"
    return f"{title}\n\n{table}" if table else ""


def calibration_table(report: dict) -> str:
    """Of a benchmark: whether temperatures carry over to those whom they were not fitted on."""
    if not report.get("summaries"):
        return ""
    found: dict[tuple[str, str], list] = {}
    for row in report["results"]:
        before, after = (row["metrics"].get(name, {}).get("value") for name in ("ece", "ece_calibrated"))
        if before is not None and after is not None:
            found.setdefault((row["model"], row["protocol"]), []).append((before, after))
    columns = [protocol for protocol in TITLES if any(protocol == there for _, there in found)]
    models = list(dict.fromkeys(model for model, _ in found))
    lines = [[model, *(_both_errors(found.get((model, protocol))) for protocol in columns)] for model in models]
    return markdown_table(["model", *map(TITLES.get, columns)], lines) if found else ""


def _both_errors(errors: list[tuple[float, float]] | None) -> str:
    if not errors:
        return "–"
    before, after = (sum(part) / len(errors) for part in zip(*errors, strict=True))
    lower = sum(after < before for before, after in errors)
    return f"{percent(before)} → {percent(after)} (lower in {lower} of {len(errors)})"


def _results(report: dict) -> str:
    parts = []
    for protocol, title in TITLES.items():
        rows = [row for row in report["results"] if row["protocol"] == protocol]
        tables = [table for table in (results_table(rows), attributes_table(rows)) if table]
        if tables:
            parts.append("\n\n".join([f"## {title}", *tables]))
    return "\n\n".join(parts)
