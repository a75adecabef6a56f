"""Files and tables of arbitrary content: each ends in a good read or in one line, in bounded time and memory."""

import csv
import io
import shutil
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import strange_layouts
from conftest import DATA, loaded
from hypothesis import given
from hypothesis import strategies as st
from mutations import read_damaged, sources
from PIL import Image
from strange_layouts import LAYOUTS, misread_layouts
from strange_trees import misread_trees, tree

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import FedppError, RawDataError
from fedpp.imaging import images
from fedpp.imaging.images import page_count, read_pages
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation
from fedpp.imaging.readers.chexpert import COLUMNS as CHEXPERT
from fedpp.imaging.readers.chexpert import FINDINGS
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.splits import SplitPlan
from fedpp.ingest.ingestion import IngestSettings, ingest
from fedpp.keys.key_domain import KeyDomain

PROCESSES = 2
SECONDS = 5  # for one file
GROWTH = 2**30  # bytes

# Of each table: its name, its layout, its columns, and cells that would be good in them.
TABLES = {
    "manifest": ("manifest.csv", ("path", "patient", "time", "label", "split", "sequence")),
    "frames": ("index.csv", ("sequence", "patient", "label", "time")),
    "chexpert": ("train.csv", CHEXPERT),
    "images": ("labels.csv", ("patient", "label")),
}
GOOD = {
    "path": ["a/1.png", "a/2.tiff", "b/2/1.png", "gone.png"],
    "patient": ["a", "b", "patient1", "<patient>p<patient>"],
    "time": ["2026-01-01", "2026-01-02", "20260103"],
    "split": ["train", "test"],
    "sequence": ["a", "b", "gone"],
    "label": ["x", "y", ""],
    "Path": ["patient1/study1/view1_frontal.png", "x/patient1/study10/view1_lateral.png", "patient2/study1/view1.png"],
    "Frontal/Lateral": ["Frontal", "Lateral"],
} | {finding: ["1.0", "0.0", "-1.0", ""] for finding in FINDINGS}
EVIL = [
    "../a/1.png",
    "/etc/passwd",
    "a/../../../etc",
    "a\0",
    "\0",
    ".",
    "..",
    "~",
    "a/1.png/",
    "x" * 5_000,
    "9" * 5_000,
    "nan",
    "1e999",
    "\n",
    'a"b',
    "a,b",
    "\N{RIGHT-TO-LEFT OVERRIDE}a",
    "\x1b[2J",
    "CON",
]
UNMARKED = [text for column, texts in GOOD.items() if column != "patient" for text in texts]
ANY = st.sampled_from(EVIL) | st.sampled_from(UNMARKED) | st.text(max_size=8)


