import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.training import compilation


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
