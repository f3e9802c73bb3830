from pathlib import Path

import numpy as np
import pytest

from tests.support.probed_corpus import write_corpus, write_noise
from train.probing.recordings import noisy, read_corpus


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory) -> Path:
    return write_noise(tmp_path_factory.mktemp("noise"))


def test_noise_is_added_at_the_level_asked_for_and_is_the_same_each_time(corpus_folder, noise_folder):
    path, noise = str(corpus_folder / "0.wav"), [str(noise_folder / "4-1.wav")]
    clean, disturbed = noisy(path, noise, None), noisy(path, noise, 10.0)
    measured = 10 * np.log10(clean.var() / (disturbed - clean).var())
    assert measured == pytest.approx(10.0, abs=0.05)
    assert np.array_equal(disturbed, noisy(path, noise, 10.0))


def test_a_sample_of_a_corpus_is_the_same_each_time(corpus_folder):
    some, again = (read_corpus(str(corpus_folder), 20) for _ in range(2))
    assert len(some.files) == 20 and some.files == again.files
    with pytest.raises(ValueError, match="elsewhere"):
        read_corpus(str(corpus_folder / "elsewhere"), 20)
