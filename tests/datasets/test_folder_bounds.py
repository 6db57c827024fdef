"""Folders from strangers: how much is read at once, what links lead to, and what a file at odds ends."""

import io
import os
import pathlib
import resource
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from refine_jax.datasets import folder, folder_files, folder_pictures, memory, pictures
from refine_jax.errors import DataError, SettingError, StorageError
from tests.datasets.folders import colors, load, reasons, write, write_classes


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_mean_and_deviation_take_little_memory_beside_the_images():
    images = np.zeros((64, 256, 256, 3), np.uint8)
    tracemalloc.start()
    try:
        folder._statistics(images)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes


@pytest.mark.parametrize("step", ["stat", "read_bytes"])
def test_a_file_that_cannot_be_read_now_ends_the_run_and_nothing_of_that_is_kept(root, tmp_path, monkeypatch, step):
    write_classes(root)
    original = getattr(pathlib.Path, step)

    def fail(path, **options):
        if path.name == "7.png":
            raise PermissionError(13, "Permission denied")
        return original(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, step, fail)
        with pytest.raises(StorageError, match=r"cat/7.png cannot be read now \(Permission denied\): .* tries again"):
            load(root, tmp_path)
    made = load(root, tmp_path)
    assert (len(made.train) + len(made.test), made.changes["counts"]) == (20, {})


def test_too_little_memory_for_a_picture_ends_the_run_and_nothing_of_that_is_kept(root, tmp_path, monkeypatch):
    write_classes(root)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "open_picture", fail)
        with pytest.raises(DataError, match=r"cat/0.png: there is too little memory to decode it"):
            load(root, tmp_path)
    made = load(root, tmp_path)
    assert (len(made.train) + len(made.test), made.changes["counts"]) == (20, {})


def test_no_more_than_four_pictures_are_held_while_a_slow_one_is_decoded(root, tmp_path, monkeypatch):
    files = [(write(root / f"{index:02}.png").name, 0) for index in range(40)]
    slow = (root / files[0][0]).read_bytes()
    original, begun, begun_meanwhile = pictures.decode, [], []

    def decode(encoded, side):
        begun.append(None)
        if encoded == slow:
            time.sleep(0.3)
            begun_meanwhile.append(len(begun))
        return original(encoded, side)

    monkeypatch.setattr(pictures, "decode", decode)
    images, _ = folder_pictures.read_pictures(root, files, None, folder_files.Changes())
    assert images[:, 0, 0, 1].tolist() == list(range(40))  # in their order
    assert len(begun_meanwhile) == 1
    assert begun_meanwhile[0] <= 4


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG of a few kilobytes that says, rightly, that it has so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(min(height, 200))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(format_name, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (8, 8), 5).save(file, format_name)
    return file.getvalue()


HOSTILE = {
    "bomb.png": (bomb(60_000, 60_000), "cannot be decoded: "),
    "wide.png": (bomb(100_000_000, 1), "cannot be decoded: "),
    "text.png": (b"<html>not found</html>", "cannot be decoded: none of JPEG, PNG"),
    "cut.png": (encoded("PNG")[:45], "cannot be decoded: "),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be decoded: none of"),
    "tiff.jpg": (encoded("TIFF"), "cannot be decoded: none of"),
    "deep.png": (encoded("PNG", "I;16"), "cannot be decoded: mode I;16, more than 8 bits"),
    "empty.png": (b"", "an empty file"),
    "notes.txt": (b"hello", "no picture by its name"),
    "really_a.png.jpg": (encoded("PNG"), "taken, though its name says another format: PNG"),
    "new\nline\x1b[31m.png": (encoded("JPEG"), "taken, though its name says another format: JPEG"),
}


