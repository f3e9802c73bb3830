"""Recordings decoded once into one memory-mapped file, described by openSMILE where that is asked for."""

import itertools
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from modeling_edrl_mea.recordings import SAMPLING_RATE, find_audio, load_recording
from train.data.files import atomic_write

LEVEL = 0.05  # root mean square that openSMILE hears; it leaves 26 dB for peaks
SHORTEST_DESCRIBED = 1600  # samples: below 100 ms openSMILE has no frame of its longest window
N_DESCRIPTORS = 65
DESCRIPTOR_HOP = 160  # samples: 10 ms


def decode(path: str) -> np.ndarray:
    """Samples (n,) int16 at 16 kHz, channels mixed. RecordingError naming the file if it cannot be read."""
    return (load_recording(path) * 32767).round().clip(-32768, 32767).astype(np.int16)


def opensmile_features(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """openSMILE's ComParE 2016 of samples (n,) int16: functionals (6373,) and low-level descriptors (10 ms frames, 65).

    The recording is first brought to one level: the backbone hears it normalized, and cannot know how loud it was.
    """
    import opensmile

    global _smile  # one a process: it is slow to make
    if "_smile" not in globals():
        levels = opensmile.FeatureLevel.Functionals, opensmile.FeatureLevel.LowLevelDescriptors
        _smile = [opensmile.Smile(opensmile.FeatureSet.ComParE_2016, level) for level in levels]
    signal = samples.astype(np.float32) / 32768
    signal = np.clip(signal * LEVEL / (signal.std() + 1e-6), -1, 1)
    signal = np.pad(signal, (0, max(0, SHORTEST_DESCRIBED - len(signal))))
    functionals, descriptors = (smile.process_signal(signal, SAMPLING_RATE).to_numpy(np.float32) for smile in _smile)
    return np.nan_to_num(functionals[0]), np.nan_to_num(descriptors)


def audio_files(folder: str, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Sorted audio files below a folder but those whose name starts with a prefix in `leave_out`."""
    found = sorted(find_audio(folder))
    found = [str(p) for p in found if not (leave_out and p.name.startswith(leave_out))]
    if not found:
        raise ValueError(f"no audio files below {folder}")
    return found


class Recordings:
    """Decoded recordings of some folders in one memory-mapped int16 file: `recordings[i]` is (n,) float32.

    `files`, `folder_of` (index of the folder each came from) and `lengths` (samples) run in parallel;
    `functionals` is None or (files, 6373); `descriptors(i, start, count)` needs them too.
    """

    def __init__(self, cache: Path):
        index = json.loads((cache / "index.json").read_text())
        self.files, self.folder_of = index["files"], np.array(index["folder_of"])
        self.lengths = np.array(index["lengths"])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.samples = np.memmap(cache / "samples.int16", dtype=np.int16, mode="r")
        self.functionals = None
        if (cache / "functionals.npy").exists():
            self.functionals = np.load(cache / "functionals.npy", mmap_mode="r")
            self._descriptors = np.memmap(cache / "descriptors.f32", np.float32, "r").reshape(-1, N_DESCRIPTORS)
            self._descriptor_starts = np.load(cache / "descriptor_starts.npy")

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.samples[self.starts[i] : self.starts[i + 1]].astype(np.float32) / 32768

    def descriptors(self, i: int, start: int, count: int) -> np.ndarray:
        """(count, 65): what openSMILE says of the 20 ms frames from sample `start` on, two of its frames in each."""
        first, end = self._descriptor_starts[i : i + 2]
        rows = first + start // DESCRIPTOR_HOP + np.arange(2 * count)
        return self._descriptors[np.minimum(rows, end - 1)].reshape(count, 2, N_DESCRIPTORS).mean(1)

    @classmethod
    def build(cls, cache: Path, folders: list[str], leave_out=(), opensmile=False, workers=None):
        """Open the cache of these folders, decoding them first if it is not there or is of other files."""
        per_folder = [audio_files(folder, tuple(leave_out)) for folder in folders]
        files = list(itertools.chain.from_iterable(per_folder))
        index = cache / "index.json"
        if not index.exists() or json.loads(index.read_text())["files"] != files:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(parents=True)
            lengths = []
            with ProcessPoolExecutor(workers) as pool, open(cache / "samples.int16", "wb") as out:
                for samples in pool.map(decode, files, chunksize=8):
                    lengths.append(len(samples))
                    samples.tofile(out)
            folder_of = [i for i, found in enumerate(per_folder) for _ in found]
            with atomic_write(index) as temporary:  # last: without it what was decoded does not count
                temporary.write_text(json.dumps({"files": files, "folder_of": folder_of, "lengths": lengths}))
        recordings = cls(cache)
        if opensmile and recordings.functionals is None:
            recordings.describe(cache, workers)
            recordings = cls(cache)
        return recordings

    def describe(self, cache: Path, workers=None):
        """Write openSMILE's functionals and descriptors of every recording into the cache."""
        clips = ((self[i] * 32768).astype(np.int16) for i in range(len(self)))
        functionals, counts = [], [0]
        with ProcessPoolExecutor(workers) as pool, open(cache / "descriptors.f32", "wb") as out:
            described = pool.map(opensmile_features, clips, chunksize=8)
            for found, descriptors in tqdm(described, desc="openSMILE", total=len(self), unit="rec"):
                functionals.append(found)
                counts.append(len(descriptors))
                descriptors.tofile(out)
        np.save(cache / "descriptor_starts.npy", np.cumsum(counts))
        with atomic_write(cache / "functionals.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.stack(functionals))  # last: without it what was described does not count
