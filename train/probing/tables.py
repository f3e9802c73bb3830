"""What was found, as Markdown; UAR in per cent."""

import itertools

import numpy as np

from train.evaluation.markdown import markdown_table

from .recordings import CONDITIONS, Corpus


def table(report: dict, corpora: list[Corpus]) -> str:
    """Markdown tables, UAR in per cent."""
    names = [corpus.name for corpus in corpora]
    columns = [f"{name} {condition}" for condition in CONDITIONS for name in names]
    means = [f"mean {condition}" for condition in CONDITIONS]
    lines = []
    for kind, found in report.items():
        cells = [found["within"][n][c] for c in CONDITIONS for n in names]
        shown = [f"{cell['uar']:.1f} [{cell['interval'][0]:.0f}–{cell['interval'][1]:.0f}]" for cell in cells]
        average = [np.mean([found["within"][n][c]["uar"] for n in names]) for c in CONDITIONS]
        lines.append([kind, str(found["features"]), *shown, *(f"{mean:.1f}" for mean in average)])
    tables = [markdown_table(["features", "size", *columns, *means], lines)]
    if len(names) > 1:
        pairs = [f"{a} > {b}" for a, b in itertools.permutations(names, 2)]
        scores = {kind: [found["across"][pair] for pair in pairs] for kind, found in report.items() if found["across"]}
        lines = [[kind, *(f"{score:.1f}" for score in [*found, np.mean(found)])] for kind, found in scores.items()]
        tables.append(markdown_table(["across corpora, clean", *pairs, "mean"], lines))
    if len(names) > 2:
        protocols = list(next(iter(report.values()))["left_out"][names[0]])
        columns = [f"{protocol}: {' / '.join(names)}; mean" for protocol in protocols]
        tables.append(markdown_table(["left out of training", *columns], left_out_rows(report, names, protocols)))
    return "\n\n".join(tables)


def left_out_rows(report: dict, names: list[str], protocols: list[str]) -> list[list[str]]:
    rows = []
    for kind, found in report.items():
        scores = [[found["left_out"][name][protocol] for name in names] for protocol in protocols]
        rows.append([kind, *(" / ".join(f"{s:.1f}" for s in some) + f"; {np.mean(some):.1f}" for some in scores)])
    return rows