def test_a_hostile_folder_is_read_within_bounds_and_what_was_left_out_is_listed(root, tmp_path):
    write_classes(root)
    for name, (data, _) in HOSTILE.items():
        (root / "cat" / name).write_bytes(data)
    (root / "cat" / os.fsdecode(b"\xff\xfe.png")).write_bytes(encoded("PNG"))
    outside = write(tmp_path / "secret.png")
    (root / "cat" / "link.png").symlink_to(outside)
    (root / "cat" / "nowhere.png").symlink_to(root / "not there")
    (root / "cat" / "loop.png").symlink_to(root / "cat" / "loop.png")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "emu").symlink_to(tmp_path)
    os.mkfifo(root / "cat" / "pipe.png")
    deep = root / "cat"
    for _ in range(12):
        deep = deep / "deep"
    write(deep / "picture.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = load(root, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes

    told = reasons(made)
    for name, (_, why) in HOSTILE.items():
        matching = {path: what for path, what in told.items() if path.endswith(ascii(name)[1:-1])}
        assert len(matching) == 1, name
        assert why in next(iter(matching.values()))
    assert told["cat/link.png"] == "a link that leads out of the folder"
    assert told["cat/nowhere.png"] == told["cat/loop.png"] == "a link that leads nowhere"
    assert told["cat/pipe.png"] == "no regular file"
    assert told["cat/up"] == told["cat/emu"] == "a link to a folder"
    assert told["/".join(["cat"] + ["deep"] * 8)] == "a folder more than 8 deep"
    assert all(path.isprintable() and path.isascii() for path in told)
    assert sum(made.changes["counts"].values()) == len(told)
    # The 20 written first, the two that are pictures of another format, and the one with a name that is no text.
    assert len(made.train) + len(made.test) == 23


@pytest.mark.parametrize("test_root", ["train", "train/cat", ".", "link", "train/cat/.."])
def test_test_pictures_that_would_be_trained_on_are_refused(root, tmp_path, test_root):
    write_classes(root / "train")
    (root / "link").symlink_to("train")
    with pytest.raises(SettingError, match=r"dataset.test_root = .*: allowed: a folder apart from .*train, whose"):
        load(root, tmp_path, test_root=root / test_root)


def test_more_files_or_more_pixels_than_fit_are_refused_before_they_are_read(root, tmp_path, monkeypatch):
    write_classes(root)
    with monkeypatch.context() as patch:
        patch.setattr(folder_files, "MAX_FILES", 15)
        with pytest.raises(DataError, match="more than 15 files"):
            load(root, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 64 if name == "SC_PAGE_SIZE" else 90)
        with pytest.raises(DataError, match=r"20 pictures of 8 x 8 take 0.0 GiB.*smaller dataset.image_size"):
            load(root, tmp_path)


@pytest.mark.parametrize(("there", "fits"), [(2 * 20 * 8 * 8 * 3, True), (2 * 20 * 8 * 8 * 3 - 1, False)])
def test_pictures_to_train_and_to_test_on_must_fit_into_memory_together(root, tmp_path, monkeypatch, there, fits):
    write_classes(root / "train", count=5)
    write_classes(root / "test", count=5)
    monkeypatch.setattr(memory, "of_machine", lambda: there)
    if fits:
        assert len(load(root, tmp_path).test) == 10
    else:
        with pytest.raises(DataError, match="20 pictures of 8 x 8 take"):
            load(root, tmp_path)


def test_a_link_within_the_folder_counts_as_the_file_it_leads_to(root, tmp_path):
    write_classes(root)
    (root / "dog" / "linked.png").symlink_to(root / "dog" / "0.png")
    made = load(root, tmp_path)
    assert len(made.train) + len(made.test) == 21


def test_a_link_is_held_back_where_the_picture_is_that_it_leads_to(root, tmp_path):
    write_classes(root)
    hidden = write(root / ".hidden" / "picture.png", 7)
    for name in ("cat", "dog"):
        for index in range(10):
            (root / name / f"copy{index}.png").symlink_to(f"{index}.png")
            (root / name / f"hidden{index}.png").symlink_to(hidden)
    made = load(root, tmp_path)
    assert len(made.train) + len(made.test) == 60
    assert made.test.labels.tolist().count(1) >= 4  # two of each class, and what leads to them
    assert not {*colors(made.train)} & {*colors(made.test)}


def test_without_links_the_same_pictures_are_held_back_as_ever(root, tmp_path):
    write_classes(root)
    assert sorted(colors(load(root, tmp_path).test)) == [(0, 3, 0), (0, 4, 0), (1, 6, 0), (1, 9, 0)]


def test_a_thousand_files_are_read_in_seconds(root, tmp_path):
    picture = encoded("PNG")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index in range(600):
            pathlib.Path(root, name, f"{index}.png").write_bytes(picture)
    made = load(root, tmp_path)
    assert (len(made.train), len(made.test)) == (960, 240)
