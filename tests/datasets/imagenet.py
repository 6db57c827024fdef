"""Small ImageNets for tests, in the three forms in which users have it; every picture has a color of its own."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

IDS = ("n01440764", "n02102040", "n03888257")
PER_CLASS = 9


def encode(image: Image.Image, file_format: str = "JPEG") -> bytes:
    """Returns the contents of a file."""
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def color(name: str) -> tuple[int, int, int]:
    """Returns the color of a picture of this name."""
    return tuple(hashlib.md5(name.encode()).digest()[:3])


def picture(name: str, size=(40, 30)) -> bytes:
    """Returns a JPEG of one color."""
    return encode(Image.new("RGB", size, color(name)))


def cmyk(name: str) -> bytes:
    """Returns a CMYK JPEG of the same color; Pillow writes and reads such files inverted, as Adobe does."""
    return encode(Image.new("RGB", (40, 30), color(name)).convert("CMYK"))


def png(name: str) -> bytes:
    """Returns a PNG of the same color."""
    return encode(Image.new("RGB", (40, 30), color(name)), "PNG")


def names(wordnet_id: str, count: int = PER_CLASS) -> list[str]:
    """Returns names of files as ILSVRC2012 has them."""
    return [f"{wordnet_id}_{number}.JPEG" for number in range(1, count + 1)]


def drawn(files: list[str]) -> list[str]:
    """Returns the files in the order that is documented."""
    return sorted(files, key=lambda name: hashlib.sha256(f"0/{name.rpartition('.')[0]}".encode()).hexdigest())


def write_tree(folder: pathlib.Path, ids=IDS, count: int = PER_CLASS, replaced=None) -> pathlib.Path:
    """Writes class folders; `replaced` has the contents of files that are no ordinary pictures."""
    for wordnet_id in ids:
        (folder / wordnet_id).mkdir(parents=True)
        for name in names(wordnet_id, count):
            (folder / wordnet_id / name).write_bytes((replaced or {}).get(name) or picture(name))
    return folder


def write_tar(folder: pathlib.Path, ids=IDS, count: int = PER_CLASS, replaced=None) -> pathlib.Path:
    """Writes a tar of tars as image-net.org gives it out, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ILSVRC2012_img_train.tar"
    with tarfile.open(path, "w") as outer:
        for wordnet_id in ids:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for name in names(wordnet_id, count):
                    add(tar, name, (replaced or {}).get(name) or picture(name))
            add(outer, f"{wordnet_id}.tar", inner.getvalue())
    return path


def add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    """Adds a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    tar.addfile(info, io.BytesIO(contents))


def write_prepared(root: pathlib.Path, ids=IDS, count: int = PER_CLASS) -> pathlib.Path:
    """Prepares a small imagenet2012 with the features of TFDS's own, and returns the folder of its version."""
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=list(ids)),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for wordnet_id in ids:
                for name in names(wordnet_id, count):
                    yield name, {"image": io.BytesIO(picture(name)), "label": wordnet_id, "file_name": name}

    Small(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root / "imagenet2012" / "5.1.0"


def assert_has(split, label: int, files: list[str]) -> None:
    """The images of a label are those of these files, in this order, told by their colors."""
    images = np.asarray(split.images)[split.labels == label]
    wanted = np.array([color(name) for name in files])
    assert len(images) == len(files)
    assert np.abs(images.mean(axis=(1, 2)) - wanted).max() < 4  # JPEG rounds
