"""The closed-form steps of training: standardisation, MEA, and the classifier on aligned embeddings."""

import logging

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from modeling_edrl_mea import EdrlMeaForAudioClassification, MultiblockPLS
from modeling_edrl_mea.component_choice import assign_folds

from .embeddings import Embeddings
from .noise_metric import fit_noise_metric

logger = logging.getLogger(__name__)

ROWS = 512  # recordings per pass through the heads
INVERSE_REGULARIZATION = [
    0.0001,
    0.001,
    0.01,
    0.1,
]  # C of the logistic regression, on embeddings of unit variance
N_FOLDS = 4


def fit_speech_embedding(model: EdrlMeaForAudioClassification, data: Embeddings) -> None:
    """Standardise, and whiten, by the clean originals and their noisy copies alike."""
    model.edrl_mea.speech_embedding.fit(data.layer_statistics)


def fit_alignment(model: EdrlMeaForAudioClassification, data: Embeddings, accelerator=None) -> MultiblockPLS:
    """MEA in one pass over the recordings, shared among processes; EDRL's weights stay as they are.

    Raises:
        ValueError: the number of components is to be chosen, and there are fewer than two speakers.
    """
    model.eval()
    config = model.config
    metric = fit_noise_metric(model, data, accelerator) if config.shrinks_noise else None
    scale_blocks, standardize = config.scale_blocks and not metric, not metric  # the metric is a scaling
    pls = MultiblockPLS(config.n_components, scale_blocks, standardize, ridge=config.alignment_ridge)
    folds = assign_folds(data.speakers) if config.choose_n_components else None
    rank, n_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    for rows in torch.arange(len(data))[rank::n_processes].split(ROWS):
        clean = data.layer_statistics[data.clean_rows[rows]].to(model.device)
        own, labels = data.layer_statistics[rows].to(model.device), data.labels[rows].to(model.device)
        inputs = model.edrl_mea.alignment_inputs(own, clean, labels, metric)
        pls.partial_fit(*inputs, folds=None if folds is None else folds[rows])
    if n_processes > 1:
        pls.reduce(accelerator)
    chosen = None if folds is None else pls.select_n_components()
    pls.solve(chosen, accelerator=accelerator if n_processes > 1 else None)
    if metric:
        metric.undo(pls, config.alignment_target)
    if not config.standardize_components:
        pls.score_scales_ = pls.score_scales_.square().mean().sqrt().expand_as(pls.score_scales_)
    model.alignment.load_solution(pls)
    return pls


def train_classifier(model: EdrlMeaForAudioClassification, data: Embeddings) -> float:
    """Logistic regression on the aligned embedding (on u without MEA), balanced by the sample weights; returns its C.

    C is chosen by cross-validation whose folds share no speaker.
    """
    regression = fit_regression(classifier_features(model, data), data)
    weight, bias = weights_of(regression, model.config.num_labels)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    return regression.C


def start_disentanglement(model: EdrlMeaForAudioClassification, data: Embeddings) -> float:
    """EDRL starts as the logistic regression on what it is given: t, or u without MEA; returns the chosen C."""
    regression = fit_regression(classifier_features(model, data), data)
    model.edrl_mea.disentanglement.start_from(*weights_of(regression, model.config.num_labels))
    return regression.C


def fit_regression(features: np.ndarray, data: Embeddings) -> LogisticRegression:
    labels, weights = data.labels.numpy(), data.sample_weights.numpy()
    regression = LogisticRegression(max_iter=5000)
    folds = _folds(features, labels, data.speakers)
    if folds:
        search = GridSearchCV(regression, {"C": INVERSE_REGULARIZATION}, scoring="balanced_accuracy", cv=folds)
        return search.fit(features, labels, sample_weight=weights).best_estimator_
    return regression.set_params(C=0.1).fit(features, labels, sample_weight=weights)


@torch.no_grad()
def classifier_features(model: EdrlMeaForAudioClassification, data: Embeddings) -> np.ndarray:
    """(N, k) aligned embeddings, or (N, S) speech embeddings where the arrangement has no MEA."""
    model.eval()
    features = []
    for statistics in data.layer_statistics.split(ROWS):
        output = model.edrl_mea(layer_statistics=statistics.to(model.device))
        features.append(output.speech_embedding if model.alignment is None else output.aligned_embedding)
    return torch.cat(features).double().cpu().numpy()


def _folds(features, labels, speakers) -> list:
    groups = np.unique(speakers, return_inverse=True)[1]
    n_folds = min(N_FOLDS, len(set(groups)))
    if n_folds < 2:
        return []
    return list(StratifiedGroupKFold(n_folds, shuffle=True, random_state=0).split(features, labels, groups))


def weights_of(regression: LogisticRegression, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, features) weights and (C,) biases."""
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = np.vstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
    classes = torch.from_numpy(regression.classes_)
    weights, biases = torch.zeros(n_classes, weight.shape[1]), torch.full((n_classes,), -30.0)  # -30: never shown
    weights[classes], biases[classes] = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return weights, biases
