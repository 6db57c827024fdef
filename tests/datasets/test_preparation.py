import ast
import json
import pathlib
import shlex
import socket
import sys
import time

import pytest

from refine_jax.datasets import preparation
from refine_jax.errors import DataError, SettingError


def version(folder, name="cifar10"):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": name}))
    return folder


def test_the_root_is_tfdss_own_unless_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert preparation.data_root(None) == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/shared")
    assert preparation.data_root(None) == tmp_path / "shared"
    assert preparation.data_root("") == tmp_path / "shared"
    assert preparation.data_root(tmp_path) == tmp_path


def test_a_root_that_cannot_be_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"dataset.data_dir = '.*/missing'.*a directory that exists"):
        preparation.data_root(tmp_path / "missing")
    with pytest.raises(SettingError, match=r"dataset.data_dir = '.*/file'.*this is a file"):
        preparation.data_root(tmp_path / "file")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(SettingError, match=r"\$TFDS_DATA_DIR = '.*/file'.*this is a file"):
        preparation.data_root(None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SettingError, match=r"dataset.data_dir = .*this user may read"):
        preparation.data_root(tmp_path)


def test_the_newest_prepared_version_is_found(tmp_path):
    assert preparation.find(tmp_path) is None
    assert preparation.find(tmp_path / "missing") is None
    version(tmp_path / "cifar10" / "3.0.2")
    newest = version(tmp_path / "cifar10" / "3.0.10")
    version(tmp_path / "cifar10" / "incomplete.ABC_3.0.11")  # TFDS at work, or killed
    (tmp_path / "cifar10" / "4.0.0").mkdir()  # a copy that did not come far
    assert preparation.find(tmp_path) == newest


def test_the_folder_of_the_data_set_or_version_is_understood(tmp_path, caplog):
    caplog.set_level("INFO")
    found = version(tmp_path / "cifar10" / "3.0.2")
    assert preparation.find(tmp_path) == found
    assert caplog.text == ""
    for folder in (found.parent, found):
        caplog.clear()
        assert preparation.find(folder) == found
        assert str(folder) in caplog.text


def test_the_folder_of_another_data_set_is_refused(tmp_path):
    found = version(tmp_path / "mnist" / "3.0.1", "mnist")
    for folder in (found.parent, found):
        with pytest.raises(SettingError, match="the folder above cifar10/; this one holds 'mnist'"):
            preparation.find(folder)


@pytest.mark.parametrize("given", ["", "cifar10", "cifar10/3.0.2"])
def test_a_copy_that_was_interrupted(tmp_path, given):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=rf"{folder}/dataset_info.json: missing.*remove {folder}"):
        preparation.find(tmp_path / given)
    for content in ('{"name": "cif', "", "[]"):
        (folder / "dataset_info.json").write_text(content)
        with pytest.raises(DataError, match=rf"{folder}/dataset_info.json: damaged"):
            preparation.find(tmp_path / given)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(DataError, match=rf"{tmp_path}/cifar10: cannot be read: Permission denied"):
        preparation.find(tmp_path)


@pytest.mark.parametrize("name", ["plain", "with space", "with 'quotes\" and $HOME", "back\\slash", "größer"])
def test_the_commands_survive_the_shell(name, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: False)
    root = pathlib.Path("/data", name)
    install, prepare = preparation.preparing_commands(root).splitlines()
    assert shlex.split(install) == [sys.executable, "-m", "pip", "install", "tensorflow"]
    python, flag, code = shlex.split(prepare)
    assert (python, flag) == (sys.executable, "-c")
    (call,) = (x for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Call) and x.keywords)
    assert ast.unparse(call.func) == "tfds.builder"
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given == {"data_dir": str(root), "file_format": "array_record"}

    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: True)
    assert preparation.preparing_commands(root).splitlines() == [prepare]


def assert_says_what_mends_it(error, root):
    text = str(error.value)
    assert f"{root}/cifar10/<version>/dataset_info.json" in text
    assert preparation.preparing_commands(root) in text
    assert f"{root}/downloads/manual/cifar-10-binary.tar.gz" in text
    assert "--config.dataset.data_dir=" in text


def test_without_tensorflow_the_commands_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: False)
    with pytest.raises(DataError, match="TensorFlow, which is not installed") as error:
        preparation.prepare(tmp_path)
    assert_says_what_mends_it(error, tmp_path)
    assert "pip install tensorflow" in str(error.value)


def test_without_a_network_the_commands_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: True)
    monkeypatch.setattr(preparation, "_ARCHIVE_URL", f"http://127.0.0.1:{free_port()}/cifar-10-binary.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError, match=r"cannot be reached to download it.*refused") as error:
        preparation.prepare(tmp_path)
    assert_says_what_mends_it(error, tmp_path)


def test_a_network_that_swallows_everything_takes_no_longer_than_said(monkeypatch):
    monkeypatch.setattr(preparation, "_NETWORK_TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls, never answers
        start = time.monotonic()
        assert preparation._unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert time.monotonic() - start < 3


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("archive", ["manual/cifar-10-binary.tar.gz", "cs.toronto.edu_kriz_cifar-10-binaryXK0.tar.gz"])
def test_an_archive_that_is_there_needs_no_network(tmp_path, monkeypatch, archive):
    import tensorflow_datasets as tfds

    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / archive).write_bytes(b"")
    monkeypatch.setattr(preparation, "tensorflow_installed", lambda: True)
    monkeypatch.setattr(preparation, "keep_tensorflow_off_gpus", lambda: None)
    monkeypatch.setattr(preparation, "_unreachable", lambda url: pytest.fail("asked the network"))
    monkeypatch.setattr(tfds, "builder", lambda *args, **options: Failing())
    with pytest.raises(DataError, match="preparing it failed: the archive is empty") as error:
        preparation.prepare(tmp_path)
    assert_says_what_mends_it(error, tmp_path)


class Failing:
    def download_and_prepare(self):
        raise OSError("the archive is empty")
