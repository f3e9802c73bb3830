"""The demo page: what it computes, and the page itself in a headless browser."""

import html
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from markdown_it import MarkdownIt

from modeling_edrl_mea import Prediction
from tests.conftest import EMOTIONS, noise_recordings
from tests.support.voice import vowels

SPACE = Path(__file__).resolve().parents[2] / "hub_card" / "space"


def load_module(name: str):
    """A module of the Space, which is a flat folder and no package."""
    spec = importlib.util.spec_from_file_location(name, SPACE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hearing = load_module("hearing")
markdown = MarkdownIt()  # with HTML passed through, as the page does
tables = MarkdownIt().enable("table")


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("edrl_mea")


@pytest.fixture(scope="module")
def speech():
    return vowels(1.0)


# --- what it computes -----------------------------------------------------------------------------------


def test_scores_are_those_of_pipeline(model, speech):
    inputs = model.feature_extractor()([speech], sampling_rate=16_000, return_tensors="pt")
    expected = model(**inputs).logits.softmax(-1)[0].tolist()
    assert list(hearing.hear(model, speech, 16_000).scores.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", hearing.NOISES)
@pytest.mark.parametrize("snr_db", [30, 0])
def test_noise_is_mixed_in_at_the_ratio_that_the_slider_says(speech, kind, snr_db):
    mixed = hearing.with_noise(0.1 * speech, snr_db, kind)
    noise = mixed - 0.1 * speech
    measured = 10 * np.log10(np.mean((0.1 * speech) ** 2) / np.mean(noise**2))
    assert measured == pytest.approx(snr_db, abs=0.1)
    assert np.array_equal(mixed, hearing.with_noise(0.1 * speech, snr_db, kind))


def test_silence_and_loud_noise_stay_finite_and_unclipped(speech):
    assert not hearing.with_noise(np.zeros(800, np.float32), 0, "pink").any()
    assert np.abs(hearing.with_noise(speech, -10, "white")).max() <= 1


def test_gradios_recordings_are_read_whatever_their_form(speech):
    speech = speech / np.abs(speech).max()
    integers = (speech * 32767).astype(np.int16)
    mono, rate = hearing.as_mono((48_000, integers))
    assert rate == 48_000
    np.testing.assert_allclose(mono, speech, atol=1e-4)
    np.testing.assert_allclose(hearing.as_mono((16_000, np.stack([integers] * 2, axis=1)))[0], speech, atol=1e-4)
    unsigned = ((speech + 1) * 127.5).astype(np.uint8)
    np.testing.assert_allclose(hearing.as_mono((16_000, unsigned))[0], speech, atol=0.02)
    with pytest.raises(ValueError, match="empty"):
        hearing.as_mono((16_000, np.array([])))
    with pytest.raises(ValueError, match="no sound"):
        hearing.as_mono((16_000, np.zeros((800, 2), np.int16)))


def test_a_visitors_recordings_adapt_a_model_of_their_own(model, tmp_path):
    files = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for file, recording in zip(files, noise_recordings(3, seconds=1.0, seed=5), strict=True):
        soundfile.write(file, recording, 16_000)
    own = hearing.adapted(model, files)
    assert own.adaptation.n_recordings == 3 and own.backbone is model.backbone
    assert model.adaptation is None and model.output_adaptation.is_idle


def test_the_verdict_says_whether_the_prediction_holds():
    before = heard({"anger": 0.8, "neutral": 0.2})
    assert "holds:** anger, 80% without and 60%" in hearing.verdict(before, heard({"anger": 0.6, "neutral": 0.4}), {})
    said = hearing.verdict(before, heard({"anger": 0.3, "neutral": 0.7}), {})
    assert "changes:** anger (80%) becomes neutral (70%)" in said


def heard(scores: dict, speech_share: float = 1.0, attributes=None) -> Prediction:
    return Prediction(None, scores, None, speech_share, attributes=attributes)


def test_no_emotion_is_named_where_nobody_speaks(functions, model, tmp_path):
    noise = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, 16_000)
    shown, noisy, _, verdict, blocks, _ = next(functions["listen"](str(tmp_path / "noise.wav"), 10, "pink", None))
    assert shown == noisy == {} and blocks is None and "Nobody speaks" in verdict
    assert "no speech is heard" in hearing.verdict(heard({"anger": 1.0}), heard({}, 0), {})


@pytest.mark.parametrize("kind", ["alone", "beside emotions"])
def test_attributes_stand_on_the_page_on_their_scale(tiny_model, speech, tmp_path, kind):
    settings = {"attribute_names": ["arousal"], "attribute_ranges": {"arousal": [1, 7]}}
    if kind == "alone":
        settings |= {"problem_type": "regression", "id2label": {0: "arousal"}}
    rater = tiny_model("linear", **settings)
    soundfile.write(tmp_path / "speech.wav", speech, 16_000)
    answers = list(page_functions(rater)["listen"](str(tmp_path / "speech.wav"), 10, "pink", None))
    shown, noisy, _, said, blocks, _ = answers[0]
    (row,) = re.findall(r"\| arousal \| 1 to 7 \| (\S+) \| (\S+) \|", said)
    rated = hearing.hear(rater, hearing.read(str(tmp_path / "speech.wav"))[0], 16_000).attributes["arousal"]
    assert row[0] == f"{rated:.1f}" and "<td>1 to 7</td>" in tables.render(said)
    assert bool(shown) == bool(noisy) == (blocks is not None) == ("prediction" in said) == (kind != "alone")
    assert "Nobody speaks" not in said and answers[-1][-1].axes[1].get_ylabel() == "rating"
    assert "–" in hearing.verdict(heard({}, 1.0, {"arousal": 4.0}), heard({}, 0), {"arousal": (1, 7)})


def test_labels_are_text_in_the_verdict(model):
    label = "</b><img src=x onerror=alert(1)> [x](javascript:y) **`|&lt;"
    shown = markdown.render(hearing.verdict(heard({label: 1.0}), heard({label: 1.0}), {}))
    assert label in html.unescape(re.sub(r"</?(p|strong)>", "", shown)) and "<img" not in shown and "<a " not in shown


def test_a_recording_over_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.flac", np.zeros(1_000 * 60 * (hearing.LIMIT + 1)), 1_000)
    monkeypatch.setattr(soundfile, "read", None)
    with pytest.raises(ValueError, match=f"11 minutes long. Give at most {hearing.LIMIT}"):
        hearing.read(str(tmp_path / "long.flac"))


@pytest.fixture(scope="module")
def functions(model):
    """What the page calls, by name."""
    return page_functions(model)


def page_functions(model) -> dict:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install -e '.[demo]'")
    sys.modules["hearing"] = hearing
    return {function.api_name: function.fn for function in load_module("app").build(model, "tiny").fns.values()}


@pytest.mark.parametrize("content", [b"", b"no sound", np.random.default_rng(0).bytes(3_000), "nan", "missing"])
def test_an_upload_that_is_no_recording_is_told_on_the_page(functions, tmp_path, content):
    import gradio

    file = tmp_path / "upload.wav"
    if content == "nan":
        soundfile.write(file, np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    elif content == "missing":
        file = tmp_path / "missing.wav"
    else:
        file.write_bytes(content)
    for ask in (
        lambda: list(functions["listen"](str(file), 10, "pink", None)),
        lambda: functions["add_noise"](str(file), 10, "pink", None),
        lambda: functions["adapt_to"]([str(file)]),
    ):
        with pytest.raises(gradio.Error, match="does not decode|NaN"):
            ask()


def test_the_curve_of_a_long_recording_grows(functions, tmp_path, monkeypatch):
    monkeypatch.setitem(functions["listen"].__globals__, "SHOWN_SECONDS", 4)
    soundfile.write(tmp_path / "speech.wav", vowels(6.0), 16_000)
    answers = list(functions["listen"](str(tmp_path / "speech.wav"), 10, "pink", None))
    assert len(answers) == 3 and answers[0][-1] is None  # the scores at once, then the curve
    assert [answer[-1].axes[0].get_title("left") for answer in answers[1:]] == ["Over time, so far", "Over time"]


def test_the_space_says_what_the_hub_needs_to_start_it():
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert metadata["sdk"] == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", metadata["sdk_version"])
    assert (SPACE / metadata["app_file"]).is_file()
    required = (SPACE / "requirements.txt").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", (SPACE / "app.py").read_text(), flags=re.MULTILINE))
    third_party = imported - set(sys.stdlib_module_names) - {"gradio", "hearing", "numpy"}  # sdk; own; torch's
    assert third_party and all(re.search(rf"^{name}\b", required, flags=re.MULTILINE) for name in third_party)


# --- the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_address(model, tmp_path_factory):
    """The page as its one command starts it, on a saved model."""
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("space")
    model.save_pretrained(folder / "tiny-model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = open(folder / "log.txt", "w+")  # noqa: SIM115  closed below, after the process that writes it
    command = [sys.executable, str(SPACE / "app.py"), str(folder / "tiny-model"), "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **settings, "HF_HOME": str(folder / "cache")}
    )
    try:
        _wait_for(port, process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait_for(port: int, process, log: Path) -> None:
    for _ in range(480):
        if process.poll() is not None:
            pytest.fail(f"the demo ended: {log.read_text()[-2000:]}")
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"the demo did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def browser_page():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1500})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.mark.slow  # starts the demo and a browser
def test_a_recording_is_uploaded_and_predicted_clean_and_in_noise(page_address, browser_page, model, tmp_path):
    recording = vowels(6.0)
    soundfile.write(tmp_path / "speech.wav", recording, 16_000)
    page = browser_page
    page.goto(page_address)
    page.wait_for_selector("#speech input[type=file]", state="attached")
    page.set_input_files("#speech input[type=file]", str(tmp_path / "speech.wav"))
    page.wait_for_selector(
        "#speech input[type=file]", state="detached"
    )  # the player takes its place when it has arrived
    page.click("#listen")
    page.wait_for_function("document.querySelector('#verdict')?.innerText.includes('prediction')")
    page.wait_for_function("document.querySelectorAll('img').length >= 2")
    stored = soundfile.read(tmp_path / "speech.wav", dtype="float32")[0]
    expected = hearing.hear(model, stored, 16_000).scores
    shown = page.inner_text("#clean")
    assert max(expected, key=expected.get) in shown
    assert all(emotion in shown for emotion in EMOTIONS.values())
    in_noise = hearing.hear(model, hearing.with_noise(stored, 10, "pink"), 16_000).scores
    assert max(in_noise, key=in_noise.get) in page.inner_text("#noisy")
    place = os.environ.get("SCREENSHOT_DIR", str(tmp_path))
    page.screenshot(path=f"{place}/demo.png", full_page=True)

    before = page.inner_text("#verdict")
    slider = page.locator("#snr input[type=range]")
    slider.focus()
    slider.evaluate("node => { node.value = -10; node.dispatchEvent(new Event('input', {bubbles: true})); }")
    slider.dispatch_event("pointerup")
    page.wait_for_function(f"document.querySelector('#verdict').innerText !== {before!r}")


@pytest.mark.slow
def test_listening_to_nothing_says_what_to_do(page_address, browser_page):
    browser_page.goto(page_address)
    browser_page.click("#listen")
    browser_page.wait_for_selector("text=Record or upload some speech first")


@pytest.mark.slow
def test_what_is_no_model_is_told_in_one_line(tmp_path):
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install -e '.[demo]'")
    process = subprocess.run(
        [sys.executable, str(SPACE / "app.py"), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 1
    assert "is no EDRL-MEA model" in process.stderr and "Traceback" not in process.stderr
