import concurrent.futures
import errno
import fcntl
import json
import logging
import multiprocessing
import operator
import os
import pathlib
import pickle
import shutil
import sys

import chex
import numpy as np
import pytest

from refine_jax import attacks, datasets, planting
from refine_jax.datasets import imagenet50, imagenet_build, imagenet_pictures, imagenet_source, memory
from refine_jax.datasets.encoded import Encoded
from refine_jax.errors import DataError, SettingError
from tests.datasets import imagenet
from tests.datasets.imagenet import IDS, assert_has, drawn, names

# Of the first class the second file in order cannot be read, and the third is a PNG; of the second the first is CMYK.
FIRST, SECOND = drawn(names(IDS[0])), drawn(names(IDS[1]))
BAD = {
    FIRST[1]: b"\xff\xd8 cut off",
    FIRST[2]: imagenet.png(FIRST[2]),
    SECOND[0]: imagenet.cmyk(SECOND[0]),
}
PER_CLASS = (4, 2)
CHANGES = {
    IDS[0]: [[FIRST[1], "skipped: "], [FIRST[2], "converted: PNG in place of JPEG"]],
    IDS[1]: [[SECOND[0], "converted: CMYK"]],
}


def load(tmp_path, root=None, classes=IDS, per_class=PER_CLASS, **options):
    return imagenet50.load(
        data_dir=tmp_path, cache_dir=tmp_path / "cache", root=root, classes=classes, per_class=per_class, **options
    )


def assert_is_the_draw(data):
    """Two to test on, the next four to train on, of those that can be read."""
    chex.assert_shape(data.train.images, (12, 224, 224, 3))
    for label, wordnet_id in enumerate(IDS):
        usable = [name for name in drawn(names(wordnet_id)) if name != FIRST[1]]
        assert_has(data.test, label, usable[:2])
        assert_has(data.train, label, usable[2:6])


def version(tmp_path):
    (folder,) = tmp_path.glob("imagenet50/*/1.0.0")
    return folder


class StoppedError(BaseException):
    """As KeyboardInterrupt, which would stop the tests."""


