"""ImageNet-50 as TFDS sees it. Importing this file imports TFDS; `imagenet_build` does so where something is built."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from refine_jax.datasets.imagenet_build import NAME
from refine_jax.datasets.imagenet_build import VERSION as BUILT_VERSION


class Imagenet50(tfds.core.GeneratorBasedBuilder):
    """Writes pictures that were collected before.

    Args:
        pictures: Of each split the classes in the order of their labels, each with its pictures: name of the file in
            the source, and the file that holds the RGB JPEG.
        ids: WordNet ids in the order of the labels.
        facts: What metadata.json is to hold.
        **options: Those of every TFDS builder.
    """

    name = NAME
    VERSION = tfds.core.Version(BUILT_VERSION)

    def __init__(
        self,
        *,
        pictures: Mapping[str, Sequence[Sequence[tuple[str, pathlib.Path]]]],
        ids: Sequence[str],
        facts: Mapping[str, Any],
        **options: Any,
    ):
        self._pictures, self._ids, self._facts = pictures, ids, facts
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        # A plain DatasetInfo, and pictures given as files: so TFDS does without TensorFlow.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Classes and images drawn from ILSVRC2012 by a fixed rule.",
            homepage="https://image-net.org/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(self._ids)),
                    "file_name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._facts),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(classes) for split, classes in self._pictures.items()}

    def _generate_examples(
        self, classes: Sequence[Sequence[tuple[str, pathlib.Path]]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        numbers = itertools.count()
        for label, pictures in enumerate(classes):
            for name, file in pictures:
                yield next(numbers), {"image": file, "label": label, "file_name": name}
