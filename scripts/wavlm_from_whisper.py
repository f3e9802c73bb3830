#!/usr/bin/env python
"""Write a Whisper encoder as a WavLM, which hears the waveform, needs no padding to 30 s and loads as any WavLM.

    python scripts/wavlm_from_whisper.py WHISPER OUT --speech FOLDER...

Everything has a place in WavLM's layout with `do_stable_layer_norm` (layer norm first, as Whisper):

- the transformer is copied; relative position bias starts at zero;
- log-mel filters are three convolutions. The first holds the short-time Fourier transform twice, with both signs:
  GELU(x) + GELU(-x) is about |x|. The second adds magnitudes to mel bands and compares each with steps of level, the
  third weighs the steps to a logarithm; these weights are a ridge regression on the log-mels of the recordings given;
- Whisper's two convolutions are copied. Constants in two channels keep each layer norm between them nearly linear;
- absolute positions come from the positional convolution: every hidden channel starts with a constant, so that a
  kernel that looks back adds up to any function of the frames since the start (until half the kernel's length: later
  frames have one position).

What comes out is close to the encoder; `pretrain_backbone.py --backbone OUT --teacher WHISPER` makes it closer, and
robust to noise.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel, WhisperFeatureExtractor, WhisperModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from train.data.mixtures import SAMPLING_RATE, audio_files, colored_noise, decode, normalize  # noqa: E402

WINDOW, HOP = 400, 160  # samples of Whisper's spectrogram
STEPS = 8  # of level in each mel band
LEVEL = 0.07  # root mean square Whisper hears: the backbone does not know how loud a recording was
SKIPPED = 2  # Whisper's first frames, which see the padding of its convolutions
LEAD = 2 * HOP * SKIPPED - 2 * HOP - WINDOW // 2  # samples in front that put Whisper's frame 2 on our frame 0
OFFSET = 16.0  # constant in every hidden channel that positions are made of
CONSTANT = 300.0  # far above what the copied convolutions put out
PASS = 4.0  # GELU leaves numbers this far above zero as they are


def wavlm_config(whisper, kernel: int) -> WavLMConfig:
    width, mels = whisper.d_model, whisper.num_mel_bins
    return WavLMConfig(
        hidden_size=width,
        num_hidden_layers=whisper.encoder_layers,
        num_attention_heads=whisper.encoder_attention_heads,
        intermediate_size=whisper.encoder_ffn_dim,
        hidden_act=whisper.activation_function,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
        conv_dim=(4 * (WINDOW // 2 + 1) + 2, (mels + 1) * STEPS + 64, mels + 16, width + 16, width + 16),
        conv_kernel=(WINDOW, 1, 1, 3, 3),
        conv_stride=(HOP, 1, 1, 1, 2),
        num_feat_extract_layers=5,
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=width,
        num_buckets=160,
        max_bucket_distance=400,
        mask_time_prob=0.05,
        **dict.fromkeys(("layerdrop", "hidden_dropout", "attention_dropout", "activation_dropout"), 0.0),
        **dict.fromkeys(("feat_proj_dropout", "final_dropout"), 0.0),
    )


# --- convolutions -------------------------------------------------------------------------------------------


@torch.no_grad()
def set_convolution(layer, weight: torch.Tensor, bias: torch.Tensor, constant: float, gain: float = 1.0, shift=0.0):
    """Make layer(x) about GELU(gain * (weight * x + bias) + shift), as if there were no layer norm.

    The last two channels hold constants, plus and minus, that rule its deviation; those before them that `weight` does
    not fill balance the filled ones, so that its mean is zero. After the activation all these are zero.
    """
    width, filled = len(layer.conv.bias), len(bias)
    balancing = width - filled - 2
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()
    layer.conv.weight[:filled, : weight.shape[1]], layer.conv.bias[:filled] = weight, bias
    if balancing:
        layer.conv.weight[filled:-2, : weight.shape[1]] = -weight.sum(0) / balancing
        layer.conv.bias[filled:-2] = -bias.sum() / balancing
    layer.conv.bias[-2], layer.conv.bias[-1] = constant, -constant
    layer.layer_norm.weight.fill_(gain * constant * (2 / width) ** 0.5)
    layer.layer_norm.bias.fill_(shift)
    layer.layer_norm.weight[filled:], layer.layer_norm.bias[filled:] = 0.0, 0.0


def fourier_kernels() -> torch.Tensor:
    """(4 * bins, 1, window): cosines and sines under a Hann window, then both negative."""
    time, bins = torch.arange(WINDOW), torch.arange(WINDOW // 2 + 1)
    phase = 2 * torch.pi * bins[:, None] * (time - WINDOW // 2) / WINDOW
    waves = torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(WINDOW)
    return torch.cat([waves, -waves])[:, None]


def set_spectrum(layer):
    """|x| of the Fourier transform over the frame's level, and in the last channel but one that level's inverse."""
    kernels = fourier_kernels()
    set_convolution(layer, kernels, torch.zeros(len(kernels)), constant=200.0, gain=30.0)
    layer.layer_norm.weight[-2] = 1.0


def set_steps(layer, filters: torch.Tensor, spectra: torch.Tensor):
    """Each mel band's magnitude, and the level, against STEPS thresholds between the least and most of `spectra`."""
    bands = F.pad(filters.sqrt().T.repeat(1, 4), (0, 2))
    level = F.one_hot(torch.tensor(bands.shape[1] - 2), bands.shape[1]).float()
    bands = torch.cat([bands, level[None]])
    magnitudes = spectra @ bands.T
    low, high = magnitudes.quantile(0.1, 0).clamp(min=1e-4), magnitudes.quantile(0.999, 0)
    thresholds = low[:, None] * (high / low)[:, None] ** torch.linspace(0, 1, STEPS)
    weight = (-bands[:, None] / thresholds[:, :, None]).flatten(0, 1)[..., None]
    set_convolution(layer, weight, torch.ones(len(weight)), constant=6e4)


