"""A voice that speech gates hear as one, synthesized: four vowels a second on a gliding pitch."""

import numpy as np

FORMANTS = ((700, 1200, 2500), (300, 2200, 2900), (350, 800, 2400))  # Hz, of a, i and u


def vowels(seconds: float, pitch: float = 120.0, rate: int = 16_000) -> np.ndarray:
    """(n,) samples, louder and quieter with every vowel."""
    time = np.arange(int(seconds * rate)) / rate
    pitches = pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))
    phase, vowel = 2 * np.pi * np.cumsum(pitches) / rate, (4 * time).astype(int) % len(FORMANTS)
    voice = np.zeros(len(time))
    for harmonic in range(1, int(3500 / pitch)):
        frequency = harmonic * pitches
        gains = [sum(1 / (1 + ((frequency - peak) / (60 + 0.05 * peak)) ** 2) for peak in one) for one in FORMANTS]
        voice += np.choose(vowel, gains) * np.sin(harmonic * phase) / np.sqrt(harmonic)
    voice *= np.sin(4 * np.pi * time) ** 2
    return (0.2 * voice / np.abs(voice).max()).astype(np.float32)
