"""Who is trained on and who is tested: speakers held out, corpus against corpus, and each corpus left out."""

from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

from train.evaluation.metrics import bootstrap_interval, confusion_by_speaker, uar

from .features import features_of, features_of_copies
from .probes import Probe, fit_clean, fit_with_copies
from .recordings import CONDITIONS, Corpus

FOLDS = 5
FOLD_DRAWS = 5  # ways to put speakers into folds: of nine speakers, another draw alone moves the UAR by 4 points


def judge(corpora: list[Corpus], extract, noise: list[str], cache: Path, augmentation=None, n_copies: int = 0) -> dict:
    """All protocols for one kind of features; with copies those that train on recordings beside such copies."""
    per_corpus = [{c: features_of(corpus, c, extract, noise, cache) for c in CONDITIONS} for corpus in corpora]
    trained, fit = [features["clean"] for features in per_corpus], fit_clean
    across = _across_corpora(corpora, trained) if len(corpora) > 1 and not n_copies else {}
    if n_copies:
        fit = fit_with_copies
        for place, corpus in enumerate(corpora):
            copies = [features_of_copies(corpus, n, extract, augmentation, cache) for n in range(n_copies)]
            trained[place] = np.stack([trained[place], *copies], 1)
    within = {
        corpus.name: within_corpus(corpus, *features, fit)
        for corpus, *features in zip(corpora, per_corpus, trained, strict=True)
    }
    apart = _left_out(corpora, per_corpus, trained, fit) if len(corpora) > 2 else {}
    return {"features": per_corpus[0]["clean"].shape[1], "within": within, "across": across, "left_out": apart}


def within_corpus(corpus: Corpus, features: dict[str, np.ndarray], train_features, fit=fit_clean) -> dict[str, dict]:
    """UAR and its interval in each condition, over FOLD_DRAWS ways to put speakers into folds; every speaker is tested
    by probes that were not trained on them."""
    predicted = {condition: np.empty((FOLD_DRAWS, len(corpus.files)), int) for condition in features}
    folds = min(FOLDS, len(set(corpus.speakers)))
    for draw in range(FOLD_DRAWS):
        splitter = GroupKFold(folds, shuffle=True, random_state=draw)
        for train, test in splitter.split(corpus.files, corpus.emotions, corpus.speakers):
            probe = fit([corpus.select(train)], [train_features[train]])
            for condition, values in features.items():
                predicted[condition][draw, test] = probe.predict(values[test])
    emotions, speakers = np.tile(corpus.emotions, FOLD_DRAWS), np.tile(corpus.speakers, FOLD_DRAWS)
    return {
        condition: _interval(emotions, found.ravel(), speakers)  # the mean over draws: each has the same emotions
        for condition, found in predicted.items()
    }


def _interval(emotions, predicted, speakers) -> dict:
    """UAR and its 95% interval from resampling speakers, per cent."""
    counts, _ = confusion_by_speaker(emotions, predicted, speakers, 1 + int(max(emotions.max(), predicted.max())))
    estimate, low, high = bootstrap_interval("uar", counts)
    return {"uar": 100 * estimate, "interval": (100 * low, 100 * high)}


def _across_corpora(corpora: list[Corpus], clean: list[np.ndarray]) -> dict[str, float]:
    """UAR for each `trained > tested` pair of corpora."""
    scores = {}
    for i, trained in enumerate(corpora):
        probe = Probe().fit(clean[i], trained.emotions, trained.speakers)
        for j, tested in enumerate(corpora):
            if i != j:
                scores[f"{trained.name} > {tested.name}"] = 100 * uar(tested.emotions, probe.predict(clean[j]))
    return scores


def _left_out(corpora: list[Corpus], per_corpus: list[dict[str, np.ndarray]], train_features, fit=fit_clean) -> dict:
    """UAR on each corpus, clean and in noise, of a probe trained on all others; as it is and adapted."""
    scores = {}
    for i, tested in enumerate(corpora):
        others = [j for j in range(len(corpora)) if j != i]
        probe = fit([corpora[j] for j in others], [train_features[j] for j in others])
        scores[tested.name] = {
            f"{condition}{suffix}": 100 * uar(tested.emotions, predict(per_corpus[i][condition]))
            for condition in ("clean", "0 dB")
            for suffix, predict in (("", probe.predict), (" adapted", probe.predict_adapted))
        }
    return scores
