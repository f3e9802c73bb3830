import numpy as np

from modeling_edrl_mea import load_recording
from tests.support.probed_corpus import write_corpus
from tests.support.tones import write_backbone
from train.probing.features import BackboneFeatures


def test_features_do_not_depend_on_the_batch(tmp_path, tiny_backbone_config):
    extract = BackboneFeatures(str(write_backbone(tmp_path / "backbone", tiny_backbone_config)))
    write_corpus(tmp_path)
    signals = [load_recording(str(tmp_path / f"{i}.wav")) for i in range(5)]
    together, alone = extract(signals), extract(signals, batch_size=1)
    np.testing.assert_allclose(together, alone, atol=1e-4)
