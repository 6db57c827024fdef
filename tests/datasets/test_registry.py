import pytest

from refine_jax import datasets
from refine_jax.datasets import registry
from refine_jax.errors import SettingError


def test_names():
    assert set(datasets.names()) >= {"cifar10", "digits", "imagenet50"}


def test_load_by_name():
    assert datasets.load("digits").name == "digits"


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(SettingError, match=r"dataset.name = 'cifar_10'.*cifar10, digits.*did you mean 'cifar10'"):
        datasets.load("cifar_10")


def test_directories_are_handed_on(monkeypatch):
    monkeypatch.setitem(registry.DATASETS, "one", lambda **directories: directories)
    assert datasets.load("one", data_dir="a", cache_dir="b") == {"data_dir": "a", "cache_dir": "b"}


def test_options_are_those_that_a_data_set_takes():
    assert datasets.options("imagenet50") == ("root", "classes", "per_class", "image_size", "decoded")
    assert datasets.options("cifar10") == ()


def test_options_are_handed_on_and_open_ones_are_not(monkeypatch):
    monkeypatch.setitem(registry.DATASETS, "one", lambda data_dir, cache_dir, *, root=1, classes=2: (root, classes))
    assert datasets.load("one", root="a") == ("a", 2)
    assert datasets.load("one", root=None, classes=None) == (1, 2)


def test_an_option_of_another_data_set_is_refused():
    assert datasets.load("digits", classes=None).num_classes == 10
    with pytest.raises(SettingError, match=r"dataset\.classes = 5: allowed: only with imagenet50; .* is 'digits'"):
        datasets.load("digits", classes=5)
    with pytest.raises(SettingError, match=r"dataset\.clases = 5: allowed: nothing: there is no option 'clases'"):
        datasets.load("imagenet50", clases=5)
