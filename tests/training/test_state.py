import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refine_jax.training.state import TrainState, count_parameters, create_train_state


class Network(nn.Module):
    normalized: bool = True

    @nn.compact
    def __call__(self, images, *, train=False):
        hidden = nn.Conv(2, (3, 3), padding="VALID")(images)
        if self.normalized:
            hidden = nn.BatchNorm(use_running_average=not train)(hidden)
        return nn.Dense(5)(hidden.reshape(len(hidden), -1))


@pytest.mark.parametrize("normalized", [True, False])
def test_a_training_begins_at_step_0_with_what_the_network_has(normalized):
    state = create_train_state(Network(normalized), optax.adam(0.1), jax.random.key(0), (4, 6))
    assert state.step == 0
    assert state.step.dtype == jnp.int32
    assert set(state.batch_stats) == ({"BatchNorm_0"} if normalized else set())
    assert Network(normalized).apply(state.variables, jnp.zeros((2, 4, 6, 3))).shape == (2, 5)


def test_weights_come_from_the_key_alone():
    network = Network(normalized=False)
    make = lambda seed: create_train_state(network, optax.sgd(0.1), jax.random.key(seed), (4, 4)).params  # noqa: E731
    chex.assert_trees_all_equal(make(0), make(0))
    assert not np.array_equal(make(0)["Dense_0"]["kernel"], make(1)["Dense_0"]["kernel"])


class UpdateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_step_goes_against_the_gradient_with_momentum(self):
        optimizer = optax.sgd(0.1, momentum=0.5)
        params = {"w": jnp.array([1.0, 2.0])}
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))
        update = self.variant(lambda state, gradients, stats: state.updated(optimizer, gradients, stats))
        first = update(state, {"w": jnp.array([1.0, -1.0])}, {"mean": jnp.ones(1)})
        second = update(first, {"w": jnp.array([0.0, 1.0])}, {"mean": jnp.zeros(1)})
        np.testing.assert_allclose(first.params["w"], [0.9, 2.1], rtol=1e-6)
        # Velocity: 0.5 * [1, -1] + [0, 1].
        np.testing.assert_allclose(second.params["w"], [0.85, 2.05], rtol=1e-6)
        assert (state.step, first.step, second.step) == (0, 1, 2)
        assert first.batch_stats["mean"] == 1
        chex.assert_trees_all_equal_shapes_and_dtypes(first, second)


def test_parameters_are_counted_by_their_numbers():
    state = create_train_state(Network(), optax.sgd(0.1), jax.random.key(0), (4, 4))
    assert count_parameters(state.params) == (3 * 3 * 3 * 2 + 2) + (2 + 2) + (2 * 2 * 2 * 5 + 5)
    assert count_parameters({}) == 0
