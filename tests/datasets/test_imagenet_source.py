import json
import os

import pytest

from refine_jax.datasets import preparation
from refine_jax.datasets.imagenet_source import Prepared, Tar, Tree, open_source
from refine_jax.errors import DataError, SettingError
from tests.datasets import imagenet
from tests.datasets.imagenet import IDS, names, picture


def assert_holds_everything(source):
    assert source.class_ids() == IDS
    for wordnet_id in IDS:
        assert sorted(source.files(wordnet_id)) == sorted(names(wordnet_id))
        for name in names(wordnet_id)[:2]:
            assert source.read(wordnet_id, name) == picture(name)
    assert source.files("n00000000") == []


def test_class_folders(tmp_path):
    imagenet.write_tree(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / IDS[0] / "._n01440764_1.JPEG").write_bytes(b"left by another system")
    (tmp_path / IDS[0] / "list.txt").write_text("")
    source = open_source(tmp_path)
    assert isinstance(source.train, Tree)
    assert source.test is None
    assert_holds_everything(source.train)


def test_train_and_val(tmp_path):
    imagenet.write_tree(tmp_path / "train")
    assert open_source(tmp_path).test is None
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture("one"))
    assert open_source(tmp_path).test is None  # without class folders there are no labels
    imagenet.write_tree(tmp_path / "val", count=2)
    source = open_source(tmp_path)
    assert_holds_everything(source.train)
    assert sorted(source.test.files(IDS[1])) == names(IDS[1], 2)


@pytest.mark.parametrize("below", ["", "ILSVRC2012_img_train.tar"])
def test_a_tar_of_tars(tmp_path, below):
    imagenet.write_tar(tmp_path)
    source = open_source(tmp_path / below)
    assert isinstance(source.train, Tar)
    assert_holds_everything(source.train)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.85])
def test_a_tar_that_was_not_copied_as_a_whole_is_named(tmp_path, share):
    path = imagenet.write_tar(tmp_path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(DataError, match=rf"{path}: damaged, or not copied as a whole"):
        open_source(tmp_path)


@pytest.fixture(scope="module")
def prepared_root(tmp_path_factory):
    """A small imagenet2012, not to be changed."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    imagenet.write_prepared(root)
    return root


@pytest.mark.parametrize("below", ["", "imagenet2012", "imagenet2012/5.1.0"])
def test_what_tfds_has_prepared(prepared_root, tmp_path, below):
    source = open_source(prepared_root / below).train
    assert isinstance(source, Prepared)
    assert source.class_ids() == IDS
    tree = source.unpack(IDS[1:], tmp_path / "unpacked")
    assert tree.class_ids() == IDS[1:]
    for wordnet_id in IDS[1:]:
        assert sorted(tree.files(wordnet_id)) == sorted(names(wordnet_id))
        assert tree.read(wordnet_id, names(wordnet_id)[0]) == picture(names(wordnet_id)[0])


def test_tfrecord_without_tensorflow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: False)
    info = {"name": "imagenet2012", "fileFormat": "tfrecord"}
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"{folder} is prepared as tfrecord.*pip install.*ILSVRC2012_img_train.tar"):
        open_source(tmp_path)


def test_a_prepared_one_that_is_damaged_is_named(tmp_path):
    folder = tmp_path / "5.1.0"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps({"name": "imagenet2012", "fileFormat": "array_record"}))
    with pytest.raises(DataError, match=rf"{folder}: TFDS cannot open it"):
        open_source(tmp_path)


def test_a_wrong_root_is_answered_with_what_is_taken_and_what_is_there(tmp_path):
    taken = "a folder with ILSVRC2012_img_train.tar"
    with pytest.raises(SettingError, match=rf"dataset\.root = .*{taken}.*; this is not there"):
        open_source(tmp_path / "absent")
    with pytest.raises(SettingError, match=rf"{taken}.*; this is an empty folder"):
        open_source(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    with pytest.raises(SettingError, match=rf"{taken}.*; this one has cats, dogs"):
        open_source(tmp_path)
    (tmp_path / "file").write_text("no tar")
    with pytest.raises(SettingError, match=rf"{taken}.*; this is another file"):
        open_source(tmp_path / "file")
    with pytest.raises(SettingError, match=rf"{taken}.*; this is another file"):
        open_source(imagenet.write_tar(tmp_path / "val", ids=()))
