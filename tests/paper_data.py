"""Tiny set of frame folders, on which the paper's experiment runs in seconds."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

PATIENTS, SIDE = 20, 12
MIXED = 3  # this patient's second sequence has the other label


def write_frames(root: Path, contrast: float = 100.0) -> None:
    """Write one or two sequences a patient, of two or three frames: horizontal or vertical stripes in noise."""
    root.mkdir(parents=True)
    with (root / "index.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["sequence", "patient", "label"])
        for patient in range(PATIENTS):
            for number in range(1 + patient % 2):
                ill = (patient + (number if patient == MIXED else 0)) % 4 > 1
                name = f"s{patient:02d}{number}"
                generator = np.random.default_rng([patient, number])
                folder = root / name
                folder.mkdir()
                for frame in range(2 + patient % 2):
                    stripes = np.tile(contrast * (np.arange(SIDE) // 2 % 2), (SIDE, 1))
                    pixels = (stripes if ill else stripes.T) + generator.uniform(0, 100, (SIDE, SIDE))
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{frame:02d}.png")
                rows.writerow([name, f"p{patient:02d}", "ill" if ill else "well"])
