import json
import os
import pathlib
import subprocess
import sys
import time

import chex
import numpy as np
import pytest

from refine_jax.datasets import cifar10, preparation
from refine_jax.errors import DataError
from tests.datasets import prepared

REPOSITORY = pathlib.Path(__file__).parents[2]
REAL = preparation.data_root(None)
real = pytest.mark.skipif(
    not any((REAL / "cifar10").glob("*/dataset_info.json")), reason=f"CIFAR-10 is not prepared at {REAL}"
)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    """A small CIFAR-10 in several files, not to be changed."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    prepared.write(root, num_shards=3)
    return root


def load(root, cache_dir, per_class=None):
    return cifar10._load(root, cache_dir, per_class or prepared.PER_CLASS)


def assert_is_small_cifar10(data):
    for split, per_class in prepared.PER_CLASS.items():
        images, labels = prepared.examples(split, per_class)
        chex.assert_trees_all_equal(np.asarray(getattr(data, split).images), images)
        chex.assert_trees_all_equal(np.asarray(getattr(data, split).labels), labels.astype(np.int32))


def test_images_come_in_the_order_of_their_ids(shared_root, tmp_path):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(shared_root / "cifar10" / "3.0.2").as_data_source("train")
    as_written = [example["id"] for example in source]
    assert as_written != sorted(as_written)  # else the order would prove nothing
    data = load(shared_root, tmp_path)
    assert_is_small_cifar10(data)
    assert data.class_names == cifar10.CLASS_NAMES


@pytest.mark.parametrize("below", ["", "cifar10", "cifar10/3.0.2"])
def test_the_second_start_decodes_nothing_and_does_without_tfds(shared_root, tmp_path, below):
    load(shared_root, tmp_path)
    program = f"""
import sys
from refine_jax.datasets import cifar10
cifar10._decode = None
data = cifar10._load({str(shared_root / below)!r}, {str(tmp_path)!r}, {prepared.PER_CLASS})
assert len(data.train) == 30 and type(data.train.images).__name__ == "memmap"
print(*(name for name in sys.modules if name.partition(".")[0] in ("tensorflow_datasets", "array_record")))
"""
    assert run(program) == [""]


def run(*programs):
    """Runs Python programs at once, each in a process of its own, and returns what they print."""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for program in programs
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(programs)
    return outputs


def test_two_processes_at_once(shared_root, tmp_path):
    program = f"""
import os, pathlib, time
from refine_jax.datasets import cifar10
decode, here = cifar10._decode, pathlib.Path({str(tmp_path)!r})
def together(*args):
    arrays = decode(*args)
    (here / f"ready-{{os.getpid()}}").touch()
    limit = time.monotonic() + 30
    while len(list(here.glob("ready-*"))) < 2:
        assert time.monotonic() < limit, "alone"
        time.sleep(0.001)
    return arrays
