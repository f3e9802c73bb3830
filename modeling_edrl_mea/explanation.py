"""What decided for an emotion: the part that each block of embeddings has in its logit."""

import torch

from .recordings import is_silent, load_recording


@torch.no_grad()
def explain(model, recording, sampling_rate: int | None = None) -> dict:
    """As [`EdrlMeaForAudioClassification.explain`], of a `model`."""
    rate = sampling_rate or model.config.sampling_rate
    waveform = load_recording(recording, rate)
    if is_silent(waveform):
        return {"label": None, "logits": dict.fromkeys(model.config.labels, 0.0), "logit_contributions": {}}
    was_training = model.training
    model.eval()  # dropout would explain another recording than it classifies
    try:
        statistics = model.embed_recordings([waveform], rate).to(model.device)
        logits = model(layer_statistics=statistics).logits[0].float()
        winner = int(logits.argmax())
        told = {"logit_contributions": {}}
        if winner < model.config.n_trained_labels:
            told = contributions(model, statistics, winner)
        if not model.output_adaptation.is_idle:
            trained = model.run_trained(layer_statistics=statistics)[1][0].float()
            own = trained[winner] if winner < len(trained) else 0
            told["logit_contributions"]["adaptation"] = float(logits[winner] - own)
        return {
            "label": model.config.labels[winner],
            "logits": dict(zip(model.config.labels, logits.tolist(), strict=True)),
            **told,
        }
    finally:
        model.train(was_training)


def contributions(model, layer_statistics: torch.Tensor, label: int) -> dict[str, dict]:
    """By block: what it adds to one recording's logit of a label, and what it adds to the aligned embedding where the
    logit is made of that.

    Args:
        layer_statistics: (1, L+1, S').
    """
    u = model.edrl_mea.speech_embedding(layer_statistics)
    _, disentangled = model.edrl_mea.disentangle_and_align(u)
    if model.ends_in_disentanglement:
        weights = model.edrl_mea.disentanglement.classifier.weight[label].float().split(model.config.block_size)
        shares = [float(block[0].float() @ w) for block, w in zip(disentangled.blocks, weights, strict=True)]
        return {"logit_contributions": dict(zip(["shared", *model.config.labels], shares, strict=False))}
    weights = model.classifier.weight[label].float()
    if model.alignment is None:
        return {"logit_contributions": {"speech": float(u[0] @ weights)}}
    names = model.config.block_names
    moved = model.alignment.contributions(model.edrl_mea.alignment_blocks(u, disentangled))[0]
    return {
        "component_contributions": dict(zip(names, moved.tolist(), strict=True)),
        "logit_contributions": dict(zip(names, (moved @ weights).tolist(), strict=True)),
    }
