import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax import victim
from refine_jax.classifier import Classifier
from refine_jax.defenses import refine
from refine_jax.networks import layers, registry
from refine_jax.networks.norm import BatchNorm
from refine_jax.networks.unet import UNet
from refine_jax.training import parallel
from refine_jax.training.optimizer import create_optimizer, create_schedule
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import create_train_state

K, COUNT, SIDE = 3, 6, 8
SETTINGS = {
    **{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "schedule": "multistep", "learning_rate": 0.1},
    **{"milestones": (), "decay": 1.0, "epochs": 1},
}
# A compiler that does not take its time.
QUICK = {"xla_backend_optimization_level": 0}
EXECUTIONS = {precision: Execution(precision=precision) for precision in ("float32", "bfloat16")}


class Net(nn.Module):
    """What every network is made of. That the real ones keep logits in float32 is in tests/networks."""

    num_classes: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.conv(3, 4, 3, padding=1, dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype)(x, train))
        x = layers.conv(4, 4, 3, dtype=self.dtype)(x)
        return layers.linear(4, self.num_classes)(layers.global_mean(x))


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(registry.NETWORKS, "tiny", functools.partial(Net))
        patched.setattr(parallel, "compile_training", functools.partial(jax.jit, compiler_options=QUICK))
        yield


@pytest.fixture(scope="module")
def steps(tiny):
    """One step of the victim and of REFINE, in both precisions: name, precision -> (state, metrics, jaxpr)."""
    tx = create_optimizer(SETTINGS, create_schedule(SETTINGS, 1))
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    common = {"images": images, "key": jax.random.key(7)}
    network, unet = Net(K), UNet(width=2, depth=1)
    state = create_train_state(network, tx, jax.random.key(0), (SIDE, SIDE))
    labels = {"labels": np.arange(COUNT) % K, "is_poisoned": np.zeros(COUNT, bool)}
    classifier = Classifier("tiny", state.variables, K, (0.5,) * 3, (0.25,) * 3)
    unet_state = create_train_state(unet, tx, jax.random.key(1), (SIDE, SIDE))
    objective, batch = refine.Objective.of(None), {"indices": np.arange(COUNT)}

    found = {}
    for precision, execution in EXECUTIONS.items():
        victim_step = victim.train_step(execution.computing(network), tx, lambda images, *_: images)
        refine_step = refine.train_step(execution.computing(unet), tx, objective)
        cast = classifier if precision == "float32" else classifier.computing_in(precision)
        data = {
            "victim": (victim_step, state, common | labels | {"mean": np.float32(0.5), "std": np.float32(0.25)}),
            "refine": (refine_step, unet_state, common | {"classifier": cast, "permutation": jnp.array([1, 2, 0])}),
        }
        for name, given in data.items():
            function, start, held = given
            jaxpr = jax.make_jaxpr(function)(start, held, batch)
            copied = jax.tree.map(jnp.array, start)
            after, metrics = Step(lambda axis_name, function=function: function, execution)(copied, held, batch)
            found[name, precision] = types.SimpleNamespace(state=after, metrics=metrics, jaxpr=jaxpr)
    return found


@pytest.mark.parametrize("name", ["victim", "refine"])
def test_only_the_computation_is_in_bfloat16(steps, name):
    for precision in EXECUTIONS:
        step = steps[name, precision]
        kept = jax.tree.leaves((step.state.params, step.state.batch_stats, step.state.opt_state, step.metrics))
        assert {leaf.dtype for leaf in kept} <= {jnp.dtype("float32"), jnp.dtype("int32")}
        # Convolutions stand in the text of the program with the type that they compute in.
        convolutions = [line for line in str(step.jaxpr).splitlines() if "conv_general_dilated[" in line]
        short = {"float32": ":f32[", "bfloat16": ":bf16["}[precision]
        assert len(convolutions) > 3
        assert all(short in line for line in convolutions)


@pytest.mark.parametrize("name", ["victim", "refine"])
def test_a_step_in_bfloat16_is_near_that_in_float32(steps, name):
    exact, near = steps[name, "float32"], steps[name, "bfloat16"]
    assert near.metrics["loss"] == pytest.approx(float(exact.metrics["loss"]), rel=0.05)
    assert near.metrics["gradient_norm"] == pytest.approx(float(exact.metrics["gradient_norm"]), rel=0.3)
    assert float(near.metrics["loss"]) != float(exact.metrics["loss"])
    for got, expected in zip(jax.tree.leaves(near.state.params), jax.tree.leaves(exact.state.params), strict=True):
        assert np.linalg.norm(got - expected) <= 0.1 * np.linalg.norm(expected) + 0.05


def test_a_classifier_computes_in_bfloat16_and_answers_in_float32():
    images = jnp.asarray(np.random.default_rng(1).random((4, SIDE, SIDE, 3)), jnp.float32)
    variables = jax.jit(Net(K).init, compiler_options=QUICK)(jax.random.key(0), images)
    classifier = Classifier("tiny", variables, K, (0.5,) * 3, (0.25,) * 3)
    call = jax.jit(lambda classifier, images: classifier(images), compiler_options=QUICK)
    exact, near = call(classifier, images), call(classifier.computing_in("bfloat16"), images)
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, rtol=0.05, atol=0.05)
    assert not np.array_equal(near, exact)