def cell(column: str) -> st.SearchStrategy[str]:
    """Draw a cell that is good in its column, mostly; what is a patient's is marked, whatever it is."""
    other = ANY.map("<patient>{}<patient>".format) if column == "patient" else ANY
    return st.sampled_from(range(10)).flatmap(lambda turn: st.sampled_from(GOOD[column]) if turn else other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images where the good cells say that there are some."""
    folder = tmp_path_factory.mktemp("fuzz") / "raw"
    page = Image.fromarray(np.zeros((3, 4), np.uint8))
    for name in ("a/1.png", "b/2/1.png", "patient1/study1/view1_frontal.png", "patient1/study10/view1_lateral.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        page.save(folder / name)
    page.save(folder / "a" / "2.tiff", save_all=True, append_images=[page])
    (folder.parent / "a").mkdir()
    page.save(folder.parent / "a" / "1.png")
    return folder


def read_or_refuse(folder: Path, layout: str, content: bytes) -> list[str]:
    """Read a folder with this table, strictly and not; return the lines that were said, each of which is one."""
    for name, _ in TABLES.values():
        (folder / name).unlink(missing_ok=True)
    (folder / TABLES[layout][0]).write_bytes(content)
    said: list[str] = []
    for options in ((), (lambda _, error: said.append(str(error)),)):
        try:
            sequences, recognised = read_sequences(folder, layout, Choices(), *options)
        except FedppError as error:
            said.append(str(error))
        else:
            said.append(recognised)
            assert all(len(s.frames) > 0 for s in sequences)
            assert all(
                len(s.frames) == len(of_frames) for s in sequences for of_frames in (s.labels, s.times) if of_frames
            )
            assert all(folder in file.path.resolve().parents for s in sequences for file in s.frames.files)
            loaded(sequences)
    assert all("\n" not in line for line in said)
    return said


def table(columns: tuple[str, ...], rows: list[list[str]]) -> bytes:
    content = io.StringIO()
    csv.writer(content).writerows([columns, *rows])
    return content.getvalue().encode()


@pytest.mark.parametrize("layout", TABLES)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), start=st.booleans())
def test_a_table_of_any_bytes_is_read_or_refused(folder: Path, layout: str, content: bytes, *, start: bool):
    """Whatever stands in the place of a table, or below its header, ends in sequences or in one line."""
    header = ",".join(TABLES[layout][1]).encode() + b"\n"
    read_or_refuse(folder, layout, header + content if start else content)


@pytest.mark.parametrize("layout", TABLES)
@given(data=st.data())
def test_a_table_of_any_cells_is_read_or_refused(folder: Path, layout: str, data: st.DataObject):
    """Missing columns, too many cells, paths that lead out: nothing outside is read, and no message shows a patient."""
    columns = TABLES[layout][1]
    fewer = st.lists(st.sampled_from(columns), max_size=len(columns)).map(tuple)
    chosen = data.draw(st.sampled_from(range(8)).flatmap(lambda turn: st.just(columns) if turn else fewer))
    rows = data.draw(st.lists(st.tuples(*map(cell, chosen)).map(list), max_size=4))
    if rows and data.draw(st.sampled_from(range(8))) == 0:
        rows[0] = [*rows[0], data.draw(ANY)]
    for line in read_or_refuse(folder, layout, table(chosen, rows)):
        assert "<patient>" not in line


@pytest.mark.parametrize("layout", TABLES)
def test_a_huge_cell_is_refused(folder: Path, layout: str):
    """A cell of a megabyte, and a line of ten thousand cells, end in one line that does not repeat them."""
    columns = TABLES[layout][1]
    for row in (["x" * 2**20] * len(columns), ["x"] * 10_000, ['"' * 3_000] * len(columns)):
        assert max(len(line) for line in read_or_refuse(folder, layout, table(columns, [row]))) < 4_000


def test_the_sources_are_good(tmp_path: Path):
    """Intact, each of the files that are made to be damaged is read; there are real ones among the others."""
    intact = sources(DATA / "dicom")
    assert sum(name.startswith("real") for name in intact) > 20
    (tmp_path / "images" / "p").mkdir(parents=True)
    for name, content in intact.items():
        if not name.endswith(".dcm"):
            (tmp_path / "images" / "p" / name).write_bytes(content)
        elif not name.startswith("real"):
            (tmp_path / name).write_bytes(content)
            loaded(read_sequences(tmp_path / name)[0])
    loaded(read_sequences(tmp_path / "images")[0])


@pytest.mark.parametrize("files", [500, pytest.param(2_000, marks=pytest.mark.slow)])
def test_damaged_images_end_well(files: int, tmp_path: Path):
    """Damaged images and DICOM files are each read or refused in a line with their name, with little memory."""
    intact = sources(DATA / "dicom")
    folders = [tmp_path / str(part) for part in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        readings = list(
            pool.map(read_damaged, [intact] * PROCESSES, range(PROCESSES), [files // PROCESSES] * PROCESSES, folders)
        )
    for reading in readings:
        assert not reading.wrong
        assert reading.files / 4 < reading.refused < reading.files
        assert reading.slowest < SECONDS, reading.slowest_name
        assert reading.growth < GROWTH


@pytest.mark.parametrize("trees", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_hospitals_have_is_read_rightly_or_refused(trees: int, tmp_path: Path):
    """Pictures and DICOM of many kinds, damage, names and tables: no wrong frame, order or label, no patient lost."""
    numbers = [range(part, trees, PROCESSES) for part in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(misread_trees, numbers, [tmp_path / str(part) for part in range(PROCESSES)]))
    assert not [text for _, wrong in results for text in wrong]
    ends = results[0][0] + results[1][0]
    assert ends.total() == trees
    assert set(ends) == {"read", "refused"}
    assert min(ends.values()) > trees / 4


@pytest.mark.parametrize("trees", [140, pytest.param(10_000, marks=pytest.mark.slow)])
def test_layouts_are_read_rightly_or_refused(trees: int, tmp_path: Path):
    """Layouts with tables and classes, tables and files of them damaged: as above, and patients in are out or named."""
    numbers = [range(part, trees, PROCESSES) for part in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(misread_layouts, numbers, [tmp_path / str(part) for part in range(PROCESSES)]))
    assert not [text for _, wrong in results for text in wrong]
    ends = results[0][0] + results[1][0]
    assert ends.total() == trees
    assert set(ends) == {f"{layout} {end}" for layout in LAYOUTS for end in ("read", "refused")}
    assert min(ends.values()) > trees / len(ends) / 4


@pytest.mark.parametrize("trees", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_ingest_writes_all_of_them_or_nothing(trees: int, tmp_path: Path, domain: KeyDomain):
    """A dataset of all sequences that were read, of which some may hold damaged pixels, or no trace of it."""
    settings = IngestSettings(Preparation("float32", 2, 6, 5), SplitPlan("hashed"))
    out = tmp_path / "out" / "dataset"
    out.parent.mkdir()
    ends: Counter[str] = Counter()
    for number in range(trees):
        try:
            root = (
                tree(tmp_path / "raw", number) if number % 2 else strange_layouts.tree(tmp_path / "raw", number)[0]
            ).root
            sequences, _ = read_sequences(root, refuse=lambda *_: None)
            ingest(sequences, out, domain=domain, class_map=ClassMap(()), settings=settings)
        except FedppError:
            ends["refused"] += 1
            assert not list(out.parent.iterdir())
        else:
            ends["written"] += 1
            dataset = EncryptedDataset.open(out)
            dataset.verify()
            assert len(dataset.sequences) == len(sequences)
            shutil.rmtree(out)
    assert min(ends["written"], ends["refused"]) > trees / 10


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a grey PNG of 8 bits of any chunks between the first and the last."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks, (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def deflated(megabytes: int) -> bytes:
    deflater = zlib.compressobj(9)
    return b"".join([*(deflater.compress(bytes(2**20)) for _ in range(megabytes)), deflater.flush()])


def gif(frames: int) -> bytes:
    """Return an animated GIF of black frames of one pixel."""
    first = io.BytesIO()
    Image.new("L", (1, 1)).save(first, "GIF")
    header = first.getvalue()[: first.getvalue().index(b",")]
    return header + b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * frames + b";"


def tiff(pages: int, side: int = 1, *, endless: bool = False) -> bytes:
    """Return a TIFF of black pages of this side; an endless one begins again after the last."""
    content = b"II*\0" + struct.pack("<I", 8)
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, side * side)]
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ends = [*(8 + number * (len(page) + 4) for number in range(1, pages)), 8 if endless else 0]
    return content + b"".join(page + struct.pack("<I", end) for end in ends)


def bmp(side: int) -> bytes:
    """Return a BMP whose header claims a square of this side."""
    content = io.BytesIO()
    Image.new("L", (6, 4)).save(content, "BMP")
    return content.getvalue()[:18] + side.to_bytes(4, "little") * 2 + content.getvalue()[26:]


def progressive(scans: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG", progressive=True)
    jpeg = content.getvalue()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * (scans - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """Yield the name of a file that is small and becomes large, its content, and what is said of it, "" if read."""
    zeros, pixels = deflated(300), (b"IDAT", zlib.compress(bytes(110)))
    yield "pixels.png", png(10, 10, (b"IDAT", zeros)), ""
    yield "wide.png", png(60_000, 60_000, (b"IDAT", zeros)), "exceeds limit|more than 64000000"
    yield "text.png", png(10, 10, (b"zTXt", b"key\0\0" + zeros), pixels), "too large"
    yield "profile.png", png(10, 10, (b"iCCP", b"key\0\0" + zeros), pixels), "too large"
    yield "frames.gif", gif(6_000), "claims 6000 pages, more than 5000"
    yield "some.gif", gif(100), ""
    yield "pages.tiff", tiff(6_000), "claims 5001 pages, more than 5000"
    yield "some.tiff", tiff(100), ""
    yield "endless.tiff", tiff(5, endless=True), ""
    yield "wide.tiff", tiff(1, 60_000), "exceeds limit|more than 64000000"
    yield "wide later.tiff", tiff(1)[:-4] + struct.pack("<I", 122) + tiff(1, 60_000)[8:], "more than 64000000"
    yield "wide.bmp", bmp(9_000), "9000 x 9000 pixels, more than"
    yield "wider.bmp", bmp(100_000), r"10000000000 pixels\) exceeds"
    yield "scans.jpg", progressive(60), "more than 50 scans"
    yield "some scans.jpg", progressive(12), ""


BOMBS = {name: (content, message) for name, content, message in bombs()}


@pytest.mark.parametrize(
    ("name", "content", "claimed"),
    [
        ("a.gif", gif(41), 41),
        ("a.tiff", tiff(41), 41),
        ("b.tiff", tiff(200), 41),
        pytest.param("b.gif", gif(200_000), 200_000, marks=pytest.mark.slow),
    ],
)
def test_a_file_of_too_many_pages_is_refused(
    name: str, content: bytes, claimed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file of one page more than the limit is refused, and of a TIFF no further page is looked for."""
    monkeypatch.setattr(images, "MAX_PAGES", 40)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RawDataError, match=f"claims {claimed} pages, more than 40"):
        page_count(tmp_path / name)
    (tmp_path / name).write_bytes(gif(40) if name.endswith("gif") else tiff(40))
    assert page_count(tmp_path / name) == 40


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in {"pages.tiff", "frames.gif"} else n for n in BOMBS]
)
def test_a_small_file_does_not_become_large(tmp_path: Path, name: str):
    """What would inflate to hundreds of megabytes, or claims to, is read as far as it is needed, or refused."""
    content, message = BOMBS[name]
    (tmp_path / name).write_bytes(content)
    assert len(content) < 12_000_000
    started = time.process_time()
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(RawDataError, match=message) as refused:
                list(read_pages(tmp_path / name, page_count(tmp_path / name)))
            assert name in str(refused.value)
        else:
            assert list(read_pages(tmp_path / name, page_count(tmp_path / name)))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2 * SECONDS  # tracing takes half
