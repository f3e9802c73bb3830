"""Emotion names and label schemes: one table that says what each emotion counts as under each scheme."""

import unicodedata
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

# Class names of each harmonizing scheme, in the order of the class ids.
SCHEMES = {
    "four_emotions": ("anger", "happiness", "neutral", "sadness"),
    "arousal": ("low", "high"),
    "valence": ("negative", "positive"),
}
LABEL_SCHEMES = ("native", *SCHEMES)

# Other words and word forms people write for the emotions above: English first, then German, Dutch, Swedish and Danish,
# French, Spanish, Portuguese, Italian, Polish, Czech, Turkish, Russian, Chinese, Japanese, Korean, Arabic, Hindi,
# Indonesian. Accents need not be written. A word that means two of them in two languages stands nowhere.
_WORDS = {
    "anger": """
        angry, ang, mad, hot anger, furious, rage, ärger, wut, wütend, zorn, zornig, boos, boosheid, woede, kwaad, arg,
        ilska, vrede, colère, en colère, enojo, enojado, enfado, enfadado, ira, raiva, rabia, rabbia, arrabbiato,
        collera, złość, gniew, zły, hněv, kızgın, kızgınlık, öfke, öfkeli, гнев, злость, злой, 愤怒, 憤怒, 生气, 怒り,
        怒, 분노, 화남, غضب, غاضب, क्रोध, गुस्सा, marah
    """,
    "happiness": """
        happy, hap, joy, joyful, joyfully, amusement, amused, cheerful, freude, fröhlich, glück, glücklich, blij,
        blijdschap, vreugde, glad, glädje, glæde, joie, joyeux, heureux, bonheur, alegría, alegre, feliz, felicidad,
        alegria, felicidade, gioia, felicità, felice, radość, szczęście, szczęśliwy, radost, štěstí, mutlu, mutluluk,
        neşe, радость, счастье, радостный, 高兴, 快乐, 开心, 高興, 快樂, 喜び, 喜, 행복, 기쁨, سعادة, سعيد, فرح, खुशी,
        senang, bahagia, gembira
    """,
    "neutral": """
        neu, neutrality, normal, neutraal, neutre, neutro, neutra, neutrale, neutralny, neutralna, neutrální, nötr,
        нейтральный, нейтрально, нейтральная, 中性, 中立, 平常, 중립, محايد, तटस्थ, netral
    """,
    "sadness": """
        sad, trauer, traurig, traurigkeit, verdrietig, verdriet, droevig, ledsen, sorg, tristesse, triste, tristeza,
        tristezza, smutek, smutny, smutný, üzgün, üzüntü, грусть, печаль, грустный, 悲伤, 悲傷, 伤心, 悲しみ, 悲, 슬픔,
        حزن, حزين, दुख, उदास, sedih
    """,
    "fear": """
        fearful, fea, afraid, scared, anxiety, anxious, anxiety fear, angst, ängstlich, furcht, rädsla, rädd, frygt,
        peur, miedo, temor, medo, paura, strach, korku, korkmuş, страх, 恐惧, 恐懼, 害怕, 恐れ, 恐怖, 두려움, 공포,
        خوف, خائف, डर, भय, takut
    """,
    "disgust": """
        disgusted, dis, ekel, walging, afschuw, avsky, äckel, afsky, dégoût, asco, disgusto, nojo, wstręt, obrzydzenie,
        znechucení, tiksinti, iğrenme, отвращение, 厌恶, 厭惡, 恶心, 嫌悪, 혐오, اشمئزاز, घृणा, jijik
    """,
    "surprise": """
        surprised, sur, pleasant surprise, ps, überraschung, überrascht, verrassing, verrast, förvåning, överraskning,
        overraskelse, sorpresa, surpresa, sorprendido, zaskoczenie, zdziwienie, překvapení, şaşkın, şaşkınlık,
        удивление, 惊讶, 驚訝, 惊喜, 驚き, 놀람, مفاجأة, دهشة, आश्चर्य, terkejut
    """,
    "boredom": """
        bored, langeweile, gelangweilt, verveling, verveeld, uttråkad, kedsomhed, ennui, ennuyé, aburrimiento,
        aburrido, tédio, noia, nuda, znudzenie, sıkıntı, sıkılmış, скука, 无聊, 無聊, 退屈, 지루함, ملل, ऊब, bosan
    """,
    "calm": """
        calmness, relaxed, ruhe, ruhig, gelassen, rustig, lugn, calme, calma, tranquilo, calmo, spokój, spokojny, klid,
        sakin, спокойствие, спокойный, 冷静, 落ち着き, 평온, هدوء, هادئ, शांत, tenang
    """,
    "excitement": """
        excited, exc, aufregung, aufgeregt, begeisterung, begeistert, opwinding, excitation, entusiasmo, entuzjazm,
        heyecan, heyecanlı, восторг, 兴奋, 興奮, 흥분
    """,
    "frustration": "frustrated, fru, frustriert, frustratie, frustración, frustração, frustrazione",
    "contempt": """
        contemptuous, verachtung, minachting, mépris, desprecio, desprezo, disprezzo, pogarda, pohrdání, küçümseme,
        презрение, 蔑视, 輕蔑, 軽蔑, 경멸, احتقار
    """,
    "other": "others, oth, andere, sonstige, autre, otro, outro, altro, inne, другое, 其他, その他",
}
ALIASES = {emotion: " ".join(words.split()).split(", ") for emotion, words in _WORDS.items()}


