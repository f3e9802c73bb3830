"""Numbers and names of a report as its readers see them."""

import math
import re

FEW_SPEAKERS = 5  # below it resampling shows little of how much speakers differ


def percent(interval: dict | float | None, signed: bool = False) -> str:
    """ "71.1 (65.5–73.2)", or signed "+2.1 (−0.4 to +4.0)"; a dash for what the report does not know."""
    return _in_words(interval, "{:+.1f}" if signed else "{:.1f}", 100, " to " if signed else "–")


def number(interval: dict) -> str:
    """ "0.61 (0.55–0.70)"; a dash for what the report does not know."""
    return _in_words(interval, "{:.2f}", 1, "–")


def _in_words(interval: dict | float | None, form: str, scale: float, between: str) -> str:
    given = interval if isinstance(interval, dict) else {"value": interval}
    if given["value"] is None or math.isnan(given["value"]):
        return "–"
    known = [given[key] for key in ("value", "low", "high") if given.get(key) is not None]
    value, *ends = (form.format(scale * part).replace("-", "−") for part in known)
    return f"{value} ({between.join(ends)})" if ends else value


def condition_name(condition: str) -> str:
    """ "esc10 noise" rather than "noise_esc10"."""
    return condition.removeprefix("noise_").replace("_", " ") + (" noise" if condition.startswith("noise_") else "")


def condition_and_setting(row: dict) -> str:
    """ "esc10 noise, 10 dB", or "clean"."""
    return condition_name(row["condition"]) + (f", {setting_name(row)}" if row["level"] else "")


def setting_name(row: dict) -> str:
    """What the level of a corruption means: "10 dB", "16 kbit/s"."""
    units = {
        "snr_db": "{} dB",
        "kbits": "{} kbit/s",
        "percent_at_most": "{} % of samples at most",
        "bits": "{} bits",
        "share": "{} lost",
        "gain_db": "{} dB",
        "rt60_s": "RT60 {} s",
    }
    parts = []
    for key, unit in units.items():
        value = (row["setting"] or {}).get(key)
        if value is not None:
            parts.append(unit.format(" to ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"))
    return ", ".join(parts) or f"level {row['level']}"


def figures_explained(results: list[dict]) -> str:
    """What the columns of results mean, and a caution where intervals rest on few speakers."""
    explained = ""
    if any("metrics" in row and row["metrics"]["uar"]["value"] is not None for row in results):
        explained = (
            "All in %. UAR: recall of each emotion, averaged over the emotions, so that rare ones count as much as "
            "frequent ones. WA: share of recordings whose emotion is recognized. Macro-F1: F1 averaged over the "
            "emotions. ECE: expected calibration error, how far the probability of the predicted emotion is from how "
            "often it is right. "
        )
    if any(row.get("attributes") for row in results):
        explained += (
            "Of attributes, CCC: concordance correlation coefficient, Pearson's correlation less what predictions lie "
            "off or spread otherwise than ratings. RMSE: root of the mean squared error, on the attribute's scale. "
        )
    explained += "In brackets: 95% intervals from resampling the speakers tested on, where there were two or more."
    few = sorted({row["n_speakers"] for row in results if 2 <= row["n_speakers"] < FEW_SPEAKERS})
    if few:
        speakers = " or ".join(map(str, few))
        explained += f" **Caution:** intervals over {speakers} speakers are too narrow: other speakers may differ more."
    return explained


class AsIs(str):
    """Text that is meant as Markdown."""


def as_plain_text(value):
    """Text that cannot leave its line or its cell of a table, nor become a link, HTML or code."""
    if not isinstance(value, str) or isinstance(value, AsIs):
        return value
    return re.sub(r"([|`<>\[\]])", r"\\\1", " ".join(value.split("\n")))


def as_code(value) -> AsIs:
    """Text within a block or a span of code, which it cannot end."""
    return AsIs(str(value).replace("`", "'"))
