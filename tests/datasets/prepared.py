"""Small prepared CIFAR-10 folders, made as TFDS makes them, for tests."""

import io
import pathlib

import numpy as np
from PIL import Image

from refine_jax.datasets.cifar10 import CLASS_NAMES

PER_CLASS = {"train": 3, "test": 2}


def examples(split: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [N, 32, 32, 3] and labels [N] in the order of their ids: every image its own."""
    count = per_class * len(CLASS_NAMES)
    rng = np.random.default_rng([per_class, len(split)])
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.permutation(np.arange(count) % len(CLASS_NAMES))


def builder(
    root: pathlib.Path, per_class=None, *, class_names=CLASS_NAMES, with_id=True, ids="{split}_{i:05d}", relabel=None
):
    """Returns a TFDS builder of `examples`; TFDS shuffles them when they are written."""
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=list(class_names)),
            }
            if not with_id:
                del features["id"]
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split, n) for split, n in (per_class or PER_CLASS).items()}

        def _generate_examples(self, split, count):
            for i, (image, label) in enumerate(zip(*examples(split, count), strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                png.seek(0)
                example = {"image": png, "label": int(label if relabel is None else relabel)}
                if with_id:
                    example["id"] = ids.format(split=split, i=i)
                yield i, example

    return Small(data_dir=str(root), file_format="array_record")


def write(root: pathlib.Path, per_class=None, *, num_shards=1, **options) -> pathlib.Path:
    """Prepares a small CIFAR-10 and returns the folder of its version."""
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(num_shards=num_shards)
    builder(root, per_class, **options).download_and_prepare(download_config=config)
    return root / "cifar10" / "3.0.2"
