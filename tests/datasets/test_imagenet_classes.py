import hashlib
import logging
import pathlib
import re

import pytest

from refine_jax.datasets import imagenet_classes
from refine_jax.errors import DataError, SettingError

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def test_ids_are_those_of_tfds_in_its_order():
    tfds = pytest.importorskip("tensorflow_datasets")
    file = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert [*imagenet_classes.names()] == file.read_text().split()


def test_names_are_told_apart_and_those_of_imagenette_are_right():
    names = imagenet_classes.names()
    assert len(set(names.values())) == 1000
    assert {name: names[name] for name in IMAGENETTE} == IMAGENETTE
    assert (names["n02012849"], names["n03126707"]) == ("crane bird", "crane")


def test_the_published_classes_are_the_first_fifty_by_the_rule():
    by_hash = sorted((hashlib.sha256(f"0/{name}".encode()).hexdigest(), name) for name in imagenet_classes.names())
    assert imagenet_classes.published() == tuple(sorted(name for _, name in by_hash[:50]))


def test_the_published_classes_are_those_that_the_page_lists():
    page = pathlib.Path(__file__).parents[2] / "docs" / "imagenet50.md"
    listed = re.findall(r"(n\d{8}) ([\w \-]+?)\s*(?:\||$)", page.read_text(), flags=re.MULTILINE)
    assert sorted(listed) == [(name, imagenet_classes.names()[name]) for name in imagenet_classes.published()]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None),
        (10, 10),
        ((10,), 10),
        ([10], 10),
        ("n01440764,n02102040", ("n01440764", "n02102040")),
        (("n02102040, n01440764",), ("n02102040", "n01440764")),
        (["n02102040", "n01440764"], ("n02102040", "n01440764")),
    ],
)
def test_classes_are_a_number_or_ids(given, read):
    assert imagenet_classes.read(given) == read


@pytest.mark.parametrize(
    "given", [0, 1, True, 2.5, (), ("n01440764",), ("n01440764",) * 2, ("tench", "church"), (3, 4), "all", {"a": 1}]
)
def test_other_classes_are_refused(given):
    with pytest.raises(SettingError, match=r"dataset.classes = .*allowed: a number, such as 10; WordNet ids"):
        imagenet_classes.read(given)


def test_a_number_takes_the_published_classes_first_and_says_where_there_are_too_few(caplog):
    caplog.set_level(logging.INFO)
    published = imagenet_classes.published()
    everything = tuple(imagenet_classes.names())
    assert imagenet_classes.choose(50, everything, "there") == published
    seven = imagenet_classes.choose(7, everything, "there")
    assert set(seven) < set(published)
    assert seven == tuple(sorted(seven))
    assert set(seven) < set(imagenet_classes.choose(8, everything, "there"))
    assert caplog.text == ""
    assert imagenet_classes.choose(10, tuple(IMAGENETTE), "there") == tuple(IMAGENETTE)
    assert (
        "there has too few of the 50 published classes: 10 of the 10 that are taken are not among them" in caplog.text
    )


def test_ids_keep_the_order_in_which_they_are_given():
    there = ("n01440764", "n02102040", "n03888257")
    assert imagenet_classes.choose(there[::-1], there, "there") == there[::-1]


def test_classes_that_are_missing_are_named():
    there = tuple(IMAGENETTE)
    with pytest.raises(DataError, match=r"there lacks 1 of the 2 .*: n01440765 \(did you mean 'n01440764'\?\)"):
        imagenet_classes.choose(("n01440765", "n02102040"), there, "there")
    with pytest.raises(DataError, match=r"there has 10 classes; dataset\.classes asks for 11"):
        imagenet_classes.choose(11, there, "there")
    with pytest.raises(DataError, match=r"lacks 50 of the 50 .*n04552348 \(warplane\).*--config.dataset.classes=10"):
        imagenet_classes.choose(None, there, "there")
