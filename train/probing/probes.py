"""Linear classifiers of frozen features, and how recordings are given to them."""

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from modeling_edrl_mea import EdrlMeaConfig
from modeling_edrl_mea.discriminant import fit_discriminant
from modeling_edrl_mea.embeddings import balanced_weights
from modeling_edrl_mea.linear_heads import corpus_folds
from train.evaluation.metrics import uar
from train.evaluation.unseen_corpora import adapted_logits

from .recordings import Corpus

STRENGTHS = (1.0, 5.0, 25.0, 125.0)  # C times the number of features, so that one grid suits 88 and 6,373


class Probe:
    """Logistic regression on standardized features clipped at 6, rotated to their row space (which changes no
    prediction of an L2-penalized model, and makes 6,373 features as fast as there are recordings)."""

    def fit(self, features, emotions, speakers):
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        values = self.standardize(features)
        _, spread, rotation = np.linalg.svd(values, full_matrices=False)
        self.rotation = rotation[spread > 1e-5 * spread[0]].T
        rotated = values @ self.rotation
        self.strength = self.choose_strength(rotated, emotions, speakers)
        self.classifier = self.regression(self.strength).fit(rotated, emotions)
        return self

    def standardize(self, features):
        values = np.clip((features - self.mean) / self.scale, -6, 6)
        return (values / np.sqrt(values.shape[1])).astype(np.float64)

    @staticmethod
    def regression(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)

    def choose_strength(self, rotated, emotions, speakers) -> float:
        folds = list(GroupKFold(min(3, len(set(speakers)))).split(rotated, emotions, speakers))
        scores = []
        for strength in STRENGTHS:
            predicted = np.empty_like(emotions)
            for train, test in folds:
                model = self.regression(strength).fit(rotated[train], emotions[train])
                predicted[test] = model.predict(rotated[test])
            scores.append(uar(emotions, predicted))
        return STRENGTHS[int(np.argmax(scores))]

    def predict(self, features):
        return self.classifier.predict(self.standardize(features) @ self.rotation)

    def predict_adapted(self, features):
        """With a bias for each class, so that the mean prediction over these features is uniform."""
        logits = self.classifier.decision_function(self.standardize(features) @ self.rotation)
        for _ in range(100):  # each step brings the mean prediction nearer to uniform, as Sinkhorn's do
            logits = logits - np.log(softmax(logits, axis=1).mean(0))
        return self.classifier.classes_[logits.argmax(1)]


class NoisyDiscriminant:
    """The regularized discriminant on standardized features of recordings and their noisy copies, every corpus counting
    the same; class ids as predictions."""

    def fit(self, features, emotions, corpora):
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        labels, folds = torch.from_numpy(emotions), corpus_folds(list(corpora))
        weights = balanced_weights(labels, list(corpora))
        self.config = EdrlMeaConfig(id2label={i: str(i) for i in range(1 + int(emotions.max()))})
        self.head = fit_discriminant(
            torch.from_numpy(self.standardize(features)), labels, weights, self.config.num_labels, folds
        )
        return self

    def standardize(self, features):
        return np.clip((features - self.mean) / self.scale, -6, 6).astype(np.float64)

    def logits(self, standardized):
        return self.head.logits(torch.from_numpy(standardized)).numpy()

    def predict(self, features):
        return self.logits(self.standardize(features)).argmax(1)

    def predict_adapted(self, features):
        return adapted_logits(self.standardize(features), self.logits, self.config).argmax(1)


def fit_clean(corpora: list[Corpus], features: list[np.ndarray]) -> Probe:
    """Of clean recordings, whose features are given by corpus."""
    speakers = [f"{corpus.name} {speaker}" for corpus in corpora for speaker in corpus.speakers]
    emotions = np.concatenate([corpus.emotions for corpus in corpora])
    return Probe().fit(np.concatenate(features), emotions, np.array(speakers))


def fit_with_copies(corpora: list[Corpus], features: list[np.ndarray]) -> NoisyDiscriminant:
    """Of recordings and their copies, whose features (files, copies + 1, size) are given by corpus."""
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in features])
    n_each = features[0].shape[1]
    emotions = np.concatenate([corpus.emotions for corpus in corpora]).repeat(n_each)
    return NoisyDiscriminant().fit(rows, emotions, [corpus.name for corpus in corpora for _ in corpus.files * n_each])
