"""Emotion names and label schemes: one table that says what each emotion counts as under each scheme."""

from difflib import get_close_matches

# Arousal and valence are binary, as in cross-corpus work since Schuller, Vlasenko, Eyben, Rigoll & Wendemuth,
# "Acoustic emotion recognition: a benchmark comparison of performances" (ASRU 2009), whose mapping of EMO-DB
# and eNTERFACE'05 gives the rows of anger to boredom, neutral included (low arousal, positive valence: a
# convention, since neutral sits in the middle). Calm, excitement and frustration follow their quadrant in
# Russell's circumplex ("A circumplex model of affect", 1980). Contempt and other have no agreed quadrant.
# Excitement counts as happiness among the four, as is customary for IEMOCAP.
#
#   emotion        four_emotions  arousal  valence        (None: outside the scheme, such rows are dropped)
EMOTIONS = {
    "anger": ("anger", "high", "negative"),
    "happiness": ("happiness", "high", "positive"),
    "neutral": ("neutral", "low", "positive"),
    "sadness": ("sadness", "low", "negative"),
    "fear": (None, "high", "negative"),
    "disgust": (None, "low", "negative"),
    "surprise": (None, "high", "positive"),
    "boredom": (None, "low", "negative"),
    "calm": (None, "low", "positive"),
    "excitement": ("happiness", "high", "positive"),
    "frustration": (None, "high", "negative"),
    "contempt": (None, None, "negative"),
    "other": (None, None, None),
}

# Class names of each harmonising scheme, in the order of the class ids.
SCHEMES = {
    "four_emotions": ("anger", "happiness", "neutral", "sadness"),
    "arousal": ("low", "high"),
    "valence": ("negative", "positive"),
}
LABEL_SCHEMES = ("native", *SCHEMES)

# Other words and word forms people write for the emotions above.
ALIASES = {
    "anger": ("angry", "ang", "mad", "hot anger", "furious"),
    "happiness": ("happy", "hap", "joy", "joyful", "amusement", "amused"),
    "neutral": ("neu", "neutrality", "normal"),
    "sadness": ("sad",),
    "fear": ("fearful", "fea", "afraid", "scared", "anxiety", "anxious", "anxiety fear"),
    "disgust": ("disgusted", "dis"),
    "surprise": ("surprised", "sur", "pleasant surprise", "ps"),
    "boredom": ("bored",),
    "calm": ("calmness", "relaxed"),
    "excitement": ("excited", "exc"),
    "frustration": ("frustrated", "fru"),
    "contempt": ("contemptuous",),
}
_CANONICAL = {word: emotion for emotion, words in ALIASES.items() for word in (emotion, *words)}
_CANONICAL["other"] = "other"


class LabelError(ValueError):
    """An emotion word, or a scheme's name, that nothing here knows."""


def canonical_emotion(word: str) -> str | None:
    """The emotion a word stands for ("Angry" → "anger"), or None where the word is not in the table."""
    return _CANONICAL.get(" ".join(word.lower().replace("_", " ").replace("-", " ").split()))


def nearest_emotion(word: str) -> str | None:
    """The known emotion that is spelt, or has an alias spelt, most like `word`; None where none is near."""
    close = get_close_matches(word.lower().strip(), _CANONICAL, n=1, cutoff=0.5)
    return _CANONICAL[close[0]] if close else None


def check_scheme(label_scheme: str) -> None:
    """Raises LabelError unless `label_scheme` is one of LABEL_SCHEMES."""
    if label_scheme not in LABEL_SCHEMES:
        raise LabelError(f"label scheme {label_scheme!r} is unknown; choose one of {', '.join(LABEL_SCHEMES)}")


def label_under_scheme(word: str, label_scheme: str) -> str | None:
    """The class of an emotion word under a scheme, or None where the scheme leaves that emotion out.

    Under "native" a known word becomes its emotion's name and any other word stays a class of its own.
    Under the other schemes an unknown word raises LabelError, which names the nearest known emotion.
    """
    emotion = canonical_emotion(word)
    if label_scheme == "native":
        return emotion or word.strip()
    if emotion is None:
        near = nearest_emotion(word)
        hint = f"did you mean {near!r}? " if near else ""
        raise LabelError(
            f"emotion {word!r} is not known to the scheme {label_scheme!r}: {hint}"
            f'Known: {", ".join(EMOTIONS)}. Rename it, or use label_scheme="native" to keep it as a class'
        )
    return EMOTIONS[emotion][tuple(SCHEMES).index(label_scheme)]
