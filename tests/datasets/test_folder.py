import os

import numpy as np
import pytest
from PIL import Image

from refine_jax import datasets
from refine_jax.datasets import folder
from refine_jax.datasets.images import NO_LABEL
from refine_jax.errors import DataError, SettingError
from tests.datasets.folders import colors, load, reasons, write, write_classes


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


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


def test_mean_and_deviation_are_those_of_the_training_images(root, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PIXELS_AT_ONCE", 100)  # of 1024
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
    changed = load(root, tmp_path)
    assert changed.sha256 != first.sha256
    # Another picture of the same size, with the time that the first had: what cp -p and archives bring along.
    file = root / "cat" / "1.png"
    before = file.stat()
    color = Image.open(file).getpixel((0, 0))
    Image.new("RGB", (8, 8), (color[0] + 1, *color[1:])).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load(root, tmp_path).sha256 != changed.sha256


def test_what_pictures_say_beside_is_told_once_for_each_kind(root, tmp_path, caplog):
    write_classes(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        write(root / "cat" / f"turned{index}.jpg", size=(8, 8), exif=exif)
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(root / "dog" / "clear.png")
    made = load(root, tmp_path)
    assert len(made.train) + len(made.test) == 24
    turned, clear = (
        "taken as it is stored, though its EXIF data turn it",
        "taken with the colors under what is transparent in it",
    )
    assert made.changes["counts"] == {turned: 3, clear: 1}
    assert reasons(made)["cat/turned1.jpg"] == turned
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        f"dataset: 3 files: {turned}",
        f"dataset: 1 files: {clear}",
    ]


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
        (
            lambda root: (write_classes(root), (root / "bird").symlink_to("cat")),
            DataError,
            "class folder bird is a link, .* the other classes' numbers would depend on it",
        ),
        (
            lambda root: write_classes(root, ["caf\u00e9", "cafe\u0301"]),
            DataError,
            r"class folders cafe\\u0301 and caf\\xe9 have one name, in two encodings",
        ),
        (lambda root: write_classes(root, ["a\nb", "c"]), DataError, r"class folder a\\nb has a name that is no text"),
        (lambda root: (root / "a.png").write_bytes(b"x"), DataError, "too few pictures"),
        (lambda root: [(root / f"{i}.png").write_bytes(b"x") for i in range(9)], DataError, "not one of .* decoded"),
        (lambda root: (root / "train").symlink_to("/usr"), DataError, "is a link that leads out"),
        (
            lambda root: (write_classes(root / "train"), (root / "test").symlink_to("train")),
            DataError,
            "train/ and test/ are one folder, or one is in the other",
        ),
    ],
)
def test_what_cannot_be_a_data_set_is_refused_in_a_sentence(root, tmp_path, prepare, error, message):
    prepare(root)
    with pytest.raises(error, match=message) as caught:
        load(root, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_within_the_root_is_a_class_and_no_test_root(root, tmp_path):
    write_classes(root)
    write_classes(root / "holdout")
    with pytest.raises(SettingError, match=r"dataset.test_root = .*holdout': allowed: a folder apart from .*root, "):
        load(root, tmp_path, test_root=root / "holdout")


def test_an_accent_of_a_class_may_be_written_in_either_way(root, tmp_path):
    write_classes(root / "train", ["cafe\u0301", "dog"])
    write_classes(root / "test", ["caf\u00e9", "dog"])
    assert load(root, tmp_path).test.labels.tolist() == [0] * 10 + [1] * 10
    made = load(root, tmp_path, class_names=("dog", "caf\u00e9"))
    assert made.class_names == ("dog", "caf\u00e9")
    assert {*zip(made.train.labels.tolist(), (color[0] for color in colors(made.train)), strict=True)} == {
        (1, 0),
        (0, 1),
    }


@pytest.mark.parametrize("names", ["cat,dog", ("cat",), ("cat", "cat"), ("caf\u00e9", "cafe\u0301"), (1, 2), "ab"])
def test_what_are_no_names_of_classes_is_refused(root, tmp_path, names):
    for index in range(6):
        write(root / f"{index}.png")
    with pytest.raises(SettingError, match=r"dataset.class_names = .*: allowed: two or more names, each once"):
        load(root, tmp_path, class_names=names)


@pytest.mark.parametrize("value", [None, "/not there", "a\0b", __file__])
def test_a_root_that_is_no_folder_is_refused(value, tmp_path):
    with pytest.raises(SettingError, match=r"dataset.root = .*: allowed: a folder of pictures"):
        datasets.load("folder", root=value, cache_dir=tmp_path)


@pytest.mark.parametrize("value", [0, 4097, 32.0, "32", True])
def test_what_is_no_side_is_refused(root, tmp_path, value):
    with pytest.raises(SettingError, match=f"dataset.image_size = {value!r}: allowed: a whole number, 1 to 4096"):
        load(root, tmp_path, image_size=value)