cifar10._decode = together
data = cifar10._load({str(shared_root)!r}, here / "cache", {prepared.PER_CLASS})
print(data.train.images.sum(), data.train.labels.tolist())
"""
    outputs = run(program, program)
    images, labels = prepared.examples("train", prepared.PER_CLASS["train"])
    assert outputs == [f"{images.sum()} {labels.tolist()}"] * 2
    assert [path.name[:8] for path in (tmp_path / "cache").iterdir()] == ["cifar10-"]
    assert_is_small_cifar10(load(shared_root, tmp_path / "cache"))


def test_a_changed_preparation_is_read_anew(tmp_path):
    folder = prepared.write(tmp_path)
    load(tmp_path, tmp_path / "cache")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    prepared.write(tmp_path, {"train": 4, "test": 2})
    assert len(load(tmp_path, tmp_path / "cache", {"train": 4, "test": 2}).train) == 40


def test_without_a_cache_folder_it_goes_on(shared_root, tmp_path, caplog):
    (tmp_path / "cache").write_text("")
    assert_is_small_cifar10(load(shared_root, tmp_path / "cache"))
    assert str(tmp_path / "cache") in caplog.text


def test_a_damaged_cache_is_mended(shared_root, tmp_path, caplog):
    load(shared_root, tmp_path)
    (images,) = tmp_path.glob("*/train_images.npy")
    os.truncate(images, 1000)
    assert_is_small_cifar10(load(shared_root, tmp_path))
    assert "damaged" in caplog.text
    caplog.clear()
    assert_is_small_cifar10(load(shared_root, tmp_path))
    assert caplog.text == ""


def zero_the_middle(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(bytes(5_000))


DAMAGES = {
    "missing": pathlib.Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a hole": zero_the_middle,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(tmp_path, damage):
    folder = prepared.write(tmp_path, num_shards=2)
    shard = folder / "cifar10-train.array_record-00001-of-00002"
    DAMAGES[damage](shard)
    with pytest.raises(DataError, match=rf"{shard}: missing or damaged .*remove {folder} and run again"):
        load(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_damaged_descriptions_are_named(tmp_path):
    folder = prepared.write(tmp_path)
    (folder / "features.json").write_text("{")
    with pytest.raises(DataError, match=rf"{folder}: TFDS cannot open it"):
        load(tmp_path, tmp_path / "cache")
    (folder / "features.json").unlink()
    with pytest.raises(DataError, match=rf"{folder}/features.json: cannot be read .*remove {folder}"):
        load(tmp_path, tmp_path / "cache")


def test_what_is_not_cifar10_is_refused(shared_root, tmp_path):
    folder = shared_root / "cifar10" / "3.0.2"
    with pytest.raises(DataError, match=rf"{folder} has 30 train images; expected: 50,000"):
        cifar10.load(data_dir=shared_root, cache_dir=tmp_path)
    with pytest.raises(DataError, match=rf"{folder} has 0 more images; expected: 10"):
        load(shared_root, tmp_path, {"more": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relabel": 3}, r"has \[0, 0, 0, 30, 0, 0, 0, 0, 0, 0\] train images by class; expected: 3 of each"),
        ({"ids": "{split}"}, "has 1 train ids; expected: 30"),
        ({"with_id": False}, "has no id; version 3.0.2"),
        ({"class_names": cifar10.CLASS_NAMES[::-1]}, "has the classes truck, ship.*expected: airplane"),
    ],
)
def test_examples_that_are_not_cifar10s_are_refused(tmp_path, options, message):
    prepared.write(tmp_path, **options)
    with pytest.raises(DataError, match=message):
        load(tmp_path, tmp_path / "cache")


def test_unnamed_classes_are_taken_in_order(tmp_path):
    (prepared.write(tmp_path) / "label.labels.txt").unlink()
    assert_is_small_cifar10(load(tmp_path, tmp_path / "cache"))


def test_tfrecord_without_tensorflow_says_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: False)
    folder = prepared.write(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=rf"{folder} is prepared as tfrecord, which takes TensorFlow") as error:
        load(tmp_path, tmp_path / "cache")
    assert preparation.preparing_commands(tmp_path / "array_record") in str(error.value)
    assert f"--config.dataset.data_dir={tmp_path / 'array_record'}" in str(error.value)


def test_array_record_beside_tfrecord_is_read_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: False)
    folder = prepared.write(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert_is_small_cifar10(load(tmp_path, tmp_path / "cache"))


def test_tfrecord_through_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    folder = prepared.write(tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    source = tfds.builder_from_directory(folder)
    for split in prepared.PER_CLASS:
        raw = source.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        with tf.io.TFRecordWriter(str(folder / f"cifar10-{split}.tfrecord-00000-of-00001")) as file:
            for record in raw:
                file.write(record)
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    assert_is_small_cifar10(load(tmp_path, tmp_path / "cache"))


def test_what_is_not_prepared_is_prepared_where_that_can_be(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    asked = []

    def builder(name, **options):
        asked.append((name, options))
        return prepared.builder(pathlib.Path(options["data_dir"]))

    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: True)
    monkeypatch.setattr(preparation, "keep_tensorflow_off_gpus", lambda: None)
    monkeypatch.setattr(preparation, "_unreachable", lambda url: None)
    monkeypatch.setattr(tfds, "builder", builder)
    assert_is_small_cifar10(load(tmp_path, tmp_path / "cache"))
    assert asked == [("cifar10", {"data_dir": str(tmp_path), "file_format": "array_record"})]


@real
def test_the_real_one(tmp_path, capsys):
    import tensorflow_datasets as tfds

    started = time.perf_counter()
    data = cifar10.load(cache_dir=tmp_path)
    first = time.perf_counter() - started
    program = f"""
import sys, time
started = time.perf_counter()
from refine_jax import datasets
imported = time.perf_counter()
datasets.load("cifar10", cache_dir={str(tmp_path)!r})
print(f"{{time.perf_counter() - imported:.3f}} s after {{imported - started:.1f}} s of imports")
assert "tensorflow_datasets" not in sys.modules
"""
    (second,) = run(program)
    with capsys.disabled():
        print(f"\nCIFAR-10: first load {first:.1f} s, second {second}")

    chex.assert_shape(data.train.images, (50_000, 32, 32, 3))
    chex.assert_shape(data.test.images, (10_000, 32, 32, 3))
    chex.assert_trees_all_equal(np.bincount(data.train.labels), np.full(10, 5_000))
    chex.assert_trees_all_equal(np.bincount(data.test.labels), np.full(10, 1_000))
    unit = data.train.images[:10_000].astype(np.float32) / 255
    chex.assert_trees_all_close(unit.mean(axis=(0, 1, 2)), np.float32(data.mean), atol=3e-3)
    chex.assert_trees_all_close(unit.std(axis=(1, 2)).mean(axis=0), np.float32(data.std), atol=3e-3)

    builder = tfds.builder_from_directory(preparation.find(REAL))
    for split, part in (("train", data.train), ("test", data.test)):
        for example in builder.as_data_source(f"{split}[:20]"):
            row = int(example["id"].decode().removeprefix(f"{split}_"))
            chex.assert_trees_all_equal(np.asarray(part.images[row]), example["image"])
            assert part.labels[row] == example["label"]
