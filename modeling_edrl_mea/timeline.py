"""A recording's emotions over time, and its forms: table, plot, JSON, CSV, Audacity labels, Praat TextGrid."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PLOT_SIZE = (9.0, 3.2)  # inches
NO_SPEECH = "0.92"  # gray


@dataclass(frozen=True)
class Segment:
    """One window of a recording: from `start` to `end` seconds, `scores` by label that sum to 1, the `label` that
    scores highest, the loudness `level_db`: root mean square in dB of full scale, -120 for digital silence, and
    `speech_share`: how much of it is speech, 0 to 1; `attributes` by name, where the model rates any.

    `label` is None where nobody speaks; the scores are then what the model makes of the noise, and in silence the same
    for every emotion."""

    start: float
    end: float
    label: str | None
    scores: dict[str, float]
    level_db: float
    speech_share: float = 1.0  # of timelines that were saved before there was a speech gate
    attributes: dict[str, float] | None = None


class Timeline(Sequence):
    """Segments of a recording, in order of time; they overlap where the hop is shorter than the window.

    A segment without speech has no label: None, an empty cell in CSV, no Audacity label, an empty interval in Praat, a
    gap in the plot. Its scores have no meaning, since no model here was taught what no voice sounds like.
    """

    def __init__(self, segments: Sequence[Segment], labels: Sequence[str]):
        self.segments, self.labels = list(segments), list(labels)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index):
        chosen = self.segments[index]
        return Timeline(chosen, self.labels) if isinstance(index, slice) else chosen

    def __eq__(self, other) -> bool:
        same = isinstance(other, Timeline)
        return same and self.segments == other.segments and self.labels == other.labels

    def __repr__(self) -> str:
        if not self.segments:
            return "Timeline(no segment)"
        first, last = self.segments[0], self.segments[-1]
        return f"Timeline({len(self)} segments, {first.start:.2f}–{last.end:.2f} s, labels {self.labels})"

    @property
    def probabilities(self) -> np.ndarray:
        """(segments, labels) scores."""
        rows = [[segment.scores[label] for label in self.labels] for segment in self.segments]
        return np.array(rows).reshape(len(self), len(self.labels))

    @property
    def attribute_names(self) -> list[str]:
        """In the order of the model; none where it rates none."""
        return list(self.segments[0].attributes or ()) if self.segments else []

    def stretches(self) -> Iterator[tuple[float, float, str | None]]:
        """(start, end, label) without overlap or gap: every moment has the label of the window whose middle is
        nearest, None without speech, and neighbors of the same label are one."""
        start = None
        for i, segment in enumerate(self.segments):
            start = segment.start if start is None else start
            following = self.segments[i + 1] if i + 1 < len(self) else None
            if following is not None and following.label == segment.label:
                continue
            end = segment.end if following is None else (middle(segment) + middle(following)) / 2
            yield start, end, segment.label
            start = end

    def to_pandas(self):
        """A `DataFrame` with a row a segment: start and end (s), label, level_db, speech_share, and scores by
        label."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self._rows()), columns=self._columns)

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """`{"labels": […], "segments": [{"start", "end", "label", "scores": {…}, "level_db",
        "speech_share", "attributes"}, …]}`."""
        content = {"labels": self.labels, "segments": [vars(segment) for segment in self.segments]}
        return written(json.dumps(content, ensure_ascii=False, indent=1), path)

    @classmethod
    def from_json(cls, text: str) -> "Timeline":
        """What `to_json` returned."""
        content = json.loads(text)
        return cls([Segment(**segment) for segment in content["segments"]], content["labels"])

    def to_csv(self, path: str | os.PathLike | None = None) -> str:
        """The table of `to_pandas` as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self._columns)
        writer.writerows(self._rows())
        return written(buffer.getvalue(), path)

    def to_audacity(self, path: str | os.PathLike | None = None) -> str:
        """A label track for Audacity's File > Import > Labels: `start<TAB>end<TAB>label` a stretch with a label."""
        labeled = [stretch for stretch in self.stretches() if stretch[2] is not None]
        lines = [f"{start:.6f}\t{end:.6f}\t{' '.join(label.split())}\n" for start, end, label in labeled]
        return written("".join(lines), path)

    def to_textgrid(self, path: str | os.PathLike | None = None) -> str:
        """A Praat TextGrid with one interval tier, `emotion`, of the stretches.

        Raises ValueError where there is no segment: Praat has no empty TextGrid.
        """
        stretches = list(self.stretches())
        if not stretches:
            raise ValueError("A TextGrid needs at least one segment, and this timeline has none.")
        first, last = stretches[0][0], stretches[-1][1]
        span = [f"xmin = {first:.6f}", f"xmax = {last:.6f}"]
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *span, "tiers? <exists>", "size = 1"]
        lines += ["item []:", "    item [1]:", '        class = "IntervalTier"', '        name = "emotion"']
        lines += [" " * 8 + line for line in (*span, f"intervals: size = {len(stretches)}")]
        for number, (start, end, label) in enumerate(stretches, start=1):
            text = (label or "").replace('"', '""')
            lines += [f"        intervals [{number}]:"]
            lines += [" " * 12 + line for line in (f"xmin = {start:.6f}", f"xmax = {end:.6f}", f'text = "{text}"')]
        return written("\n".join(lines) + "\n", path)

    def plot(self, axes=None):
        """Scores over time on matplotlib `axes` (a new figure's by default), under a strip of the winning labels;
        where nobody speaks it is gray.

        Returns the axes; save by `timeline.plot().figure.savefig("timeline.png")`.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        if axes is None:
            axes = plt.figure(figsize=PLOT_SIZE, layout="constrained").add_subplot()
        colors = {label: f"C{i % 10}" for i, label in enumerate(self.labels)}
        middles = [middle(segment) for segment in self.segments]
        has_no_label = np.array([segment.label is None for segment in self.segments], dtype=bool)
        for label, scores in zip(self.labels, self.probabilities.T, strict=True):
            scores = np.where(has_no_label, np.nan, scores)
            axes.plot(middles, scores, ".-", color=colors[label], label=label)
        for start, end, label in self.stretches():
            if label is not None:
                axes.axvspan(start, end, ymin=0.94, color=colors[label], linewidth=0)
            elif self.labels:
                axes.axvspan(start, end, color=NO_SPEECH, linewidth=0, zorder=0)
        if self.segments:
            axes.set_xlim(self.segments[0].start, self.segments[-1].end)
        axes.set(ylim=(0, 1.07), xlabel="time in s", ylabel="score")
        if self.attribute_names:
            self._plot_attributes(axes.twinx(), middles)
        if self.labels:
            place = (1.08, 0.7) if self.attribute_names else (1, 0.5)
            axes.legend(loc="center left", bbox_to_anchor=place, frameon=False)
        return axes

    def _plot_attributes(self, axes, middles: list[float]) -> None:
        """Dotted, on a scale of their own at the right."""
        for i, name in enumerate(self.attribute_names, start=len(self.labels)):
            ratings = [s.attributes[name] if s.speech_share else np.nan for s in self.segments]
            axes.plot(middles, ratings, ":", color=f"C{i % 10}", label=name)
        axes.set_ylabel("rating")
        axes.legend(loc="center left", bbox_to_anchor=(1.08, 0.2), frameon=False)

    @property
    def _columns(self) -> list[str]:
        return ["start", "end", "label", "level_db", "speech_share", *self.labels, *self.attribute_names]

    def _rows(self) -> Iterator[list]:
        for segment in self.segments:
            scores = [segment.scores[label] for label in self.labels]
            about = [segment.start, segment.end, segment.label, segment.level_db, segment.speech_share]
            yield about + scores + list((segment.attributes or {}).values())


def middle(segment: Segment) -> float:
    return (segment.start + segment.end) / 2


def written(text: str, path: str | os.PathLike | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    return text
