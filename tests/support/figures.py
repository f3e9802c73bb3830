"""What of a figure can be seen."""

from matplotlib.backends.backend_agg import FigureCanvasAgg


def is_visible(line) -> bool:
    """A line of one point shows by its marker alone."""
    return len(line.get_xdata()) > 1 or line.get_marker() not in ("None", "", None)


def overlaps(figure) -> list:
    """Pairs of legends, titles and axes' labels that cover one another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    artists = [*figure.legends, *([figure._suptitle] if figure._suptitle else [])]
    for axis in figure.axes:
        artists += [axis.title, axis.xaxis.label, axis.yaxis.label, *_ticks(axis.xaxis), *_ticks(axis.yaxis)]
        artists += [axis.get_legend()] if axis.get_legend() else []
    visible = [artist for artist in artists if getattr(artist, "get_text", lambda: "x")()]
    boxes = [(artist, artist.get_window_extent(renderer)) for artist in visible]
    return [
        (a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[i + 1 :] if box.overlaps(other) and a is not b
    ]


def _ticks(axis) -> list:
    """Labels of ticks within view; others are kept, and not drawn."""
    low, high = sorted(axis.get_view_interval())
    return [label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]
