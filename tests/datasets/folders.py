"""Folders of small pictures, and what is read of them."""

from PIL import Image

from refine_jax import datasets


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


def colors(split):
    """The colors of the pictures, which tell them apart."""
    return [tuple(image[0, 0].tolist()) for image in split.images]


def reasons(dataset):
    return dict(dataset.changes["files"])
