"""Files of one sequence: formats that are not read, names that say no order, and depths that do not fit together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_images import values, write_images

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import SUFFIXES, UNREAD_SUFFIXES
from fedpp.imaging.preparation import prepare
from fedpp.imaging.readers.breakhis import read_breakhis
from fedpp.imaging.readers.frame_folders import read_frame_folders
from fedpp.imaging.readers.image_folders import read_image_folders
from fedpp.imaging.readers.manifest_table import read_manifest
from fedpp.imaging.reasons import Doubt, Reason

RAMP = np.add.outer(np.arange(0, 120, 5), np.arange(0, 128, 4)).astype(np.uint8)


def refusals_of(reader, root: Path) -> dict[str, str]:
    """Read all that can be read; return the reasons by file name."""
    refused: dict[str, str] = {}
    reader(root, lambda path, error: refused.update({path.name: error.reason}))
    return refused


def test_images_of_formats_that_are_not_read_are_refused(tmp_path: Path):
    """Of each patient, in each layout that has no table of its images: never passed over."""
    assert not SUFFIXES & UNREAD_SUFFIXES
    write_images(tmp_path / "p", "1.png", "SOB_B_A-14-1-40-001.png")
    for name in ("2.HEIC", "brain.nii.gz", "slide.svs", "x.jp2", "photo.dng", "clip.avi", "._1.heic", "notes.txt"):
        (tmp_path / "p" / name).write_bytes(b"not looked at")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "1.avif").write_bytes(b"not looked at")
    (tmp_path / "index.csv").write_text("sequence,patient,label\np,p,a\nq,q,b\n")
    expected = dict.fromkeys(
        ["2.HEIC", "brain.nii.gz", "slide.svs", "x.jp2", "photo.dng", "clip.avi"], Reason.NO_DECODER
    )
    for reader in (read_image_folders, read_frame_folders, lambda root, refuse: read_breakhis(root, refuse=refuse)):
        assert refusals_of(reader, tmp_path) == expected | {"1.avif": Reason.NO_DECODER}
    with pytest.raises(UnusableFileError, match="of a format that is not read: convert it"):
        read_image_folders(tmp_path)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".webp", ".apng", ".dib", ".JPG", ".Tiff"])
def test_suffixes_of_formats_that_are_read(suffix: str, tmp_path: Path):
    """Also rarer ones, in any case of letters."""
    form = {".jfif": "JPEG", ".jpe": "JPEG", ".apng": "PNG", ".dib": "BMP", ".JPG": "JPEG", ".Tiff": "TIFF"}.get(suffix)
    (tmp_path / "p").mkdir()
    Image.new("L", (8, 8), 9).save(
        tmp_path / "p" / f"1{suffix}", form or "WEBP", **({} if form else {"lossless": True})
    )
    (sequence,) = read_image_folders(tmp_path)
    assert values(sequence.frames) == [9]


def test_the_pages_of_a_frame_folders_images_are_frames(tmp_path: Path):
    """All pages of a GIF, TIFF or APNG, in their place among the images beside it."""
    write_images(tmp_path / "s", "1.png", "10.png")
    pages = [Image.new("L", (3, 2), grey) for grey in (50, 60, 70)]
    for number, suffix in ((3, "gif"), (4, "tif"), (5, "png")):
        pages[0].save(tmp_path / "s" / f"{number}.{suffix}", save_all=True, append_images=pages[1:])
    (tmp_path / "index.csv").write_text("sequence,patient,label\ns,p,a\n")
    (sequence,) = read_frame_folders(tmp_path)
    assert values(sequence.frames) == [1, *(3 * [50, 60, 70]), 2]


@pytest.mark.parametrize(
    ("names", "doubts"),
    [
        (["1.png", "10.png", "2.png"], ()),
        (["a.png"], ()),
        (["1.png", "2.tif"], ()),
        (["before.png", "after.png"], (Doubt.ORDER,)),
        (["02.03.2026.png", "01.04.2026.png"], (Doubt.ORDER,)),
    ],
)
def test_an_order_that_is_a_guess_is_a_doubt(names: list[str], doubts: tuple[Doubt, ...], tmp_path: Path):
    """Where no numbers of names tell a folder's images apart, or dates begin with the day."""
    write_images(tmp_path / "p", *names)
    assert [s.doubts for s in read_image_folders(tmp_path)] == [doubts]
    (tmp_path / "index.csv").write_text("sequence,patient,label\np,p,a\n")
    assert [s.doubts for s in read_frame_folders(tmp_path)] == [doubts]


def test_times_that_say_no_order_are_refused_or_a_doubt(tmp_path: Path):
    """Parts of a sequence have times that sort: none with the day first, none missing; another spelling is a doubt."""
    for times, message in (
        (["31.12.2025", "01.02.2026"], "lines 2, 3: write all of its times like 2026-12-31"),
        (["", "2026-01-01"], "gives parts of one sequence no time"),
    ):
        (tmp_path / "index.csv").write_text("sequence,patient,label,time\n" + "".join(f"s,p,a,{t}\n" for t in times))
        with pytest.raises(RawDataError, match=message):
            read_frame_folders(tmp_path)
    for times, doubts in ((["2025-9", "2025-10"], ()), (["2025-9", "2025-10-01"], (Doubt.ORDER,))):
        for time in times:
            write_images(tmp_path / "s" / time, "0.png")
        (tmp_path / "index.csv").write_text("sequence,patient,label,time\n" + "".join(f"s,p,a,{t}\n" for t in times))
        assert [s.doubts for s in read_frame_folders(tmp_path)] == [doubts]


def write_depths(folder: Path, **images: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.tif")


def test_one_picture_of_two_depths_has_one_contrast(tmp_path: Path):
    """Of 8 and of 16 bits in one sequence, both frames are prepared alike."""
    write_depths(tmp_path / "p", f1=RAMP, f2=RAMP.astype(np.uint16) * 257)
    (sequence,) = read_image_folders(tmp_path)
    eight, sixteen = prepare(sequence, 2, 12, 12)
    np.testing.assert_allclose(eight, sixteen, atol=1e-5)


def test_depths_that_cannot_be_compared_are_refused(tmp_path: Path):
    """12 bits in 16 beside 8, and floating-point numbers beside whole ones; either alone is read."""
    twelve, floating = RAMP.astype(np.uint16) * 16, RAMP.astype(np.float32) / 255
    write_depths(tmp_path / "a" / "p", f1=RAMP, f2=twelve, f3=RAMP)
    write_depths(tmp_path / "b" / "p", f1=RAMP, f2=RAMP, f3=floating)
    write_depths(tmp_path / "c" / "p", f1=twelve, f2=twelve)
    write_depths(tmp_path / "d" / "p", f1=floating, f2=floating)
    refused = {folder: refusals_of(read_image_folders, tmp_path / folder) for folder in "abcd"}
    assert refused == {"a": {"f2.tif": Reason.DEPTH}, "b": {"f3.tif": Reason.DEPTH}, "c": {}, "d": {}}
    table = "path,patient,label\np/f1.tif,p,a\np/f2.tif,p,a\np/f3.tif,p,a\n"
    (tmp_path / "a" / "manifest.csv").write_text(table)
    assert refusals_of(read_manifest, tmp_path / "a") == {"f2.tif": Reason.DEPTH}
    with pytest.raises(UnusableFileError, match="of another depth than the images beside it"):
        read_image_folders(tmp_path / "a")
