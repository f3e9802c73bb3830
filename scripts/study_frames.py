#!/usr/bin/env python
"""Is there more in a frozen backbone's frames than in their mean and deviation? One corpus is left out in turn.

    python scripts/study_frames.py openai/whisper-tiny.en --corpora EMODB RAVDESS NEMO ASED --noise NOISE/esc10 \
        --cache frames

Frames of every layer are kept once, in float16, averaged over 80 ms.
Rows: logistic regression and discriminant on mean and deviation of every layer; attentive statistics of a mixture of
layers, one for all emotions or each emotion its own; the last layer unfrozen, by cross-entropy alone and with a
supervised contrastive loss. All are trained on recordings and a noisy copy of each. Where to start from and when to
stop are chosen by leaving out corpora among those trained on.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation
from modeling_edrl_mea.backbone import load_backbone  # noqa: E402
from modeling_edrl_mea.correction import class_biases, softmax  # noqa: E402
from modeling_edrl_mea.discriminant import fit_discriminant  # noqa: E402
from modeling_edrl_mea.embeddings import balanced_weights  # noqa: E402
from modeling_edrl_mea.linear_heads import corpus_folds, speaker_folds  # noqa: E402
from modeling_edrl_mea.recordings import load_recording  # noqa: E402
from scripts.probe_backbone import Corpus, Probe, noisy, read_corpus  # noqa: E402
from train.data.files import atomic_write, fingerprint  # noqa: E402
from train.degradation.augmentation import Augmentation  # noqa: E402
from train.degradation.sources import noise_files  # noqa: E402
from train.evaluation.markdown import markdown_table  # noqa: E402
from train.evaluation.metrics import confusion_by_speaker, paired_bootstrap_difference, uar, uar_of  # noqa: E402

TRAINED, TESTED = ("clean", "copy 0"), ("clean", "0 dB")
VERSIONS = (*TRAINED, "0 dB")
POOLED = 4  # frames of 20 ms
SEEDS = (0, 1, 2)
BATCH = 16  # recordings, each clean and as a noisy copy
MOMENTS = 3  # at which training may stop
CLIP = 6.0  # of standardized values
KEYS = 32  # numbers by which attention tells frames apart
TEMPERATURE = 0.1  # of the contrastive loss
LAYERS, ANEW = (0, 1, 2, 3, 4), (0, 1, 2, 3, 5)  # statistics of all layers; of the last from its pooled input


def signals_of(corpus: Corpus, version: str, noise: Path):
    """Waveforms of a corpus: clean, as noisy copies for training, or with noise that never serves in training."""
    testing = [str(path) for path in noise_files(noise, "testing")]
    augmentation = Augmentation(noise, seed=0)
    for path in corpus.files:
        if version == "clean":
            yield load_recording(path)
        elif version == "0 dB":
            yield noisy(path, testing, 0.0)
        else:
            yield augmentation(load_recording(path), f"{Path(path).name} {version[-1]}")


@torch.inference_mode()
def heard(backbone: nn.Module, signal: np.ndarray) -> dict[str, np.ndarray]:
    """Of one recording: pooled frames of all layers (T, L, D); statistics of all layers, and of the last one where it
    hears pooled frames alone (1, L + 1, 2D); T."""
    states = torch.stack(backbone(torch.from_numpy(signal).float()[None]).hidden_states, 2)[0]
    frames = torch.stack([neighbors.mean(0) for neighbors in states.split(POOLED)])
    anew = backbone.encoder.layer_norm(backbone.layers[-1](frames[None, :, -2], None))[0]
    statistics = torch.stack([torch.cat([x.mean(0), x.std(0, correction=0)]) for x in (*states.unbind(1), anew)])
    return {"frames": frames.half().numpy(), "statistics": statistics.numpy()[None], "lengths": np.array([len(frames)])}


def cached_frames(backbone, corpus: Corpus, version: str, noise: Path, folder: Path) -> dict[str, np.ndarray]:
    """Arrays of `heard` of all recordings, one behind another, memory-mapped."""
    files = {
        n: folder / f"{fingerprint((*corpus.files, version))}.{n}.npy" for n in ("frames", "statistics", "lengths")
    }
    if not files["lengths"].exists():  # the last to be written
        found = [heard(backbone, signal) for signal in signals_of(corpus, version, noise)]
        for name, path in files.items():
            save(path, np.concatenate([one[name] for one in found]))
    return {name: np.load(path, mmap_mode="c") for name, path in files.items()}


def save(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


class Study:
    """All recordings of all corpora, N in all, in every version; what is computed is kept in `folder`."""

    def __init__(self, corpora: list[Corpus], parts: list[list[dict]], backbone: nn.Module, folder: Path):
        self.backbone, self.folder, self.names = backbone, folder, [corpus.name for corpus in corpora]
        self.corpus = np.repeat(self.names, [len(corpus.files) for corpus in corpora])
        self.emotions = np.concatenate([corpus.emotions for corpus in corpora])
        self.speakers = np.array([f"{corpus.name} {speaker}" for corpus in corpora for speaker in corpus.speakers])
        self.n_classes = 1 + int(self.emotions.max())
        self.statistics = np.stack([np.concatenate([part["statistics"] for part in some]) for some in parts])
        self.lengths = np.stack([np.concatenate([part["lengths"] for part in some]) for some in parts])
        cuts = [[np.split(part["frames"], np.cumsum(part["lengths"])[:-1]) for part in some] for some in parts]
        self.frames = [list(chain(*some)) for some in cuts]

    def rows(self, corpora) -> np.ndarray:
        return np.flatnonzero(np.isin(self.corpus, list(corpora)))

    def without(self, left: str) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != left)

    def kept(self, make, *name) -> np.ndarray:
        path = self.folder / f"{fingerprint(str((len(self.emotions), name)))}.npy"
        if not path.exists():
            save(path, make())
        return np.load(path)

    def empty_logits(self) -> np.ndarray:
        return np.full((len(VERSIONS), len(self.emotions), self.n_classes), np.nan, np.float32)


def batch_of(study: Study, versions: np.ndarray, rows: np.ndarray, layers=slice(None)) -> tuple[Tensor, Tensor]:
    """Frames (B, T, L, D) of layers, padded with zeros, and whether each is within its recording (B, T)."""
    some = [torch.from_numpy(study.frames[v][row][:, layers]).float() for v, row in zip(versions, rows, strict=True)]
    batch = pad_sequence(some, batch_first=True)
    return batch, torch.arange(batch.shape[1]) < torch.from_numpy(study.lengths[versions, rows])[:, None]


# --- closed form --------------------------------------------------------------------------------------------


def fit_discriminant_to(study: Study, trained: np.ndarray, layers):
    """The discriminant on standardized statistics of all versions for training: (mean, scale, linear head)."""
    u = study.statistics[: len(TRAINED), trained][:, :, layers].reshape(len(TRAINED) * len(trained), -1)
    mean, scale = u.mean(0), u.std(0) + 1e-6
    labels = torch.from_numpy(np.tile(study.emotions[trained], len(TRAINED)))
    corpora, speakers = (np.tile(part[trained], len(TRAINED)).tolist() for part in (study.corpus, study.speakers))
    folds = corpus_folds(corpora) or speaker_folds(labels.numpy(), speakers)
    u = torch.from_numpy(np.clip((u - mean) / scale, -CLIP, CLIP))
    return mean, scale, fit_discriminant(u, labels, balanced_weights(labels, corpora), study.n_classes, folds)


def discriminant(study: Study, trained: np.ndarray, layers=LAYERS) -> np.ndarray:
    """Logits (versions, N, C) of all recordings."""
    mean, scale, head = fit_discriminant_to(study, trained, layers)
    u = np.clip((study.statistics[:, :, layers].reshape(*study.statistics.shape[:2], -1) - mean) / scale, -CLIP, CLIP)
    return head.logits(torch.from_numpy(u).double()).float().numpy()


def regression(study: Study, trained: np.ndarray) -> np.ndarray:
    """As `discriminant`, by the logistic regression of probe_backbone.py."""
    u = study.statistics[:, :, LAYERS].reshape(*study.statistics.shape[:2], -1)
    emotions, speakers = (np.tile(part[trained], len(TRAINED)) for part in (study.emotions, study.speakers))
    probe = Probe().fit(np.concatenate(u[: len(TRAINED), trained]), emotions, speakers)
    return np.stack([probe.classifier.decision_function(probe.standardize(one) @ probe.rotation) for one in u])


def start_logits(study: Study, corpora, start: str) -> Tensor:
    """What a model adds to (versions, N, C): "zero", or the discriminant's logits; "held out", those of corpora trained
    on are by the discriminant of the others of them, adapted to each."""

    def found(some) -> np.ndarray:
        return study.kept(lambda: discriminant(study, study.rows(some)), "discriminant of", sorted(some))

    if start == "zero":
        return torch.zeros(study.empty_logits().shape)
    logits = found(corpora)
    for name, version in product(corpora if start == "held out" else (), range(len(VERSIONS))):
        rows = study.rows([name])
        logits[version, rows] = adapted(found(set(corpora) - {name})[version, rows])
    return torch.from_numpy(logits)


def adapted(logits: np.ndarray) -> np.ndarray:
    """With a bias for each class, so that the mean prediction is uniform."""
    return logits + class_biases(logits.astype(np.float64), np.full(logits.shape[1], 1 / logits.shape[1]))


# --- models trained by gradient -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    learning_rate: float
    dropout: float = 0.5
    start: str = "zero"  # logits that the model adds to
    contrast: float = 0.0  # weight of the contrastive loss


class AttentiveStatistics(nn.Module):
    """Logits from mean and deviation of frames, weighted by attention over valid ones, of a mixture of layers: one of
    each for all emotions, or each emotion its own. At first all weights are even and all logits zero."""

    def __init__(self, study: Study, trained: np.ndarray, setting: Setting, n_views: int):
        super().__init__()
        self.study, size = study, study.statistics.shape[-1] // 2
        sample = np.concatenate([study.frames[v][row] for v, row in product(range(len(TRAINED)), trained[::3])])
        self.mean, self.scale = (torch.from_numpy(f(sample, 0, dtype=np.float32)) for f in (np.mean, np.std))
        self.layers = nn.Parameter(torch.zeros(n_views, len(LAYERS)))
        self.keys, self.query = nn.Linear(size, KEYS, bias=False), nn.Parameter(torch.zeros(n_views, KEYS))
        self.norm = nn.BatchNorm1d(n_views * 2 * len(LAYERS) * size, affine=False)
        self.dropout, self.weight = nn.Dropout(setting.dropout), nn.Parameter(torch.zeros(study.n_classes, 2 * size))
        self.bias = nn.Parameter(torch.zeros(study.n_classes))

    def forward(self, versions: np.ndarray, rows: np.ndarray) -> tuple[Tensor, None]:
        frames, valid = batch_of(self.study, versions, rows)
        frames, mixture = frames.sub_(self.mean).div_(self.scale).clamp_(-CLIP, CLIP), self.layers.softmax(-1)
        scores = (torch.einsum("vl,btlk->bvtk", mixture, self.keys(frames)).tanh() * self.query[:, None]).sum(-1)
        attention, frames = scores.masked_fill(~valid[:, None], -torch.inf).softmax(-1), frames.flatten(2)
        mean = attention @ frames  # (B, views, L·D)
        deviation = (attention @ frames.square() - mean.square()).clamp_min(1e-6).sqrt()
        statistics = self.norm(torch.cat([mean, deviation], -1).flatten(1)).clamp(-CLIP, CLIP)
        statistics = statistics.unflatten(1, (len(self.layers), 2, len(LAYERS), -1))
        mixed = self.dropout(torch.einsum("vl,bvsld->bvsd", mixture, statistics).flatten(2))
        return (mixed * self.weight).sum(-1) + self.bias, None


class UnfrozenLayer(nn.Module):
    """The last layer, from its input, and a linear head on mean and deviation of every layer, which starts as the
    discriminant does (as in Kumar et al. 2022)."""

    def __init__(self, study: Study, trained: np.ndarray, setting: Setting):
        super().__init__()
        self.study, self.dropout = study, nn.Dropout(setting.dropout)
        self.layer, self.norm = map(copy.deepcopy, (study.backbone.layers[-1], study.backbone.encoder.layer_norm))
        mean, scale, head = fit_discriminant_to(study, trained, ANEW)
        self.mean, self.scale = torch.from_numpy(mean).float(), torch.from_numpy(scale).float()
        self.head = nn.Linear(*head.weight.shape[::-1])
        self.head.weight.data, self.head.bias.data = head.weight.float(), head.bias.float()

    def forward(self, versions: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits, and the standardized statistics of the last layer; padding is neither attended to nor counted."""
        frames, valid = batch_of(self.study, versions, rows, -2)
        x = self.norm(self.layer(frames, torch.zeros(valid.shape).masked_fill(~valid, -torch.inf)[:, None, None]))
        weights = (valid / valid.sum(1, keepdim=True))[..., None]
        mean = (x * weights).sum(1)
        deviation = ((x - mean[:, None]).square() * weights).sum(1).clamp_min(1e-10).sqrt()
        below = torch.from_numpy(self.study.statistics[versions, rows][:, ANEW[:-1]]).flatten(1)
        u = ((torch.cat([below, mean, deviation], 1) - self.mean) / self.scale).clamp(-CLIP, CLIP)
        return self.head(self.dropout(u)), u[:, below.shape[1] :]


