"""Files and tables of arbitrary content: each ends in a good read or in one line, in bounded time and memory."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from conftest import DATA, loaded
from mutations import read_damaged, sources

from fedpp.imaging.layout import read_sequences

FILES = 2_000
PROCESSES = 2
SECONDS = 5  # for one file
GROWTH = 2**30  # bytes


def test_the_sources_are_good(tmp_path: Path):
    """Intact, each of the files that are made to be damaged is read, and some real ones."""
    intact = sources(DATA / "dicom")
    assert len(intact) > 30
    for name, content in intact.items():
        if name.endswith(".dcm") and not name.startswith("real"):
            (tmp_path / name).write_bytes(content)
            loaded(read_sequences(tmp_path / name)[0])
        elif name.endswith(".png"):
            (tmp_path / "images" / "p").mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / "p" / name).write_bytes(content)
    loaded(read_sequences(tmp_path / "images")[0])


def test_damaged_images_end_well(tmp_path: Path):
    """2,000 damaged PNG and DICOM files are each read or refused in a line with their name, with little memory."""
    intact = sources(DATA / "dicom")
    folders = [tmp_path / str(part) for part in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        readings = list(
            pool.map(read_damaged, [intact] * PROCESSES, range(PROCESSES), [FILES // PROCESSES] * PROCESSES, folders)
        )
    for reading in readings:
        assert not reading.wrong
        assert reading.files / 4 < reading.refused < reading.files
        assert reading.slowest < SECONDS, reading.slowest_name
        assert reading.growth < GROWTH
