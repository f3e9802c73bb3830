"""What a pretrained encoder says of clean speech."""

import torch
from torch.nn import functional as F
from transformers import WavLMConfig

from modeling_edrl_mea.backbone import input_settings, load_backbone
from modeling_edrl_mea.frames import receptive_field, samples_per_frame
from train.data.files import atomic_write

from .targets import HOP, PrincipalComponents, frame_mask, pool

N_COMPONENTS = 512  # of what it says of whole recordings
TEACHER_LEVEL = 0.07  # root mean square of what a teacher hears that was not trained on normalized waveforms


class Teacher:
    """What a pretrained encoder says of clean speech, at the student's frames. No module: neither trained nor saved.

    `states(batch)`: (layers, batch, frames, width), each number standardized over frames.
    `of_recordings(states, valid)`: principal components (batch, n) of their mean and deviation over a recording.
    Both once `standardize` has measured some batches.
    """

    def __init__(self, checkpoint: str, student: WavLMConfig, device):
        self.encoder, self.device = load_backbone(checkpoint).requires_grad_(False).to(device), device
        config = self.encoder.config
        if samples_per_frame(config) != HOP:
            raise ValueError(
                f"{checkpoint} has a frame every {samples_per_frame(config)} samples, the student every {HOP}"
            )
        self.level = 1.0 if input_settings(checkpoint, config)["normalize_waveform"] else TEACHER_LEVEL
        late = receptive_field(student) // 2 - receptive_field(config) // 2  # samples from its frame 0 to the student's
        self.skipped = max(0, -(-late // HOP))  # frames; samples in front make the rest of them fall together
        self.lead = self.skipped * HOP - late
        self.mean, self.scale = 0.0, 1.0

    @torch.no_grad()
    def states(self, batch: dict) -> torch.Tensor:
        heard = F.pad(self.level * batch["clean"], (self.lead, 0))
        samples = torch.arange(heard.shape[1], device=heard.device)
        output = self.encoder(heard, (samples < self.lead + batch["lengths"][:, None]).long())
        states = torch.stack(output.hidden_states).float()[:, :, self.skipped :][:, :, : batch["mask"].shape[1]]
        short = batch["mask"].shape[1] - states.shape[2]  # frames at the end that the teacher does not have
        return (F.pad(states, (0, 0, 0, short)) - self.mean) / self.scale

    def of_recordings(self, states: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return self.components(pool(states, valid))

    def standardize(self, batches: list[dict], student: WavLMConfig):
        masks = [frame_mask(batch, student) for batch in batches]
        states = [self.states(batch) for batch in batches]
        values = torch.cat([one[:, mask] for one, mask in zip(states, masks, strict=True)], 1)
        self.mean, self.scale = values.mean(1)[:, None, None], values.std(1)[:, None, None].clamp(min=1e-6)
        pooled = [pool((one - self.mean) / self.scale, mask) for one, mask in zip(states, masks, strict=True)]
        self.components = PrincipalComponents(torch.cat(pooled), N_COMPONENTS)

    def save(self, path) -> None:
        """What was measured, for a run that goes on to learn the same."""
        with atomic_write(path) as temporary:
            torch.save({"mean": self.mean, "scale": self.scale, "components": vars(self.components)}, temporary)

    def load(self, path) -> None:
        found = torch.load(path, map_location=self.device, weights_only=True)
        self.mean, self.scale = found["mean"], found["scale"]
        self.components = PrincipalComponents.__new__(PrincipalComponents)
        vars(self.components).update(found["components"])