def contrast(embeddings: Tensor, emotions: Tensor, corpora: np.ndarray, rows: np.ndarray) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) whose positives are recordings of the same emotion from other
    corpora, and the other version of the same recording."""
    z, own = F.normalize(embeddings, dim=1), torch.eye(len(embeddings), dtype=torch.bool)
    elsewhere = torch.from_numpy(corpora[:, None] != corpora) & (emotions[:, None] == emotions)
    positive = (elsewhere | torch.from_numpy(rows[:, None] == rows)) & ~own
    log_share = (z @ z.T / TEMPERATURE).masked_fill(own, -torch.inf).log_softmax(1).masked_fill(own, 0)
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


@dataclass(frozen=True)
class Kind:
    """A row of the table whose model is trained by gradient."""

    name: str
    build: Callable
    settings: tuple[Setting, ...]
    n_batches: int  # between moments

    def models(self, study: Study, corpora, setting: Setting, seed: int, n_moments: int):
        """Yields the model at these moments, with the logits that it adds to."""
        torch.manual_seed(seed)
        rng, trained = np.random.default_rng(seed), study.rows(corpora)
        model, start = self.build(study, trained, setting), start_logits(study, corpora, setting.start)
        labels, weights = torch.from_numpy(study.emotions), torch.zeros(len(study.emotions))
        weights[trained] = balanced_weights(labels[trained], study.corpus[trained].tolist())
        optimizer = torch.optim.AdamW(model.parameters(), setting.learning_rate, weight_decay=0.01)
        drawn = chain.from_iterable(rng.permutation(trained) for _ in count())
        for step in range(1, 1 + n_moments * self.n_batches):
            rows = np.tile(list(islice(drawn, BATCH)), 2)
            versions = np.where(np.arange(2 * BATCH) < BATCH, 0, rng.integers(1, len(TRAINED), 2 * BATCH))
            logits, embeddings = model.train()(versions, rows)
            losses = F.cross_entropy(logits + start[versions, rows], labels[rows], reduction="none")
            loss = (losses * weights[rows]).mean()
            if setting.contrast:
                loss = loss + setting.contrast * contrast(embeddings, labels[rows], study.corpus[rows], rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % self.n_batches == 0:
                yield model.eval(), start

    def curve(self, study: Study, pair, setting: Setting) -> np.ndarray:
        """(moments, corpora) UAR, as it is and adapted, clean and as a noisy copy, after training on two corpora."""
        scores = np.zeros((MOMENTS, len(study.names)))
        for moment, (model, start) in enumerate(self.models(study, pair, setting, 0, MOMENTS)):
            for name in set(study.names) - set(pair):
                rows = study.rows([name])[::3]
                logits = predicted(study, model, start, rows, TRAINED)[: len(TRAINED), rows]
                found = [uar(study.emotions[rows], f(one).argmax(1)) for one in logits for f in (np.array, adapted)]
                scores[moment, study.names.index(name)] = np.mean(found)
        return scores

    def choose(self, study: Study, corpora) -> tuple[Setting, int]:
        """The setting and the moment that do best on each of these corpora after training on the others of them."""
        if len(self.settings) == 1 and self.build is UnfrozenLayer:  # too slow to choose for
            return self.settings[0], MOMENTS
        mean = dict.fromkeys(self.settings, 0.0)
        for setting, left in product(self.settings, corpora):
            pair = tuple(name for name in corpora if name != left)
            curve = study.kept(lambda: self.curve(study, pair, setting), self.name, pair, setting)  # noqa: B023
            mean[setting] = mean[setting] + curve[:, study.names.index(left)]
        best = max(mean, key=lambda setting: mean[setting].max())
        return best, 1 + int(mean[best].argmax())

    def final(self, study: Study, left: str, setting: Setting, moment: int, seed: int) -> np.ndarray:
        corpora = study.without(left)
        *_, (model, start) = self.models(study, corpora, setting, seed, moment)
        fitted = predicted(study, model, start, study.rows(corpora)[::4], TRAINED[:1])
        return np.where(np.isnan(fitted), predicted(study, model, start, study.rows([left]), TESTED), fitted)

    def left_out(self, study: Study) -> list[np.ndarray]:
        """For every seed, logits (versions, N, C) by models that were trained on the other corpora."""
        chosen = {left: self.choose(study, study.without(left)) for left in study.names}
        for left, (setting, moment) in chosen.items():
            print(f"{self.name}, without {left}: {setting}, {moment * self.n_batches} batches", flush=True)
        return [
            assembled(study, self.name, lambda *left: self.final(*left, *chosen[left[1]], seed), seed)  # noqa: B023
            for seed in SEEDS
        ]


@torch.inference_mode()
def predicted(study: Study, model: nn.Module, start: Tensor, rows: np.ndarray, versions) -> np.ndarray:
    """Logits (versions, N, C), NaN where not asked for."""
    logits = study.empty_logits()
    for place in map(VERSIONS.index, versions):
        for part in np.array_split(rows[np.argsort(study.lengths[place, rows])], -(-len(rows) // 32)):
            logits[place, part] = model(np.full(len(part), place), part)[0] + start[place, part]
    return logits


def assembled(study: Study, name: str, fit, seed: int = 0) -> np.ndarray:
    """Logits (versions, N, C), of each corpus by what was fitted without it."""
    logits = study.empty_logits()
    for left in study.names:
        found, rows = study.kept(lambda: fit(study, left), name, "without", left, seed), study.rows([left])  # noqa: B023
        trained = np.setdiff1d(np.flatnonzero(~np.isnan(found[0, :, 0])), rows)
        fitted = uar(study.emotions[trained], found[0, trained].argmax(1))
        print(f"{name}, without {left}: UAR on training recordings {100 * fitted:.1f}", flush=True)
        logits[:, rows] = found[:, rows]
    return logits


# --- report -------------------------------------------------------------------------------------------------


def confusions(study: Study, logits: list[np.ndarray]) -> np.ndarray:
    """(speakers, conditions, corpora, C, C), summed over seeds; conditions are as it is and adapted, by version."""
    names, counts = sorted(set(study.speakers)), []
    for version, f in product(TESTED, (np.array, adapted)):
        counts.append(np.zeros((len(names), len(study.names), study.n_classes, study.n_classes)))
        for (place, corpus), one in product(enumerate(study.names), logits):
            rows = study.rows([corpus])
            found = f(one[VERSIONS.index(version), rows]).argmax(1)
            own = confusion_by_speaker(study.emotions[rows], found, study.speakers[rows], study.n_classes)
            counts[-1][np.searchsorted(names, own[1]), place] += own[0]
    return np.stack(counts, 1)


def table(study: Study, rows: dict[str, list[np.ndarray]], baseline: str) -> str:
    """UAR %, mean over corpora left out, and the difference to a row with its interval from resampling speakers."""
    corpora = [name.split()[0] for name in sorted(set(study.speakers))]
    counts, lines = {name: confusions(study, logits) for name, logits in rows.items()}, []
    for name, own in counts.items():
        cells = [f"{100 * uar_of(one.sum(0)).mean():.1f}" for one in own.swapaxes(0, 1)]
        for place in range(len(cells) * (name != baseline)):
            pair = own[:, place], counts[baseline][:, place]
            gain = paired_bootstrap_difference(lambda part: uar_of(part).mean(-1), *pair, strata=corpora)
            cells[place] += "; {:+.1f} ({:+.1f}…{:+.1f})".format(*(100 * value for value in gain))
        lines.append([name, *cells])
    return markdown_table([f"less {baseline}", *(v + how for v in TESTED for how in ("", ", adapted"))], lines)


def averaged(*models: np.ndarray) -> list[np.ndarray]:
    """Logits of the mean probabilities."""
    return [np.log(np.mean([softmax(logits.astype(np.float64)) for logits in models], 0))]


ONE, EACH = (partial(AttentiveStatistics, n_views=views) for views in (1, 4))  # for the four emotions
KINDS = {
    "b": Kind("one attention", ONE, (Setting(3e-3),), 30),
    "c": Kind("residual of each", EACH, (Setting(3e-3, start="own"), Setting(3e-3, start="held out")), 30),
    "d": Kind("attention of each", EACH, (Setting(3e-3),), 30),
    "e": Kind("last layer unfrozen", UnfrozenLayer, (Setting(1e-4),), 8),
    "f": Kind("last layer, contrastive", UnfrozenLayer, (Setting(1e-4, contrast=0.3),), 8),
}


def compared(study: Study, letters: str) -> dict[str, list[np.ndarray]]:
    """Logits by row of the table, those of each seed or of their mean."""
    fits = {
        "regression": lambda study, left: regression(study, study.rows(study.without(left))),
        "discriminant": lambda study, left: start_logits(study, study.without(left), "own").numpy(),
        "start of the unfrozen": lambda study, left: discriminant(study, study.rows(study.without(left)), ANEW),
    }
    rows = {name: [assembled(study, name, fit)] for name, fit in islice(fits.items(), 2 + bool({*letters} & {*"ef"}))}
    for kind in (KINDS[letter] for letter in letters):
        logits = kind.left_out(study)
        rows[f"{kind.name}, one seed"], rows[f"{kind.name}, three averaged"] = logits, [np.mean(logits, 0)]
        rows[f"{kind.name}, with the discriminant"] = averaged(np.mean(logits, 0), *rows["discriminant"])
    everywhere = rows["discriminant, its own corpus too"] = [study.empty_logits()]
    for trained, left in GroupKFold(5, shuffle=True, random_state=0).split(study.speakers, groups=study.speakers):
        everywhere[0][:, left] = study.kept(lambda: discriminant(study, trained), "among all", left)[:, left]  # noqa: B023
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("backbone", help="folder or Hub id of a Whisper")
    add("--corpora", nargs="+", required=True, help="as train/run.py's --dataset_name")
    add("--noise", type=Path, required=True)
    add("--at_most", type=int, default=300, help="recordings of a corpus")
    add("--rows", default="cdefb", help="those trained by gradient")
    add("--cache", type=Path, default=Path("frames"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(args.backbone)
    corpora = [read_corpus(folder, args.at_most) for folder in args.corpora]
    parts = [[cached_frames(backbone, corpus, v, args.noise, args.cache) for corpus in corpora] for v in VERSIONS]
    study = Study(corpora, parts, backbone, args.cache)
    rows = compared(study, args.rows)
    for baseline in ("regression", "discriminant"):
        print("\n" + table(study, rows, baseline), flush=True)


if __name__ == "__main__":
    main()
