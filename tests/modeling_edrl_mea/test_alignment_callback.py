"""The stock Trainer with the callback ends with what the closed form gives on cached embeddings."""

import copy

import torch
from transformers import Trainer, TrainingArguments

from modeling_edrl_mea import AlignmentCallback, closed_form
from modeling_edrl_mea.embeddings import Embeddings

from .test_closed_form import RECORDINGS, embeddings


class Waveforms(torch.utils.data.Dataset):
    def __init__(self, model):
        self.extract = model.feature_extractor()

    def __len__(self):
        return len(RECORDINGS)

    def __getitem__(self, row):
        longest = max(map(len, RECORDINGS))
        inputs = self.extract(
            [RECORDINGS[row]], sampling_rate=16_000, padding="max_length", max_length=longest, return_tensors="pt"
        )
        return {name: tensor[0] for name, tensor in inputs.items()} | {"labels": row % 4}


def test_alignment_from_audio_is_that_from_cached_embeddings(tiny_model, tmp_path):
    from_audio = tiny_model("edrl_mea", fitted=False, n_components=3)
    from_cache = copy.deepcopy(from_audio)
    args = TrainingArguments(
        str(tmp_path), max_steps=1, learning_rate=0.0, per_device_train_batch_size=8, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    from_audio.freeze_backbone()
    Trainer(from_audio, args, train_dataset=Waveforms(from_audio), callbacks=[AlignmentCallback()]).train()
    closed_form.fit_alignment(from_cache, slice_of(embeddings(from_cache), 24))
    for name, expected in from_cache.alignment.named_buffers():
        torch.testing.assert_close(from_audio.alignment.get_buffer(name), expected, atol=1e-3, rtol=1e-3, msg=name)


def slice_of(data: Embeddings, n: int) -> Embeddings:
    return Embeddings(data.layer_statistics[:n], data.labels[:n], data.speakers[:n], data.clean_rows[:n])
