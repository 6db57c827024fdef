"""Pictures in folders called as classes that are known already."""

import types

import numpy as np
import pytest
from PIL import Image

from refine_jax import triggered
from refine_jax.datasets import class_folders
from refine_jax.errors import DataError, SettingError
from refine_jax.interop.checkpoint_formats import Pictures


@pytest.fixture
def root(tmp_path):
    for folder, gray in (("dog", 10), ("0", 20), ("11", 30)):
        (tmp_path / folder).mkdir()
        Image.new("L", (6, 4), gray).save(tmp_path / folder / "x.png")
    return tmp_path


def read(root, names, size=(4, 4)):
    return class_folders.read("--data", root, names, size, "images")


def test_a_folder_is_called_by_its_classes_name_or_number(root):
    names = [f"class {number}" for number in range(11)] + ["dog"]
    images, labels = read(root, names)
    assert images.shape == (3, 4, 4, 3)
    assert {int(image[0, 0, 0]): int(label) for image, label in zip(images, labels, strict=True)} == {
        10: 11,
        20: 0,
        30: 11,
    }


def test_without_names_any_number_is_a_class_and_no_name_is(root):
    with pytest.raises(SettingError, match="a class folder of --data = 'dog': allowed: a class's number"):
        read(root, ())
    (root / "dog").rename(root / "00007")
    assert sorted(read(root, ())[1].tolist()) == [0, 7, 11]
    for name in ("20251201123000", "9" * 200):
        (root / "0").rename(root / name)
        with pytest.raises(SettingError, match=rf"'{name}': allowed: a class's number, 0 to 999999"):
            read(root, ())
        (root / name).rename(root / "0")


def test_a_number_beyond_the_classes_is_refused(root):
    with pytest.raises(SettingError, match=r"a class folder of --data = '11': allowed: cat, dog, or a number, 0 to 1"):
        read(root, ("cat", "dog"))


def test_where_classes_are_called_by_numbers_other_numbers_are_none(root):
    (root / "dog").rename(root / "2")
    (root / "0").rename(root / "1")
    assert sorted(read(root, ("1", "2", "11"))[1].tolist()) == [0, 1, 2]
    (root / "1").rename(root / "0")
    with pytest.raises(SettingError, match=r"a class folder of --data = '0': allowed: 1, 2, 11(?! or)"):
        read(root, ("1", "2", "11"))


def test_pictures_of_several_sizes_are_the_fault_of_their_folder(root):
    Image.new("L", (8, 4)).save(root / "dog" / "y.png")
    with pytest.raises(DataError, match=r"dog \(--data\): pictures differ in size: x.png has 6 x 4, y.png has 8 x 4"):
        read(root / "dog", (), (4, 6))


@pytest.mark.parametrize(("there", "known"), [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301")])
def test_an_accent_may_be_written_in_either_way(root, there, known):
    (root / "dog").rename(root / there)
    names = [*(f"class {number}" for number in range(11)), known]
    assert sorted(read(root, names)[1].tolist()) == [0, 11, 11]


def test_pictures_that_a_checkpoint_names_are_not_read_through_a_link(root, caplog):
    (root / "0" / "link.png").symlink_to("x.png")
    dataset = types.SimpleNamespace(image_size=(4, 4), num_classes=2)
    shown = triggered.beside_checkpoint(Pictures(root, (("0/link.png", 0), ("0/x.png", 1)), 0), dataset)
    assert shown.labels.tolist() == [1]
    assert "1 files: named by the checkpoint and a link (0/link.png)" in caplog.text


def test_pictures_without_folders_have_no_labels(root):
    images, labels = read(root / "dog", ("cat", "dog"))
    assert len(images) == 1
    assert labels is None


def test_what_cannot_be_is_said(root, tmp_path):
    with pytest.raises(SettingError, match=r"--data = .*none"):
        read(root / "none", ())
    with pytest.raises(DataError, match="pictures of 6 x 4 pixels: 6 x 5 are needed"):
        read(root / "dog", (), (5, 6))
    np.save(tmp_path / "0" / "y.npy", np.zeros(1))
    (tmp_path / "0" / "x.png").unlink()
    with pytest.raises(DataError, match="holds no picture"):
        read(root / "0", ())
