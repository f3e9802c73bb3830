"""Which license a model may carry, after the recordings that it was trained on."""

from collections.abc import Iterable

# From the freest to the strictest; identifiers of the Hub.
BY_STRICTNESS = (
    "cc0-1.0",
    "mit",
    "apache-2.0",
    "odbl",
    "gpl-3.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
)
CODE = "apache-2.0"
# Of backbones that a model may start from, by the last part of their name.
BACKBONES = {
    "wavlm-compact": "cc-by-nc-sa-4.0",
    "wavlm-base": "cc-by-sa-3.0",  # microsoft/UniSpeech, LICENSE
    "wavlm-base-plus": "cc-by-sa-3.0",
    "wavlm-large": "cc-by-sa-3.0",
    "whisper-tiny.en": "mit",  # openai/whisper, LICENSE
}


def backbone_licence(name: str) -> str | None:
    return BACKBONES.get(name.split("/")[-1])


def hub_identifier(licence: str | None) -> str:
    """ "CC BY-NC-SA 4.0" to "cc-by-nc-sa-4.0"; "other" for what the Hub has no name for."""
    name = "-".join((licence or "").lower().replace("_", "-").split())
    name = {"cc0": "cc0-1.0", "public-domain": "cc0-1.0"}.get(name, name)
    return name if name in BY_STRICTNESS else "other"


def strictest(licences: Iterable[str | None]) -> str:
    """The Hub's identifier of the strictest license; "other" where one is unknown and none forbids commerce.

    A license that we cannot read never makes a model freer than the others let it be.
    """
    identifiers = [hub_identifier(licence) for licence in licences]
    known = [name for name in identifiers if name != "other"]
    worst = max(known, key=BY_STRICTNESS.index, default=CODE)
    return "other" if len(known) < len(identifiers) and "-nc-" not in worst else worst
