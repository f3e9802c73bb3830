import numpy as np
import pytest
import soundfile

from train.degradation.augmentation import Augmentation
from train.degradation.corruptions import corruptions
from train.degradation.sources import impulse_response_files, noise_files, noise_sources, sound_files


def write_sounds(folder, names, metadata=None):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.random.default_rng(len(name)).uniform(-0.1, 0.1, 800), 16_000)
    if metadata:
        (folder / metadata[0]).parent.mkdir(exist_ok=True)
        (folder / metadata[0]).write_text(metadata[1])
    return folder


@pytest.fixture
def folded(tmp_path):
    """Five folds of two clips from one source, and four clips from another that has no folds."""
    clips = [f"esc/{fold}-1{fold}0{take}-{take}.wav" for fold in range(1, 6) for take in "AB"]
    others = [f"street/{i}.wav" for i in range(4)]
    rows = [f"{name},{name[4]},ESC-10" for name in clips] + [f"{name},,Street" for name in others]
    text = "file_name,fold,source\n" + "\n".join(rows)
    return write_sounds(tmp_path, clips + others, ("metadata.csv", text))


def test_training_and_testing_share_no_noise_and_use_all(folded):
    training, testing = noise_files(folded, "training"), noise_files(folded, "testing")
    assert not set(training) & set(testing)
    assert sorted(training + testing) == sound_files(folded) == noise_files(folded)


def test_published_folds_are_followed(folded):
    training = noise_files(folded, "training", source="ESC-10")
    assert {path.name[0] for path in training} == {"1", "2", "3"} and len(training) == 6
    assert {path.name[0] for path in noise_files(folded, "testing", source="ESC-10")} == {"4", "5"}
    assert {path.name[0] for path in noise_files(folded, folds=(2,))} == {"2"}


def test_every_source_serves_in_both_parts(folded):
    assert noise_sources(folded) == ["ESC-10", "Street"]
    assert len(noise_files(folded, "training", source="Street")) == 2
    assert len(noise_files(folded, "testing", source="Street")) == 2


def test_the_original_layout_of_esc50_is_understood(tmp_path):
    clips = [f"audio/{fold}-100-A-0.wav" for fold in range(1, 6)]
    rows = "\n".join(f"{name[6:]},{name[6]},dog" for name in clips)
    write_sounds(tmp_path, clips, ("meta/esc50.csv", f"filename,fold,category\n{rows}"))
    assert [path.name[0] for path in noise_files(tmp_path, "training")] == ["1", "2", "3"]


def test_a_folder_without_metadata_is_halved_the_same_way_wherever_it_lies(tmp_path):
    names = [f"{letter}.wav" for letter in "abcdefg"]
    here, there = write_sounds(tmp_path / "here", names), write_sounds(tmp_path / "there", names[::-1])
    training = [path.name for path in noise_files(here, "training")]
    assert training == [path.name for path in noise_files(there, "training")]
    assert len(training) == 4 and len(noise_files(here, "testing")) == 3


def test_positions_in_one_room_stay_together(tmp_path):
    names = [f"Church{room}Position{i}.wav" for room in "ABCD" for i in (1, 2, 3)]
    folder = write_sounds(tmp_path, names)
    for part in ("training", "testing"):
        rooms = [path.name[6] for path in impulse_response_files(folder, part)]
        assert len(rooms) == 6 and all(rooms.count(room) == 3 for room in rooms)


def test_folders_without_noise_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        noise_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no audio"):
        noise_files(tmp_path)
    write_sounds(tmp_path, ["only.wav"])
    assert noise_files(tmp_path, "training")
    with pytest.raises(ValueError, match="add recordings"):
        noise_files(tmp_path, "testing")


def test_the_test_folds_of_real_noise_never_train(shared_data):
    training = noise_files(shared_data / "noise", "training")
    testing = noise_files(shared_data / "noise", "testing")
    assert not {path.name for path in training} & {path.name for path in testing}
    assert {path.name[0] for path in training if path.parent.parent.name == "esc10"} == {"1", "2", "3"}


def test_new_noise_under_an_old_name_is_new_noise(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(1600), 16_000)
    voice = tmp_path / "a.wav"

    def fingerprints() -> list[str]:
        augmentation = Augmentation(tmp_path, babble=[voice])
        return [augmentation.fingerprint, corruptions(tmp_path, levels=(2,))[0].fingerprint]

    before = fingerprints()
    assert fingerprints() == before
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(1600), 16_000)  # as many bytes
    assert not set(before) & set(fingerprints())
