import json
import pathlib
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from refine_jax import environment

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_everything_that_a_figure_depends_on_is_told():
    described = environment.describe()
    assert described["jax"] == jax.__version__
    assert described["numpy"] == np.__version__
    assert described["platform"] == jax.default_backend()
    assert described["devices"] == jax.device_count()
    assert re.fullmatch(r"3\.\d+\.\d+\S*", described["python"])
    assert described["device"]
    assert json.loads(json.dumps(described)) == described


def test_a_package_that_is_not_there_has_no_version():
    assert environment._version("no-such-package-at-all") is None


def test_the_processor_is_named_where_the_system_tells_it(monkeypatch):
    monkeypatch.setattr(
        pathlib.Path, "read_text", lambda _: "model name\t: Some CPU\nflags: x\nmodel name : Some CPU\n"
    )
    assert environment._processor() == "Some CPU (2 cores)"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda _: "")
    assert environment._processor()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout whose package is this module."""
    package = tmp_path / "refine_jax"
    package.mkdir()
    (package / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    return tmp_path


@needs_git
def test_the_commit_tells_whether_files_differ_from_it(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "one")
    commit = git(checkout, "rev-parse", "HEAD")
    assert environment._commit() == commit
    (checkout / "refine_jax" / "environment.py").write_text("changed")
    assert environment._commit() == f"{commit}+changes"


@needs_git
def test_outside_a_checkout_there_is_no_commit(checkout):
    assert environment._commit() is None


@needs_git
def test_installed_in_somebody_elses_checkout_there_is_no_commit(checkout):
    (checkout / "theirs").write_text("")
    git(checkout, "init", "-q")
    git(checkout, "add", "theirs")
    git(checkout, "commit", "-qm", "theirs")
    assert environment._commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment._commit() is None
