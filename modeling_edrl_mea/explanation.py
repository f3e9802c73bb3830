"""Why an emotion was predicted: what each block of embeddings adds to its logit."""

import torch

from .evaluation_mode import evaluating
from .recordings import is_silent, load_recording


class ExplanationMixin:
    """Explains the predictions of an `EdrlMeaForAudioClassification`."""

    @torch.no_grad()
    def explain(self, recording, sampling_rate: int | None = None) -> dict:
        """What decided for the winning emotion.

        Returns a dict: `label` (None in silence), `logits` by label, `logit_contributions` by block (for the winning
        label; with the classifier's bias they sum to its logit) and, where the logits come from the alignment,
        `component_contributions` by block, k numbers each.
        """
        if self.config.is_regression:
            raise ValueError("explain tells what decided for an emotion, and this model rates attributes alone.")
        rate = sampling_rate or self.config.sampling_rate
        waveform = load_recording(recording, rate)
        if is_silent(waveform):
            return {"label": None, "logits": dict.fromkeys(self.config.labels, 0.0), "logit_contributions": {}}
        with evaluating(self):  # dropout would explain another recording than it classifies
            statistics = self.embed_recordings([waveform], rate).to(self.device)
            logits = self(layer_statistics=statistics).logits[0].float()
            winner = int(logits.argmax())
            told = {"logit_contributions": {}}
            if winner < self.config.n_trained_labels:
                told = contributions(self, statistics, winner)
            if not self.output_adaptation.is_idle:
                trained = self.trained_logits(self.edrl_mea(layer_statistics=statistics))[0].float()
                own = trained[winner] if winner < len(trained) else 0
                told["logit_contributions"]["adaptation"] = float(logits[winner] - own)
            return {
                "label": self.config.labels[winner],
                "logits": dict(zip(self.config.labels, logits.tolist(), strict=True)),
                **told,
            }


def contributions(model, layer_statistics: torch.Tensor, label: int) -> dict[str, dict]:
    """By block: what it adds to one recording's logit of a label, and what it adds to the aligned embedding where the
    logit is made of that.

    Args:
        layer_statistics: (1, L+1, S').
    """
    u = model.edrl_mea.speech_embedding(layer_statistics)
    disentangled, _ = model.edrl_mea.disentangle_and_align(u)
    if model.ends_in_disentanglement:
        weights = model.edrl_mea.disentanglement.classifier.weight[label].float().split(model.config.block_size)
        shares = [float(block[0].float() @ w) for block, w in zip(disentangled.blocks, weights, strict=True)]
        return {"logit_contributions": dict(zip(["shared", *model.config.output_names], shares, strict=True))}
    weights = model.classifier.weight[label].float()
    if model.alignment is None:
        return {"logit_contributions": {"speech": float(u[0] @ weights)}}
    names = model.config.block_names
    moved = model.alignment.contributions(model.edrl_mea.alignment_blocks(u, disentangled))[0]
    return {
        "component_contributions": dict(zip(names, moved.tolist(), strict=True)),
        "logit_contributions": dict(zip(names, (moved @ weights).tolist(), strict=True)),
    }
