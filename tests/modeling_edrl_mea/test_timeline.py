"""A timeline's forms say what its segments say."""

import io
import json

import matplotlib.pyplot
import numpy as np
import pandas
import pytest

from modeling_edrl_mea import Segment, Timeline

matplotlib.use("Agg")
LABELS = ["anger", "neutral", 'very "sad", indeed']


@pytest.fixture
def timeline() -> Timeline:
    """Windows of 2 s every second; anger wins the first two, then neutral, then the third label."""
    rows = [(0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.2, 0.7, 0.1), (0.1, 0.2, 0.7)]
    segments = [
        Segment(float(i), i + 2.0, LABELS[int(np.argmax(row))], dict(zip(LABELS, row, strict=True)), -20.0 - i)
        for i, row in enumerate(rows)
    ]
    return Timeline(segments, LABELS)


def test_stretches_cover_the_recording_once_and_follow_the_nearest_window(timeline):
    assert list(timeline.stretches()) == [(0.0, 2.5, "anger"), (2.5, 3.5, "neutral"), (3.5, 5.0, LABELS[2])]


def test_json_gives_the_timeline_back(timeline, tmp_path):
    text = timeline.to_json(tmp_path / "a.json")
    assert Timeline.from_json(text) == timeline
    assert json.loads((tmp_path / "a.json").read_text())["segments"][2]["scores"]["neutral"] == 0.7


def test_csv_and_pandas_hold_the_same_table(timeline):
    frame = timeline.to_pandas()
    assert list(frame.columns) == ["start", "end", "label", "level_db", "speech_share", *LABELS]
    np.testing.assert_allclose(frame[LABELS].to_numpy(), timeline.probabilities)
    pandas.testing.assert_frame_equal(pandas.read_csv(io.StringIO(timeline.to_csv())), frame)


def test_audacity_labels_are_tabbed_seconds(timeline):
    rows = [line.split("\t") for line in timeline.to_audacity().splitlines()]
    assert rows[0] == ["0.000000", "2.500000", "anger"]
    assert [(float(a), float(b), c) for a, b, c in rows] == list(timeline.stretches())


def test_praat_reads_the_text_grid(timeline, tmp_path):
    parselmouth = pytest.importorskip("parselmouth", reason="needs praat-parselmouth")
    timeline.to_textgrid(tmp_path / "a.TextGrid")
    grid = parselmouth.read(str(tmp_path / "a.TextGrid"))
    call = parselmouth.praat.call
    assert (call(grid, "Get start time"), call(grid, "Get end time")) == (0, 5)
    assert call(grid, "Get tier name", 1) == "emotion"
    found = [
        (
            call(grid, "Get start time of interval", 1, i),
            call(grid, "Get end time of interval", 1, i),
            call(grid, "Get label of interval", 1, i),
        )
        for i in range(1, 1 + call(grid, "Get number of intervals", 1))
    ]
    assert found == list(timeline.stretches())


def test_the_plot_shows_every_labels_scores(timeline):
    axes = timeline.plot()
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert set(drawn) == set(LABELS)
    np.testing.assert_allclose(drawn["anger"], [[1, 0.6], [2, 0.5], [3, 0.2], [4, 0.1]])
    matplotlib.pyplot.close(axes.figure)


def test_a_slice_is_a_timeline(timeline):
    assert timeline[1:3].segments == timeline.segments[1:3] and timeline[-1].end == 5.0


def test_an_empty_timeline_has_every_form_but_a_text_grid():
    empty = Timeline([], LABELS)
    assert empty.to_audacity() == "" and len(empty.to_pandas()) == 0 and Timeline.from_json(empty.to_json()) == empty
    assert empty.probabilities.shape == (0, 3)
    matplotlib.pyplot.close(empty.plot().figure)
    with pytest.raises(ValueError, match="at least one segment"):
        empty.to_textgrid()


def test_no_form_names_an_emotion_in_silence():
    scores = dict.fromkeys(LABELS, 1 / 3)
    speech = {"anger": 0.8, "neutral": 0.1, LABELS[2]: 0.1}
    segments = [
        Segment(0.0, 2.0, "anger", speech, -20.0),
        Segment(2.0, 4.0, None, scores, -120.0),
        Segment(4.0, 6.0, None, scores, -120.0),
        Segment(6.0, 8.0, "anger", speech, -20.0),
    ]
    timeline = Timeline(segments, LABELS)
    assert list(timeline.stretches()) == [(0.0, 2.0, "anger"), (2.0, 6.0, None), (6.0, 8.0, "anger")]
    assert [row.split(",")[2] for row in timeline.to_csv().splitlines()[1:]] == ["anger", "", "", "anger"]
    assert timeline.to_audacity().count("\n") == 2
    assert timeline.to_textgrid().count('text = ""') == 1 and timeline.to_textgrid().count("intervals [") == 3
    assert Timeline.from_json(timeline.to_json()) == timeline
    assert timeline.to_pandas()["label"].isna().tolist() == [False, True, True, False]
    axes = timeline.plot()
    assert all(np.isnan(line.get_ydata()[1:3]).all() for line in axes.lines)
    strips = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert strips == [(0, 2), (2, 6), (6, 8)] and axes.patches[1].get_height() == 1  # gray from bottom to top
    matplotlib.pyplot.close(axes.figure)