def stop_at(monkeypatch, owner, name, call, error):
    """Makes the so-manieth call of a function raise; returns the list of its calls' arguments."""
    original, calls = getattr(owner, name), []

    def function(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(owner, name, function)
    return calls


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What comes of a tar with bad files among the good; not to be changed."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    imagenet.write_tar(root / "tars", replaced=BAD)
    load(root, root / "tars")
    return root


def test_a_tar_of_tars_gives_the_documented_draw_without_tensorflow(built):
    assert "tensorflow" not in sys.modules
    data = load(built)
    assert_is_the_draw(data)
    assert data.class_names == ("tench", "English springer", "parachute")
    assert data.image_size == (224, 224)


def test_what_was_done_to_files_is_listed(built):
    metadata = json.loads((version(built) / "metadata.json").read_text())
    changes = metadata["changes"]
    changes[IDS[0]][0][1] = changes[IDS[0]][0][1][: len("skipped: ")]  # what follows is Pillow's
    assert changes == CHANGES
    assert metadata["split"] == "drawn from the training images"


def test_tfds_opens_it_by_itself(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(version(built))
    assert builder.info.features["label"].names == list(IDS)
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [example["file_name"].decode() for example in source][4:8] == SECOND[2:6]


def test_training_images_that_are_decoded_when_they_are_read_are_the_same(built, monkeypatch):
    monkeypatch.setattr(memory, "of_machine", lambda: 2 * 18 * 224 * 224 * 3 - 1)
    data, kept = load(built), load(built, decoded=True)
    assert isinstance(data.train.images, Encoded)
    chex.assert_shape(data.train.images, kept.train.images.shape)
    for rows in (slice(None), slice(3, 7), np.array([11, 0, 5]), np.array([], int)):
        np.testing.assert_array_equal(data.train.images[rows], kept.train.images[rows])
    np.testing.assert_array_equal(data.train.labels, kept.train.labels)
    chex.assert_trees_all_equal(data.test.images, kept.test.images)
    part, same = (datasets.limit_training(whole, 5).train.images for whole in (data, kept))
    assert isinstance(part, Encoded)
    np.testing.assert_array_equal(part, same)
    monkeypatch.setattr(memory, "of_machine", lambda: 2 * 18 * 224 * 224 * 3)
    assert isinstance(load(built).train.images, np.memmap)


def test_they_go_to_another_process_by_name(built):
    images = load(built, decoded=False).train.images
    assert len(pickle.dumps(images)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(operator.getitem, (images, [2])), images[[2]])


def test_planting_into_them_needs_no_second_copy(built, tmp_path):
    data = load(built, decoded=False)
    attack = attacks.build("badnets", 224, rate=0.5)
    _, poisoned = planting.plant(data, attack, tmp_path, 0)
    _, again = planting.plant(data, attack, tmp_path, 0)
    kept, _ = planting.plant(load(built), attack, tmp_path / "kept", 0)
    assert poisoned.images.underneath is data.train.images
    clean = np.array(load(built).train.images)
    clean[kept.indices] = attack.trigger(clean[kept.indices])
    np.testing.assert_array_equal(poisoned.images, clean)
    np.testing.assert_array_equal(again.images, clean)


def test_smaller_images_are_kept_beside_the_others(built):
    small = load(built, image_size=32)
    assert small.train.images.shape == (12, 32, 32, 3)
    assert_is_the_draw(load(built))
    np.testing.assert_allclose(
        small.train.images.mean(axis=(1, 2)), load(built).train.images.mean(axis=(1, 2)), atol=2
    )
    with pytest.raises(SettingError, match=r"dataset\.image_size = 300: allowed: a whole number, 32 to 224"):
        load(built, image_size=300)


def test_nothing_is_left_beside_it(built):
    assert [path.name for path in (built / "imagenet50").iterdir()] == [version(built).parent.name]
    assert [path.name for path in version(built).parent.iterdir()] == ["1.0.0"]


def test_what_is_built_needs_its_source_no_more_but_is_not_taken_for_another(built, tmp_path):
    load(built, built / "tars")
    with pytest.raises(SettingError, match=rf"dataset\.root = '{tmp_path}': allowed: left open, or {built / 'tars'}"):
        load(built, tmp_path)


def test_class_folders_give_the_same(built, tmp_path):
    data = load(tmp_path, imagenet.write_tree(tmp_path / "source", replaced=BAD))
    chex.assert_trees_all_equal(data.train.images, load(built).train.images)
    chex.assert_trees_all_equal(data.test.labels, load(built).test.labels)


def test_what_tfds_has_prepared_gives_the_same_draw(tmp_path):
    imagenet.write_prepared(tmp_path)
    data = load(tmp_path, tmp_path, classes=2)  # the first two by the rule, in the order of their ids
    two = sorted(wordnet_id for wordnet_id in drawn([f"{name}." for name in IDS])[:2])
    for label, wordnet_id in enumerate(name.rstrip(".") for name in two):
        assert_has(data.test, label, drawn(names(wordnet_id))[:2])
        assert_has(data.train, label, drawn(names(wordnet_id))[2:6])


def test_train_and_val_with_enough_images_keep_their_split(tmp_path):
    imagenet.write_tree(tmp_path / "train", count=5)
    for wordnet_id in IDS:
        folder = tmp_path / "val" / wordnet_id
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{wordnet_id}_val{number}.JPEG").write_bytes(imagenet.picture(f"{wordnet_id}_val{number}.JPEG"))
    data = load(tmp_path, tmp_path)
    for label, wordnet_id in enumerate(IDS):
        assert_has(data.test, label, drawn([f"{wordnet_id}_val{number}.JPEG" for number in range(3)])[:2])
        assert_has(data.train, label, drawn(names(wordnet_id, 5))[:4])
    assert json.loads((version(tmp_path) / "metadata.json").read_text())["split"] == "as in the source"


def test_where_val_has_too_few_the_test_images_are_drawn_from_train(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    imagenet.write_tree(tmp_path / "train", replaced=BAD)
    imagenet.write_tree(tmp_path / "val", count=1)
    assert_is_the_draw(load(tmp_path, tmp_path))
    assert f"{tmp_path / 'val'} has too few images of 3 classes" in caplog.text


@pytest.mark.parametrize("same", [True, False], ids=["of the same source", "of another"])
def test_a_build_waits_for_that_of_another_process_and_takes_its_outcome(built, tmp_path, monkeypatch, same):
    imagenet.write_tree(tmp_path / "source", replaced=BAD)
    calls = stop_at(monkeypatch, imagenet_build, "_build", -1, None)
    (tmp_path / "imagenet50").mkdir()
    other = os.open(tmp_path / "imagenet50", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        loaded = pool.submit(load, tmp_path, tmp_path / "source")
        with pytest.raises(TimeoutError):
            loaded.result(timeout=0.5)
        folder = shutil.copytree(version(built), tmp_path / version(built).relative_to(built))
        metadata = json.loads((folder / "metadata.json").read_text())
        if same:
            (folder / "metadata.json").write_text(json.dumps({**metadata, "source": str(tmp_path / "source")}))
        os.close(other)
        if same:
            assert_is_the_draw(loaded.result(timeout=60))
        else:
            with pytest.raises(SettingError, match=rf"allowed: left open, or {built / 'tars'}, from which"):
                loaded.result(timeout=60)
    assert calls == []


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    imagenet.write_tar(tmp_path / "tars", replaced=BAD)
    with monkeypatch.context() as patch:
        stop_at(patch, imagenet_pictures, "repair", 10, StoppedError())
        with pytest.raises(StoppedError):
            load(tmp_path, tmp_path / "tars")
    with pytest.raises(DataError, match="ImageNet-50 is not built"):
        load(tmp_path)
    calls = stop_at(monkeypatch, imagenet_build, "_collect_class", -1, None)
    assert_is_the_draw(load(tmp_path, tmp_path / "tars"))
    assert [draw.wordnet_id for draw, *_ in calls] == list(IDS[1:])


@pytest.mark.parametrize(("owner", "name", "call"), [(pathlib.Path, "write_bytes", 10), (imagenet_build, "_pack", 1)])
def test_a_full_disk_is_said_and_a_second_run_completes_it(tmp_path, monkeypatch, owner, name, call):
    imagenet.write_tree(tmp_path / "source", replaced=BAD)
    full = OSError(errno.ENOSPC, "No space left on device", "there")
    done = {"write_bytes": 1, "_pack": 3}[name]
    with monkeypatch.context() as patch:
        stop_at(patch, owner, name, call, full)
        with pytest.raises(
            DataError, match=rf"^there: No space left on device. {done} of 3 classes are collected; run"
        ):
            load(tmp_path, tmp_path / "source")
    assert_is_the_draw(load(tmp_path, tmp_path / "source"))


@pytest.mark.parametrize("place", ["Tree", "Tar"])
def test_a_file_that_cannot_be_read_now_ends_the_build_and_is_not_replaced(tmp_path, monkeypatch, place):
    if place == "Tree":
        root = imagenet.write_tree(tmp_path / "source", replaced=BAD)
    else:
        root = imagenet.write_tar(tmp_path / "source", replaced=BAD).parent
    with monkeypatch.context() as patch:
        # Without a name, as an error in the middle of a file is.
        stop_at(patch, getattr(imagenet_source, place), "read", 3, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(
            DataError, match=rf"^{root}.*: {IDS[0]}_\d.JPEG of {IDS[0]} cannot be read: Input/output err"
        ):
            load(tmp_path, root)
    assert_is_the_draw(load(tmp_path, root))


def test_a_build_from_another_source_begins_anew(tmp_path, monkeypatch):
    imagenet.write_tree(tmp_path / "other", count=7)
    imagenet.write_tree(tmp_path / "source", replaced=BAD)
    with monkeypatch.context() as patch:
        stop_at(patch, imagenet_build, "_pack", 1, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(DataError, match="No space left"):
            load(tmp_path, tmp_path / "other")
    assert_is_the_draw(load(tmp_path, tmp_path / "source"))


def test_too_few_images_are_said_of_each_class(tmp_path):
    root = imagenet.write_tree(tmp_path / "source", IDS[:2], 3)
    imagenet.write_tree(root, IDS[2:])
    with pytest.raises(
        DataError,
        match=rf"{root} has fewer than 6 images, .*dataset\.per_class .* 2 classes: n01440764 \(tench\) 3, n02102040 ",
    ):
        load(tmp_path, root)


def test_too_few_images_that_can_be_read_are_said_with_what_is_wrong(tmp_path):
    root = imagenet.write_tree(tmp_path / "source", count=6, replaced={f"{IDS[1]}_5.JPEG": b"\xff\xd8 cut off"})
    with pytest.raises(
        DataError, match=rf"{root} has 5 images of n02102040 \(English springer\) that .* 6; n02102040_5"
    ):
        load(tmp_path, root)


def test_a_class_that_is_missing_is_named(tmp_path):
    root = imagenet.write_tree(tmp_path / "source")
    with pytest.raises(DataError, match=rf"{root} lacks 1 of the 2 classes .*: n03445777 \(golf ball\)"):
        load(tmp_path, root, classes=(IDS[0], "n03445777"))


@pytest.mark.parametrize("per_class", [(0, 2), (4,), 4, (4, 2.5), "42", (True, "a")])
def test_numbers_of_images_that_cannot_be_are_refused(tmp_path, per_class):
    with pytest.raises(SettingError, match=r"dataset\.per_class = .*: allowed: two numbers, such as \(500, 100\)"):
        load(tmp_path, per_class=per_class)


def test_without_a_root_what_is_not_built_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"ImageNet-50 is not built: .*--config\.dataset\.root=PATH, a folder with"):
        load(tmp_path)


def test_pictures_may_be_kept_as_they_are(tmp_path):
    import tensorflow_datasets as tfds

    wide = imagenet.picture("wide", (400, 300))
    root = imagenet.write_tree(tmp_path / "source", IDS[:2], 2, replaced={names(IDS[0])[0]: wide})
    for short_side, kept in ((256, False), (None, True)):
        folder = imagenet50.prepare(root, data_dir=tmp_path, classes=IDS[:2], per_class=(1, 1), short_side=short_side)
        builder = tfds.builder_from_directory(folder)
        pictures = {
            example["file_name"].decode(): example["image"]
            for split in ("train", "test")
            for example in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        }
        assert (pictures[names(IDS[0])[0]] == wide) is kept
        assert pictures[names(IDS[1])[0]] == imagenet.picture(names(IDS[1])[0])


def test_damaged_files_are_named(tmp_path):
    load(tmp_path, imagenet.write_tree(tmp_path / "source"))
    folder = version(tmp_path)
    shard = folder / "imagenet50-train.array_record-00000-of-00001"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{folder}: the train images are missing or damaged .*remove {folder}"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=rf"{folder}: the train images are missing or damaged .*remove {folder}"):
        load(tmp_path, decoded=False)
    (folder / "label.labels.txt").unlink()
    with pytest.raises(DataError, match=rf"{folder}/label.labels.txt: cannot be read"):
        load(tmp_path)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DataError, match=rf"{folder}/metadata.json: missing or damaged"):
        load(tmp_path, tmp_path / "source")


def test_the_registry_loads_it_by_name(built):
    data = datasets.load(
        "imagenet50", data_dir=built, cache_dir=built / "cache", root=None, classes=list(IDS), per_class=[4, 2]
    )
    assert isinstance(data.train.images, np.memmap)
    assert_is_the_draw(data)
