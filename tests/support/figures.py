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
    above = (figure._suptitle, figure._supxlabel, figure._supylabel)
    artists = [*figure.legends, *(text for text in above if text)]
    for axis in figure.axes:
        artists += [axis.title, axis.xaxis.label, axis.yaxis.label, *_ticks(axis.xaxis), *_ticks(axis.yaxis)]
        artists += [axis.get_legend()] if axis.get_legend() else []
    visible = [artist for artist in artists if getattr(artist, "get_text", lambda: "x")()]
    boxes = [(artist, artist.get_window_extent(renderer)) for artist in visible]
    pairs = [(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :] if one[1].overlaps(other[1])]
    return [(a, b) for (a, _), (b, _) in pairs if not (_is_slanted(a) and _is_slanted(b))]


def _is_slanted(artist) -> bool:
    """Slanted texts side by side do not touch, though the boxes around them do."""
    return bool(getattr(artist, "get_rotation", lambda: 0)() % 90)


def _ticks(axis) -> list:
    """Labels of ticks within view; others are kept, and not drawn."""
    low, high = sorted(axis.get_view_interval())
    return [label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]