def ridge(inputs: torch.Tensor, targets: torch.Tensor, penalty: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (targets, inputs) and bias of a linear map; the penalty is relative to the inputs' mean variance."""
    inputs, targets = inputs.double(), targets.double()
    mean, goal = inputs.mean(0), targets.mean(0)
    centered = inputs - mean
    moments = centered.T @ centered
    moments += penalty * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    weight = torch.linalg.solve(moments, centered.T @ (targets - goal)).T
    return weight.float(), (goal - weight @ mean).float()


def log_mels(signal: np.ndarray, extractor) -> torch.Tensor:
    """Whisper's input (frames, mels) of a normalized signal, at the frames of our first convolution."""
    signal = np.pad(signal * LEVEL, (LEAD, 0))
    mels = extractor(signal, sampling_rate=SAMPLING_RATE, padding="do_not_pad", return_tensors="pt").input_features[0]
    return mels.T[SKIPPED:]


def set_log_mels(layers, signals: list[np.ndarray], extractor):
    """The first three convolutions, fitted to the log-mels of the signals."""
    set_spectrum(layers[0])
    hear = lambda depth, signal: nn.Sequential(*layers[:depth])(torch.from_numpy(signal)[None, None])[0].T  # noqa: E731
    some = torch.cat([hear(1, signal)[::10] for signal in signals])
    set_steps(layers[1], torch.from_numpy(extractor.mel_filters).float(), some)
    pairs = [(hear(2, signal)[::3], log_mels(signal, extractor)[::3]) for signal in signals]
    pairs = [(steps[: len(mels)], mels[: len(steps)]) for steps, mels in pairs]
    steps, mels = (torch.cat(values) for values in zip(*pairs, strict=True))
    weight, bias = ridge(steps, mels)
    set_convolution(layers[2], weight[:, :, None], bias, constant=100.0, shift=PASS)


def set_whisper_convolutions(layers, encoder):
    """The fourth and fifth convolutions, of log-mels that are PASS too high."""
    weight = encoder.conv1.weight
    set_convolution(layers[0], weight, encoder.conv1.bias - PASS * weight.sum((1, 2)), constant=CONSTANT)
    set_convolution(layers[1], encoder.conv2.weight, encoder.conv2.bias, constant=CONSTANT)


# --- transformer --------------------------------------------------------------------------------------------


def set_projection(projection):
    """Undo the projection's layer norm, and lower every channel by OFFSET.

    Of its inputs the last but one is a constant, the last zero: what this is after the layer norm is minus the mean.
    """
    width, channels = projection.projection.out_features, projection.projection.in_features
    projection.layer_norm.weight.fill_(1.0)
    projection.layer_norm.bias.zero_()
    spread = CONSTANT * ((channels - 1) / channels**2) ** 0.5
    projection.projection.weight.copy_(F.pad(spread * torch.eye(width), (0, channels - width)))
    projection.projection.weight[:, -1] = -spread
    projection.projection.bias.fill_(-OFFSET)


def set_positions(embedding, positions: torch.Tensor):
    """A kernel that looks back over a constant of -OFFSET adds up to `positions` (kernel / 2, width) + OFFSET."""
    conv, count = embedding.conv, len(positions)
    weight = torch.zeros(conv.weight.shape)
    weight[:, 0, 1:count] = -(positions[1:] - positions[:-1]).T.flip(1) / OFFSET
    conv.bias.copy_(positions[0] + OFFSET)
    size = weight.norm(dim=(0, 1), keepdim=True)
    conv.parametrizations.weight.original0.copy_(size)
    conv.parametrizations.weight.original1.copy_(torch.where(size > 0, weight, 1.0))  # a direction where there is none


def copy_layer(ours, theirs):
    attention = theirs.self_attn
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        getattr(ours.attention, name).load_state_dict(
            {"bias": torch.zeros(attention.embed_dim), **getattr(attention, name).state_dict()}
        )
    ours.layer_norm.load_state_dict(theirs.self_attn_layer_norm.state_dict())
    ours.final_layer_norm.load_state_dict(theirs.final_layer_norm.state_dict())
    ours.feed_forward.intermediate_dense.load_state_dict(theirs.fc1.state_dict())
    ours.feed_forward.output_dense.load_state_dict(theirs.fc2.state_dict())
    if hasattr(ours.attention, "rel_attn_embed"):
        ours.attention.rel_attn_embed.weight.zero_()


@torch.no_grad()
def wavlm_from_whisper(encoder, extractor, signals: list[np.ndarray], kernel: int = 512) -> WavLMModel:
    """A WavLM whose hidden states are nearly those of `encoder`; `signals` (n,) have zero mean and unit variance."""
    model = WavLMModel(wavlm_config(encoder.config, kernel)).eval()
    convolutions = model.feature_extractor.conv_layers
    set_log_mels(convolutions, signals, extractor)
    set_whisper_convolutions(convolutions[3:], encoder)
    convolutions[4].layer_norm.weight[-2] = convolutions[4].layer_norm.weight[0]  # a constant for the projection
    set_projection(model.feature_projection)
    model.masked_spec_embed.fill_(-OFFSET)  # a masked frame has its position too
    set_positions(model.encoder.pos_conv_embed, encoder.embed_positions.weight[SKIPPED : SKIPPED + kernel // 2])
    for ours, theirs in zip(model.encoder.layers, encoder.layers, strict=True):
        copy_layer(ours, theirs)
    model.encoder.layer_norm.load_state_dict(encoder.layer_norm.state_dict())
    return model


def calibration_signals(folders: list[str], count: int, seed: int = 0) -> list[np.ndarray]:
    """Some recordings of all folders, every second one with colored noise at 0 to 40 dB."""
    rng = np.random.default_rng(seed)
    files = [rng.choice(audio_files(folder), count // len(folders)) for folder in folders]
    signals = []
    for i, file in enumerate(np.concatenate(files)):
        signal = normalize(decode(file).astype(np.float32))
        if i % 2:
            signal = signal + 10 ** (-rng.uniform(0, 40) / 20) * normalize(colored_noise(len(signal), rng))
        signals.append(normalize(signal).astype(np.float32))
    return signals


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("whisper", help="folder or Hub id of a Whisper model")
    add("output", help="folder to write the WavLM to")
    add("--speech", nargs="+", required=True, help="folders of recordings the log-mel filters are fitted on")
    add("--recordings", type=int, default=400, help="how many of them")
    add("--position_kernel", type=int, default=512, help="frames; positions are told apart for half of them")
    args = parser.parse_args(argv)
    encoder = WhisperModel.from_pretrained(args.whisper, dtype=torch.float32).encoder.eval()
    extractor = WhisperFeatureExtractor.from_pretrained(args.whisper)
    signals = calibration_signals(args.speech, args.recordings)
    model = wavlm_from_whisper(encoder, extractor, signals, args.position_kernel)
    model.save_pretrained(args.output)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(args.output)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters in {Path(args.output)}")


if __name__ == "__main__":
    main()
