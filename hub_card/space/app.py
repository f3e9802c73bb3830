"""Recognize emotions in speech, in a browser: python app.py MODEL, a directory or a Hub id."""

import argparse
import contextlib
import html
import os

import gradio as gr
import matplotlib
import numpy as np
from hearing import LIMIT, NOISES, adapted, deciding_blocks, hear, read, verdict, with_noise
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForAudioClassification

with contextlib.suppress(ImportError):  # a Space has no package, and takes the code that lies beside the weights
    import modeling_edrl_mea  # noqa: F401

MODEL = os.environ.get("MODEL_ID", "ORG/NAME")  # of the Space: set it there, under Settings > Variables
LONG = 4.0  # seconds from which a curve over time shows more than one prediction
SHOWN_SECONDS = 60  # heard between two drawings of the curve
MOST_FILES = 50  # that a visitor's model adapts to

matplotlib.rcParams["text.parse_math"] = False  # labels are text, whatever they hold

ABOUT = """
# {name}

Say something, or upload at most {limit} minutes, and press *Listen*. Models like this are mostly trained on
**acted** emotions, and what a voice expresses is not what a person feels. Do not use it for decisions about people; the
EU AI Act bans emotion recognition at work and in schools.
"""


def load(name: str):
    """The model, in evaluation mode. Ends with a clear message where `name` is none."""
    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=True).model_type
        if kind != "edrl_mea":
            raise ValueError(f"it is of type {kind!r}")
        return AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True).eval()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {name} is no EDRL-MEA model, neither a directory nor a Hub id: {error}") from error


def build(model, name: str) -> gr.Blocks:
    """The page around a loaded model."""

    def listen(recording, snr_db, kind, own):
        waveform, rate = _checked(recording)
        before = _or_error(hear, own or model, waveform, rate)
        decided = _blocks_plot(*deciding_blocks(own or model, waveform, rate)) if before.scores else None
        noisy = _noisy(waveform, rate, before, snr_db, kind, own)
        yield before.scores, *noisy, decided, None
        for curve in over_time(waveform, rate, own):
            yield *(gr.skip() for _ in range(5)), curve

    def add_noise(recording, snr_db, kind, own):
        if recording is None:
            return None, None, ""
        waveform, rate = _checked(recording)
        return _noisy(waveform, rate, _or_error(hear, own or model, waveform, rate), snr_db, kind, own)

    def adapt_to(files):
        if not files:
            return None, ""
        if len(files) > MOST_FILES:
            raise gr.Error(f"{len(files)} recordings: give at most {MOST_FILES}.")
        for file in files:
            _or_error(read, file)
        own = _or_error(adapted, model, files)
        report = str(own.adaptation).replace("`", "'")
        return own, f"```\n{report}\n```"

    def _noisy(waveform, rate, before, snr_db, kind, own):
        mixed = with_noise(waveform, snr_db, kind)
        after = hear(own or model, mixed, rate)
        said = verdict(before, after, model.config.attribute_scales)
        return after.scores, (rate, (mixed * 32767).astype(np.int16)), said

    def over_time(waveform, rate, own):
        """The curve, again and again as a long recording is heard."""
        stream, step = (own or model).stream_timeline(rate, hop_s=0.5), SHOWN_SECONDS * rate
        for start in range(0, len(waveform), step):
            stream.push(waveform[start : start + step])
            if start + step < len(waveform):
                yield _curve(stream.timeline, "Over time, so far")
        stream.finish()
        short = f": under {LONG:g} s there is little to see" if len(waveform) < LONG * rate else ""
        yield _curve(stream.timeline, f"Over time{short}")

    names_emotions = not model.config.is_regression
    with gr.Blocks(title=f"{name}: emotions in speech") as page:
        gr.Markdown(ABOUT.format(name=name, limit=LIMIT))
        with gr.Row():
            with gr.Column():
                recording = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Speech", elem_id="speech"
                )
                button = gr.Button("Listen", variant="primary", elem_id="listen")
                clean = gr.Label(label="As recorded", elem_id="clean", visible=names_emotions)
            with gr.Column():
                snr = gr.Slider(-10, 40, value=10, step=1, label="Speech above noise, dB", elem_id="snr")
                kind = gr.Dropdown(NOISES, value=NOISES[0], label="Noise")
                comparison = gr.Markdown(elem_id="verdict")
                noisy = gr.Label(label="With noise", elem_id="noisy", visible=names_emotions)
                mixed = gr.Audio(label="Speech with noise", interactive=False)
        with gr.Accordion("My recordings", open=False, visible=names_emotions):
            gr.Markdown("Some recordings of yours, of mixed emotions: the model adapts to them, for you alone.")
            files = gr.File(file_count="multiple", file_types=["audio"], label="Recordings", elem_id="mine")
            report = gr.Markdown(elem_id="report")
        own = gr.State()
        blocks = gr.Plot(show_label=False)  # Gradio's label would cover a corner of the figure
        curve = gr.Plot(show_label=False)
        in_noise = [noisy, mixed, comparison]
        files.change(adapt_to, files, [own, report])
        button.click(listen, [recording, snr, kind, own], [clean, *in_noise, blocks, curve])
        snr.release(add_noise, [recording, snr, kind, own], in_noise)
        kind.change(add_noise, [recording, snr, kind, own], in_noise)
    return page


def _checked(recording: str | None) -> tuple[np.ndarray, int]:
    if recording is None:
        raise gr.Error("Record or upload some speech first.")
    return _or_error(read, recording)


def _or_error(ask, *arguments):
    """What `ask` returns; the page shows the error of a recording that it refuses."""
    try:
        return ask(*arguments)
    except ValueError as error:  # RecordingError among them
        raise gr.Error(html.escape(str(error))) from error


def _curve(timeline, title: str) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    timeline.plot(axes)
    axes.set_title(title, loc="left")
    return figure


def _blocks_plot(label: str, contributions: dict[str, float]) -> Figure:
    figure = Figure(figsize=(9, 0.9 + 0.35 * len(contributions)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["C0" if value >= 0 else "C3" for value in contributions.values()]
    axes.barh(list(contributions), list(contributions.values()), color=colors)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_title("Which blocks decided", loc="left")
    axes.set_xlabel(f"added to the score of {label}: blue speaks for it, red against")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=MODEL, help="directory or Hub id of an EDRL-MEA model")
    parser.add_argument("--port", type=int, help="of the local page; default: the first free one from 7860")
    options = parser.parse_args()
    page = build(load(options.model), os.path.basename(os.path.normpath(options.model)))
    page.queue(max_size=20).launch(server_port=options.port, max_file_size="200mb")


if __name__ == "__main__":
    main()
