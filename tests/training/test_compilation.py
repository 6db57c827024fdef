import json
import logging
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.training import compilation

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_a_backend_without_options_needs_none():
    assert compilation.compiler_options("gpu") is None


def test_options_are_those_that_this_version_knows():
    options = compilation.compiler_options(jax.default_backend())
    jax.jit(lambda x: 2 * x, compiler_options=options)(1.0)


def test_an_option_that_is_not_known_is_left_out_and_said(monkeypatch, caplog):
    backend = jax.default_backend()
    monkeypatch.setitem(compilation._OPTIONS, backend, {"xla_no_such_option": "1"})
    with caplog.at_level(logging.INFO):
        assert compilation.compiler_options(backend) is None
    assert "xla_no_such_option" in caplog.text
    assert compilation.compile_training(lambda x: x + 1)(1) == 2


def test_float64_goes_without(monkeypatch):
    monkeypatch.setitem(compilation._OPTIONS, jax.default_backend(), {"xla_no_such_option": "1"})
    monkeypatch.setattr(compilation, "compiler_options", compilation._OPTIONS.get)  # as if this version knew it
    with jax.enable_x64(True):
        assert compilation.compile_training(lambda x: x + 1)(1.0).dtype == jnp.float64
    with pytest.raises(Exception, match="xla_no_such_option"):
        compilation.compile_training(lambda x: x + 1)(1.0)


def test_a_compiled_function_computes_the_same_and_may_donate():
    def step(state, images):
        gradient = jax.grad(lambda kernel: (jax.lax.conv(images, kernel, (1, 1), "SAME") ** 2).sum())(state)
        return state - 1e-3 * gradient

    rng = np.random.default_rng(0)
    state, images = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 3, 3, 3), (2, 3, 8, 8)))
    expected = step(state, images)
    compiled = compilation.compile_training(step, donate_argnums=0)
    chex.assert_trees_all_close(compiled(state, images), expected, rtol=1e-4, atol=1e-5)
    assert state.is_deleted()


def start(folder, **environment):
    """Runs tests/training/compile_and_count.py in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.compile_and_count", str(folder)],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_second_start_compiles_nothing_and_says_nothing(tmp_path):
    first, _ = start(tmp_path)
    assert first["cache_misses"] == first["compile_requests_use_cache"] > 2
    assert pathlib.Path(first["folder"]).parent == tmp_path
    second, said = start(tmp_path)
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] == first["compile_requests_use_cache"]
    assert second["sum"] == first["sum"]
    assert said == ""


@pytest.mark.parametrize(
    ("setting", "value"), [("jax_compilation_cache_dir", "own"), ("jax_enable_compilation_cache", False)]
)
def test_what_the_user_has_said_of_the_cache_stays(tmp_path, setting, value):
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(setting, value)
        said = {name: getattr(jax.config, name) for name in names}
        compilation.keep_compiled(tmp_path)
        assert {name: getattr(jax.config, name) for name in names} == said
    finally:
        for name, was in before.items():
            jax.config.update(name, was)
