"""What is said to have decided is what decided."""

import numpy as np
import pytest

from tests.conftest import EMOTIONS, every_state, inputs_of, noise_recordings


@every_state
def test_contributions_and_bias_sum_to_the_winning_logit(tiny_model, arrangement, fitted):
    model, recording = tiny_model(arrangement, fitted=fitted).train(), noise_recordings(1, seed=5)[0]
    explanation = model.explain(recording)
    assert model.training
    logits = model.eval()(**inputs_of(model, [recording])).logits[0]
    winner = int(logits.argmax())
    head = model.classifier
    if arrangement in ("edrl", "mea_edrl") or model.stage == "disentanglement":
        head = model.edrl_mea.disentanglement.classifier
    contributions = explanation["logit_contributions"]
    assert explanation["label"] == EMOTIONS[winner]
    assert explanation["logits"] == pytest.approx(dict(zip(EMOTIONS.values(), logits.tolist(), strict=True)), abs=1e-4)
    total = sum(contributions.values()) + head.bias[winner].item()
    assert total == pytest.approx(float(logits[winner]), abs=1e-3)
    blocks = {"shared", *EMOTIONS.values()} if "edrl" in arrangement else {"speech"}
    assert set(contributions) == blocks


def test_nothing_decides_on_silence(tiny_model):
    explanation = tiny_model("mea_edrl").explain(np.zeros(16_000))
    assert explanation["label"] is None and set(explanation["logits"].values()) == {0.0}
