import numpy as np
import pytest

from tests.support.pretraining import CONFIG, settings_of_batches
from train.pretraining.mixtures import MixtureStream
from train.pretraining.recordings import N_DESCRIPTORS, Recordings, audio_files, decode
from train.pretraining.targets import principal_functionals


def test_opensmile_describes_the_frames_of_each_crop(folders, tmp_path):
    pytest.importorskip("opensmile")
    speech = Recordings.build(tmp_path / "speech", [str(folders[0])], opensmile=True, workers=1)
    functionals = principal_functionals(speech.functionals)
    batch = MixtureStream(speech, None, functionals, settings_of_batches(batch_size=6), CONFIG)[0]
    assert batch["descriptors"].shape == (*batch["mask"].shape, N_DESCRIPTORS)
    assert len(batch["functionals"]) == 6
    last = speech.files.index(str(folders[0] / "5.wav"))  # a tone of 300 Hz; the first descriptor is the pitch in Hz
    pitch = speech.descriptors(last, start=3200, count=20)[:, 0]
    assert np.median(pitch) == pytest.approx(300, rel=0.05)


def test_a_file_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    with pytest.raises(ValueError, match="broken.wav: does not decode"):
        decode(str(tmp_path / "broken.wav"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no audio files"):
        audio_files(str(tmp_path / "nothing"))
