"""Numbers and names of a report as its readers see them."""

import json
import math
import re


def percent(interval: dict | float | None, signed: bool = False) -> str:
    """ "71.1 (65.5–73.2)", or signed "+2.1 (−0.4 to +4.0)"; a dash for what the report does not know."""
    if not isinstance(interval, dict):
        interval = {"value": interval}
    if interval["value"] is None or math.isnan(interval["value"]):
        return "–"
    form = "{:+.1f}" if signed else "{:.1f}"
    value, low, high = (
        None if interval.get(key) is None else form.format(100 * interval[key]).replace("-", "−")
        for key in ("value", "low", "high")
    )
    return value if low is None else f"{value} ({low}{' to ' if signed else '–'}{high})"


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


def flat(measured: dict, prefix: str = "") -> dict[str, str]:
    """A tree of measurements as lines: {"latency: 1 s of audio: p50_ms": "12.3"}."""
    lines = {}
    for key, value in measured.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            lines |= flat(value, f"{name}: ")
        elif isinstance(value, list):
            lines[name] = ", ".join(json.dumps(item) if isinstance(item, (dict, list)) else str(item) for item in value)
        elif value is not None:
            lines[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return lines


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