def _key(word: str) -> str:
    """A word without case, accents, and differences in spaces, hyphens and underscores."""
    letters = unicodedata.normalize("NFKD", word.casefold())
    return " ".join(
        "".join(c for c in letters if not unicodedata.combining(c)).replace("_", " ").replace("-", " ").split()
    )


_CANONICAL = {_key(word): emotion for emotion, words in ALIASES.items() for word in (emotion, *words)}


class LabelError(ValueError):
    """An emotion word, or a scheme's name, that nothing here knows."""


def canonical_emotion(word: str) -> str | None:
    """The emotion a word stands for ("Angry", "Wut", "01_anger" → "anger"), or None where the word is not in the
    table."""
    key = _key(word)
    return _CANONICAL.get(key) or _CANONICAL.get(key.strip(" .,;:!?()[]0123456789"))


def nearest_emotion(word: str) -> str | None:
    """The known emotion that is spelled, or has an alias spelled, most like `word`; None where none is near."""
    # Two letters of a short word are another word, so that far less than this finds nonsense.
    close = get_close_matches(_key(word), _CANONICAL, n=1, cutoff=0.75)
    return _CANONICAL[close[0]] if close else None


def check_scheme(label_scheme: str) -> None:
    """Raises LabelError unless `label_scheme` is one of LABEL_SCHEMES."""
    if label_scheme not in LABEL_SCHEMES:
        raise LabelError(f"label scheme {label_scheme!r} is unknown; choose one of {', '.join(LABEL_SCHEMES)}")


def label_under_scheme(word: str, label_scheme: str) -> str | None:
    """The class of an emotion word under a scheme, or None where the scheme leaves that emotion out.

    Under "native" a known word becomes its emotion's name, and any other a class of its own, whatever the case and
    spaces that it is written with.
    Under the other schemes an unknown word raises LabelError, which names the nearest known emotion.
    """
    emotion = canonical_emotion(word)
    if label_scheme == "native":
        return emotion or " ".join(unicodedata.normalize("NFC", word).lower().split())
    if emotion is None:
        near = nearest_emotion(word)
        hint = f"did you mean {near!r}? " if near else ""
        raise LabelError(
            f"emotion {word!r} is not known to the scheme {label_scheme!r}: {hint}"
            f'Known: {", ".join(EMOTIONS)}. Rename it, or use label_scheme="native" to keep it as a class'
        )
    return EMOTIONS[emotion][tuple(SCHEMES).index(label_scheme)]
