import io
import os
import pathlib
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from refine_jax import datasets
from refine_jax.datasets import folder_files
from refine_jax.datasets.images import NO_LABEL
from refine_jax.errors import DataError, SettingError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def load(root, tmp_path, **options):
    return datasets.load("folder", root=str(root), cache_dir=tmp_path / "cache", **options)


def write(path, value=0, size=(8, 8), **options):
    """A picture of one color, value in red and number of the file in green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, len(list(path.parent.iterdir())), 0)).save(path, **options)
    return path


def write_classes(folder, names=("cat", "dog"), count=10):
    for value, name in enumerate(names):
        for index in range(count):
            write(folder / name / f"{index}.png", value)


def reasons(dataset):
    return dict(dataset.changes["files"])


def test_class_folders_are_numbered_by_their_sorted_names(root, tmp_path):
    write_classes(root / "train", ["dog", "cat", "ape"], 4)
    write_classes(root / "val", ["ape", "dog"], 2)
    made = load(root, tmp_path)
    assert made.class_names == ("ape", "cat", "dog")
    # Red says in which order the folders were written.
    for split, count in ((made.train, 12), (made.test, 4)):
        assert split.has_labels
        assert len(split) == count
    assert (made.train.images[:, 0, 0, 0] == np.array([2, 1, 0])[made.train.labels]).all()
    assert (made.test.images[:, 0, 0, 0] == np.array([0, 9, 1])[made.test.labels]).all()
    assert made.changes == {"counts": {}, "files": []}


@pytest.mark.parametrize("others", [["bus", "car"], ["a", "b", "test", "Val"]])
def test_a_class_called_train_is_not_taken_for_the_data_set(root, tmp_path, others):
    write_classes(root, [*others, "train"], 5)
    with pytest.raises(DataError, match=rf"has train/ beside {others[0]}/, {others[1]}/: either .* or it is a class"):
        load(root, tmp_path)
    # Each way out that the error names.
    assert load(root / "train", tmp_path).class_names == ()
    outer = tmp_path / "outer"
    outer.mkdir()
    root.rename(outer / "train")
    assert load(outer, tmp_path).class_names == tuple(sorted([*others, "train"]))


def test_folders_without_pictures_and_the_test_root_may_lie_beside_train(root, tmp_path):
    write_classes(root / "train", count=5)
    write_classes(root / "holdout", count=2)
    (root / "annotations").mkdir()
    (root / "annotations" / "all.xml").touch()
    (root / "link").symlink_to(root / "holdout")
    made = load(root, tmp_path, test_root=root / "holdout")
    assert (len(made.train), len(made.test)) == (10, 4)


@pytest.mark.parametrize("names", [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("TRAIN", "Valid")])
def test_splits_are_known_in_upper_and_lower_case_and_by_their_longer_names(root, tmp_path, names):
    for name, count in zip(names, (4, 2), strict=True):
        write_classes(root / name, count=count)
    made = load(root, tmp_path)
    assert (made.class_names, len(made.train), len(made.test)) == (("cat", "dog"), 8, 4)


def test_two_splits_of_one_name_are_refused(root, tmp_path):
    for name in ("Train", "train"):
        write_classes(root / name, count=2)
    if len(list(root.iterdir())) == 2:  # where the file system tells them apart
        with pytest.raises(DataError, match="has both Train/ and train/"):
            load(root, tmp_path)


def test_without_test_pictures_every_fifth_of_each_class_is_held_back(root, tmp_path):
    write_classes(root, count=11)
    made = load(root, tmp_path)
    assert np.bincount(made.train.labels).tolist() == [9, 9]
    assert np.bincount(made.test.labels).tolist() == [2, 2]
    ids = [tuple(image[0, 0]) for split in (made.train, made.test) for image in split.images]
    assert len(set(ids)) == 22  # none twice, none lost


def test_pictures_without_folders_have_no_labels(root, tmp_path):
    for index in range(10):
        write(root / f"{index}.png")
    made = load(root, tmp_path)
    assert (made.class_names, len(made.train), len(made.test)) == ((), 8, 2)
    assert not made.train.has_labels
    assert not made.test.has_labels
    write_classes(tmp_path / "labeled", count=3)
    both = load(root, tmp_path, test_root=str(tmp_path / "labeled"))
    assert (both.class_names, len(both.train), len(both.test)) == (("cat", "dog"), 10, 6)
    assert (both.train.labels == NO_LABEL).all()
    assert both.test.has_labels


def test_names_of_the_classes_give_another_order_and_classes_without_pictures(root, tmp_path):
    write_classes(root, ["cat", "dog"], 5)
    made = load(root, tmp_path, class_names=("dog", "emu", "cat"))
    assert {
        (int(label), int(image[0, 0, 0])) for image, label in zip(made.train.images, made.train.labels, strict=True)
    } == {
        (2, 0),
        (0, 1),
    }
    with pytest.raises(SettingError, match=r"a class folder of .* = 'dog': allowed: cat, doge \(did you mean 'doge'"):
        load(root, tmp_path, class_names=("cat", "doge"))
    write_classes(tmp_path / "test", ["cat", "cow"], 2)
    with pytest.raises(SettingError, match=r"a class folder of .*test = 'cow': allowed: cat, dog"):
        load(root, tmp_path, test_root=str(tmp_path / "test"))


def test_pictures_are_brought_to_a_size_by_their_short_side_and_middle(root, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for index in range(5):
        Image.fromarray(pixels).save(root / f"{index}.png")
    assert load(root, tmp_path).image_size == (16, 24)
    np.testing.assert_array_equal(load(root, tmp_path, image_size=16).train.images[0], pixels[:, 4:20])
    halved = np.asarray(Image.fromarray(pixels).resize((12, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load(root, tmp_path, image_size=8).train.images[0], halved[:, 2:10])
    write(root / "other.png", size=(9, 7))
    with pytest.raises(
        SettingError, match=r"dataset.image_size = None: allowed: a side .* 24 x 16, .*other.png has 9 x 7"
    ):
        load(root, tmp_path)


def test_mean_and_deviation_are_those_of_the_training_images(root, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 100 + index, (8, 8, 3), np.uint8)).save(root / f"{index}.png")
    made = load(root, tmp_path)
    values = made.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(made.mean, values.mean((0, 1, 2)))
    np.testing.assert_allclose(made.std, values.std((0, 1, 2)))


def test_pictures_are_decoded_once_and_again_when_one_changes(root, tmp_path, monkeypatch):
    write_classes(root)
    (root / "cat" / "broken.png").write_bytes(b"no picture")
    first = load(root, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("refine_jax.datasets.folder.read_pictures", None)
        again = load(root, tmp_path)
    assert (again.sha256, again.changes, again.mean) == (first.sha256, first.changes, first.mean)
    write(root / "cat" / "0.png", 77)
    assert load(root, tmp_path).sha256 != first.sha256


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
    (root / "emu").symlink_to(tmp_path)
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
    assert told["cat/up"] == told["emu"] == "a link to a folder"
    assert told["/".join(["cat"] + ["deep"] * 8)] == "a folder more than 8 deep"
    assert all(path.isprintable() and path.isascii() for path in told)
    assert sum(made.changes["counts"].values()) == len(told)
    # The 20 written first, the two that are pictures of another format, and the one with a name that is no text.
    assert len(made.train) + len(made.test) == 23


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda root: None, DataError, "holds no picture"),
        (
            lambda root: (root / "a.txt").write_text("x"),
            DataError,
            "holds no picture .*left out: 1 files, no picture by",
        ),
        (lambda root: write_classes(root, ["cat"]), DataError, "one class folder, cat"),
        (lambda root: (write_classes(root), write(root / "a.png")), DataError, "1 pictures beside 2 folders"),
        (lambda root: (write_classes(root), (root / "emu").mkdir()), DataError, "class folder emu holds no picture"),
        (lambda root: write_classes(root, ["a\nb", "c"]), DataError, r"class folder a\\nb has a name that is no text"),
        (lambda root: (root / "a.png").write_bytes(b"x"), DataError, "too few pictures"),
        (lambda root: [(root / f"{i}.png").write_bytes(b"x") for i in range(9)], DataError, "not one of .* decoded"),
        (lambda root: (root / "train").symlink_to("/usr"), DataError, "is a link that leads out"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused_in_a_sentence(root, tmp_path, prepare, error, message):
    prepare(root)
    with pytest.raises(error, match=message) as caught:
        load(root, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "/not there", "a\0b", __file__])
def test_a_root_that_is_no_folder_is_refused(value, tmp_path):
    with pytest.raises(SettingError, match=r"dataset.root = .*: allowed: a folder of pictures"):
        datasets.load("folder", root=value, cache_dir=tmp_path)


def test_more_files_or_more_pixels_than_fit_are_refused_before_they_are_read(root, tmp_path, monkeypatch):
    write_classes(root)
    with monkeypatch.context() as patch:
        patch.setattr(folder_files, "MAX_FILES", 15)
        with pytest.raises(DataError, match="more than 15 files"):
            load(root, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 64 if name == "SC_PAGE_SIZE" else 90)
        with pytest.raises(DataError, match=r"16 pictures of 8 x 8 take 0.0 GiB.*smaller dataset.image_size"):
            load(root, tmp_path)


@pytest.mark.parametrize("value", [0, 4097, 32.0, "32", True])
def test_what_is_no_side_is_refused(root, tmp_path, value):
    with pytest.raises(SettingError, match=f"dataset.image_size = {value!r}: allowed: a whole number, 1 to 4096"):
        load(root, tmp_path, image_size=value)


def test_a_link_within_the_folder_counts_as_the_file_it_leads_to(root, tmp_path):
    write_classes(root)
    (root / "dog" / "linked.png").symlink_to(root / "dog" / "0.png")
    made = load(root, tmp_path)
    assert len(made.train) + len(made.test) == 21


def test_a_thousand_files_are_read_in_seconds(root, tmp_path):
    picture = encoded("PNG")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index in range(600):
            pathlib.Path(root, name, f"{index}.png").write_bytes(picture)
    made = load(root, tmp_path)
    assert (len(made.train), len(made.test)) == (960, 240)
