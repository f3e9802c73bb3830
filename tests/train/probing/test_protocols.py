import numpy as np
import torch

from train.probing.protocols import within_corpus
from train.probing.recordings import Corpus


def test_no_speaker_is_both_trained_on_and_tested():
    speakers = np.repeat([f"s{i}" for i in range(8)], 10)
    emotions = np.repeat(np.arange(8) % 4, 10)  # told by the speaker alone: a leak would score 100
    corpus = Corpus("voices", [""] * 80, emotions, speakers)
    features = np.eye(8)[np.repeat(np.arange(8), 10)] + 1e-3 * torch.randn(80, 8).numpy()
    assert within_corpus(corpus, {"clean": features}, features)["clean"]["uar"] < 60
