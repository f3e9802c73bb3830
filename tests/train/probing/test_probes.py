import numpy as np
from sklearn.linear_model import LogisticRegression

from train.probing.probes import Probe


def test_rotating_features_changes_no_prediction():
    rng = np.random.default_rng(0)
    features, emotions = rng.standard_normal((40, 300)), np.arange(40) % 4
    features[:, 0] += emotions
    probe = Probe().fit(features, emotions, np.arange(40) % 5)
    plain = LogisticRegression(C=probe.strength, class_weight="balanced", tol=1e-6, max_iter=2000)
    plain.fit(probe.standardize(features), emotions)
    other = rng.standard_normal((100, 300))
    agreement = (plain.predict(probe.standardize(other)) == probe.predict(other)).mean()
    assert agreement >= 0.97  # the solver stops within its tolerance


def test_class_biases_make_the_mean_prediction_uniform():
    rng = np.random.default_rng(0)
    emotions = np.arange(400) % 4
    features = np.eye(4)[emotions] + 0.3 * rng.standard_normal((400, 4))
    probe = Probe().fit(features, emotions, np.arange(400) % 7)
    elsewhere = features + np.array([1.2, 0, 0, 0])  # as a microphone would
    plain, adapted = probe.predict(elsewhere), probe.predict_adapted(elsewhere)
    assert np.bincount(plain).max() > 150 and np.ptp(np.bincount(adapted, minlength=4)) < 40
    assert (adapted == emotions).mean() > (plain == emotions).mean() + 0.1
