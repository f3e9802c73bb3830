import pytest
import torch
from transformers import WavLMModel

from modeling_edrl_mea.frames import frame_lengths, receptive_field
from tests.support.pretraining import CONFIG, TINY, stream_of
from train.pretraining.student import backbone_config
from train.pretraining.targets import HOP
from train.pretraining.teacher import Teacher
from train.pretraining.training_run import export


@pytest.mark.parametrize("kind", ["whisper", "wavlm"])
def test_the_teacher_hears_each_clean_recording_alone(folders, tmp_path, teachers, kind):
    batch = stream_of(folders, tmp_path, batch_size=6, noisy_share=1.0)[0]
    teacher = Teacher(teachers[kind], CONFIG, "cpu")
    said = teacher.states(batch)
    assert torch.equal(said, teacher.states({**batch, "noisy": torch.randn_like(batch["noisy"])}))
    length = int(batch["lengths"].min())
    row, frames = int(batch["lengths"].argmin()), frame_lengths(CONFIG, length)
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    alone |= {"clean": alone["clean"][:, :length], "mask": alone["mask"][:, :frames]}
    torch.testing.assert_close(said[:, row, :frames], teacher.states(alone)[:, 0], atol=1e-4, rtol=1e-3)


def test_a_click_is_in_the_same_frame_for_teacher_and_pupil(teachers):
    frame, mask = 20, torch.zeros(1, frame_lengths(CONFIG, 16000))
    clean = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    clicked = clean.clone()
    clicked[0, frame * HOP + receptive_field(CONFIG) // 2] = 20.0
    for folder in teachers.values():
        teacher = Teacher(folder, CONFIG, "cpu")
        with_click, without = (
            teacher.states({"clean": signal, "lengths": torch.tensor([16000]), "mask": mask})[0, 0]
            for signal in (clicked, clean)
        )
        assert int((with_click - without).norm(dim=1).argmax()) == frame


def test_a_teacher_of_another_pace_is_refused(tmp_path):
    config = backbone_config(**{**TINY, "conv_stride": [5, 4, 4, 2]})
    slow = export(config, WavLMModel(config).state_dict(), tmp_path)
    with pytest.raises(ValueError, match="a frame every 160 samples, the student every 320"):
        Teacher(str(slow), CONFIG, "cpu")
