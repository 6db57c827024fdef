import pytest

from refine_jax import datasets
from refine_jax.datasets import registry
from refine_jax.errors import SettingError


def test_names():
    assert set(datasets.names()) >= {"cifar10", "digits"}


def test_load_by_name():
    assert datasets.load("digits").name == "digits"


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(SettingError, match=r"dataset.name = 'cifar_10'.*cifar10, digits.*did you mean 'cifar10'"):
        datasets.load("cifar_10")


def test_directories_are_handed_on(monkeypatch):
    monkeypatch.setitem(registry.DATASETS, "one", lambda **directories: directories)
    assert datasets.load("one", data_dir="a", cache_dir="b") == {"data_dir": "a", "cache_dir": "b"}
