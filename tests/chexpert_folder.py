"""Two tiny hospitals in CheXpert's layout that share some patients."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fedpp.imaging.readers.studies import FINDINGS

HOSPITALS = {"north": range(1, 15), "south": range(10, 33)}  # patients: 10 to 14 are patients of both
VISITS = (1, 3, 2)  # of patients 0, 1, 2 modulo 3
# Seed of a stratified split: patients whom one hospital trains on and the other tests, and their training sequences.
SPOILT = {2: (2, 5), 3: (1, 2), 4: (1, 2)}
SILENT = (4, 2)  # patient, study: without a finding, so it has no label


def write_hospitals(root: Path) -> None:
    """Write the folders: images of 8 x 8 pixels, effusion in all visits of every third patient and in some more.

    Consolidation is known in each first and third visit, and present in those of every second patient.
    """
    for hospital, patients in HOSPITALS.items():
        (root / hospital).mkdir()
        with (root / hospital / "train.csv").open("w", newline="") as table:
            rows = csv.writer(table)
            rows.writerow(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS])
            for patient in patients:
                for study in range(1, VISITS[patient % 3] + 1):
                    name = f"patient{patient:05d}/study{study}/view1_frontal.png"
                    image = root / hospital / name
                    image.parent.mkdir(parents=True)
                    pixels = np.random.default_rng([patient, study]).integers(0, 255, (8, 8), dtype=np.uint8)
                    Image.fromarray(pixels).save(image)
                    ill = "1.0" if patient % 3 == 0 or study == 3 else "0.0"
                    finding = "" if (patient, study) == SILENT else ill
                    known = {"Pleural Effusion": finding}
                    if study != 2:
                        known["Consolidation"] = f"{(patient + 1) % 2:.1f}"
                    findings = [known.get(found, "") for found in FINDINGS]
                    rows.writerow([f"CheXpert/{name}", "Male", 50, "Frontal", "PA", *findings])
