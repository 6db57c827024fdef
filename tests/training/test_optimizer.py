"""Learning rates to the epoch, and optimizers step by step, against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refine_jax import settings
from refine_jax.defenses import refine
from refine_jax.errors import SettingError
from refine_jax.training import optimizer
from tests.goldens import rules

SECTION = {**optimizer.DEFAULTS, "batch_size": 4, "learning_rate": 0.1, "decay": 0.5, "epochs": 4}
# What a configuration leaves open is filled in by the network, 0.1 for most.
VICTIM = {**settings.default()["victim"], "learning_rate": 0.1}


@pytest.mark.parametrize(("case", "defaults"), [("refine", refine.DEFAULTS), ("attack", VICTIM)])
def test_the_rate_of_every_epoch_is_the_references(case, defaults):
    golden = {key.removeprefix(f"{case}/"): value for key, value in rules.load("schedule.npz").items() if case in key}
    epochs, steps = int(golden["epochs"]), 3
    schedule = optimizer.create_schedule(defaults, steps)
    # What stands in the defaults is what the reference had.
    assert (schedule.epochs, schedule.learning_rate, schedule.decay) == (
        epochs,
        golden["lr0_f64"],
        golden["gamma_f64"],
    )
    rates = [schedule.at_epoch(epoch) for epoch in range(epochs)]
    np.testing.assert_allclose(rates, golden["lr_f64"], rtol=1e-12)
    for milestone in golden["milestones"]:
        assert rates[milestone] < rates[milestone - 1]

    every_step = np.arange(epochs * steps)
    expected = np.repeat(golden["lr_f64"], steps)
    np.testing.assert_allclose([schedule.at_step(int(step)) for step in every_step], expected, rtol=1e-12)
    # As the optimizer sees it: on the device, in float32.
    np.testing.assert_array_equal(jax.jit(jax.vmap(schedule))(every_step), expected.astype(np.float32))


@pytest.mark.parametrize("epochs", [1, 3, 10, 15, 30, 200])
def test_milestones_scale_with_the_length(epochs):
    """The epochs at which the rate changes, as PyTorch's scheduler has them from the rounded milestones."""
    torch = pytest.importorskip("torch")
    section = {**refine.DEFAULTS, "epochs": epochs}
    schedule = optimizer.create_schedule(section, 7)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=section["learning_rate"])
    milestones = [round(2 / 3 * epochs), round(13 / 15 * epochs)]
    theirs = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, section["decay"])
    for epoch in range(epochs):
        assert schedule.at_step(7 * epoch) == schedule.at_step(7 * epoch + 6) == pytest.approx(theirs.get_last_lr()[0])
        sgd.step()
        theirs.step()


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 3), (2, 2), (5, 20)])
def test_one_cycle_rises_and_falls(epochs, steps):
    """Of a training of a single step, too, every rate is a number above 0 and at most the peak."""
    section = {**SECTION, "schedule": "one_cycle", "epochs": epochs}
    schedule = optimizer.create_schedule(section, steps)
    rates = np.array([schedule.at_step(step) for step in range(epochs * steps)])
    assert np.all(rates > 0)
    assert np.all(rates <= 0.1 * (1 + 1e-6))
    if epochs * steps == 100:
        assert rates.argmax() == 30
        assert rates.max() == pytest.approx(0.1)
        assert rates[0] == pytest.approx(0.1 / 25)
        assert np.all(np.diff(rates[:31]) > 0)
        assert np.all(np.diff(rates[30:]) < 0)


@pytest.mark.parametrize(
    ("name", "weight_decay", "momentum"), [("sgd", 5e-4, 0.9), ("sgd", 0.1, 0.0), ("adam", 0.1, 0.9)]
)
def test_steps_are_pytorchs(name, weight_decay, momentum):
    """Weight decay of every parameter, scalars and biases too, before momentum and before Adam's moments."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4), "scale": rng.standard_normal(())}
    gradients = [{key: rng.standard_normal(value.shape) for key, value in params.items()} for _ in range(8)]

    section = SECTION | {"optimizer": name, "weight_decay": weight_decay, "momentum": momentum}
    theirs = {key: torch.nn.Parameter(torch.from_numpy(np.array(value))) for key, value in params.items()}
    if name == "sgd":
        their_optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    else:
        their_optimizer = torch.optim.Adam(theirs.values(), lr=0.1, weight_decay=weight_decay)
    # 4 epochs of 2 steps: both milestones, 2.67 and 3.47 before they are rounded, come at step 6.
    scheduler = torch.optim.lr_scheduler.MultiStepLR(their_optimizer, [6], 0.5**2)

    with jax.enable_x64(True):
        tx = optimizer.create_optimizer(section, optimizer.create_schedule(section, 2))
        ours = jax.tree.map(jnp.asarray, params)
        state = tx.init(ours)
        update = jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update(gradient, state, ours)
            ours = optax.apply_updates(ours, updates)
            for key, parameter in theirs.items():
                parameter.grad = torch.from_numpy(np.array(gradient[key]))
            their_optimizer.step()
            scheduler.step()
            for key, parameter in theirs.items():
                np.testing.assert_allclose(ours[key], parameter.detach().numpy(), rtol=1e-12, err_msg=key)


def test_a_rate_of_float64_leaves_float32_parameters_as_they_are():
    with jax.enable_x64(True):
        tx = optimizer.create_optimizer(SECTION, optimizer.create_schedule(SECTION, 2))
        params = {"kernel": jnp.ones(3, jnp.float32)}
        updates, _ = tx.update(params, tx.init(params), params)
        assert optax.apply_updates(params, updates)["kernel"].dtype == jnp.float32


def test_the_defaults_are_possible():
    for defaults in (refine.DEFAULTS, VICTIM, SECTION):
        optimizer.check("section", defaults)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("optimizer", "sdg", "sgd, adam.*did you mean 'sgd'"),
        ("schedule", "cosine", "multistep, one_cycle"),
        ("epochs", 0, "1 or more"),
        ("epochs", 1.5, "whole number"),
        ("epochs", True, "whole number"),
        ("batch_size", -1, "1 or more"),
        ("batch_size", "256", "whole number"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("learning_rate", float("inf"), "above 0"),
        ("learning_rate", "0.1", "number"),
        ("momentum", 1.0, "below 1"),
        ("momentum", -0.1, "0 or more"),
        ("weight_decay", -1e-4, "0 or more"),
        ("weight_decay", None, "0 or more"),
        ("decay", 0.0, "above 0"),
        ("milestones", (0.5, 1.0), "between 0 and 1"),
        ("milestones", (0.8, 0.5), "each above the one before"),
        ("milestones", (0.5, 0.5), "each above the one before"),
        ("milestones", (100, 130), "fractions of the epochs"),
        ("milestones", 0.5, "fractions of the epochs"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(field, value, allowed):
    with pytest.raises(SettingError, match=rf"^victim\.{field} = .*allowed: .*{allowed}"):
        optimizer.check("victim", SECTION | {field: value})


def test_no_milestones_keep_the_rate():
    section = SECTION | {"milestones": ()}
    optimizer.check("victim", section)
    assert {optimizer.create_schedule(section, 2).at_step(step) for step in range(8)} == {0.1}
