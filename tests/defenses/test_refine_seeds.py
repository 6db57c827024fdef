"""Several seeds of REFINE in one program, against a training of each."""

import functools
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refine_jax.datasets.images import Split
from refine_jax.defenses import refine, refine_seeds
from refine_jax.defenses.defend import defend_seeds
from refine_jax.errors import SettingError, WorkdirError
from refine_jax.training import optimizer
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from refine_jax.training.log import read_metrics
from refine_jax.training.parallel import Execution, Step
from refine_jax.training.state import TrainState
from tests import small_defense

K, SIDE = small_defense.K, small_defense.SIDE
SEEDS = (3, 0)
SMALL = {"width": 2, "depth": 1, "epochs": 3, "batch_size": 4, "data_fraction": 0.6}
SETTINGS = refine.complete(SMALL)


@pytest.fixture(autouse=True)
def registered():
    with small_defense.registered():
        yield


@pytest.fixture
def classifier():
    return small_defense.make(input_size=None).classifier


@pytest.fixture
def clean():
    return Split.unlabeled(small_defense.picture(15))


@pytest.fixture
def journal_in(tmp_path):
    """Makes the journal of a working directory."""

    def make(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return Journal(tmp_path / name / "checkpoints", tmp_path / name / "metrics.jsonl", {"of": "all"}, 1, 60.0)

    return make


def problem(classifier, dtype):
    """A step of REFINE, its arguments with each seed, and the data of all."""
    defended = small_defense.make()
    unet, variables = defended.unet, defended.unet_variables
    tx = optimizer.create_optimizer(SETTINGS, optimizer.create_schedule(SETTINGS, 2))
    cast = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, dtype))
    rng = np.random.default_rng(0)
    data = {"images": jnp.asarray(small_defense.picture(15)), "classifier": cast(classifier)}
    arguments = []
    for place, seed in enumerate(SEEDS, start=1):
        own = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), cast(variables["params"]))
        state = TrainState(jnp.int32(0), own, cast(variables["batch_stats"]), tx.init(own))
        drawn = {"permutation": jnp.asarray(np.roll(np.arange(K), place)), "key": jax.random.key(seed)}
        arguments.append((state, drawn, jnp.asarray(rng.permutation(15)[:6])))
    return refine.train_step(unet, tx, refine.Objective.of(SETTINGS)), arguments, data


def together(step, arguments, data):
    """The step of all seeds, with its arguments."""
    states, drawn, indices = zip(*arguments, strict=True)
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    stacked, drawn = jax.tree.map(stack, *states), jax.tree.map(stack, *drawn)
    state = TrainState(states[0].step, stacked.params, stacked.batch_stats, stacked.opt_state)
    batch = {"indices": jnp.stack(indices, axis=1)}
    return refine_seeds.step_of_seeds(step, SEEDS, drawn), (state, {**data, **drawn}, batch)


def test_in_float64_steps_of_all_seeds_are_those_of_each(classifier):
    with jax.enable_x64(True):
        step, arguments, data = problem(classifier, np.float64)
        steps, (states, of_all, batch) = together(step, arguments, data)
        steps, step = jax.jit(steps), jax.jit(step)
        of_seeds = [state for state, _, _ in arguments]
        for _ in range(3):
            states, metrics = steps(states, of_all, batch)
            for place, (_, drawn, indices) in enumerate(arguments):
                of_seeds[place], expected = step(of_seeds[place], {**data, **drawn}, {"indices": indices})
                for name, value in expected.items():
                    np.testing.assert_allclose(metrics[f"{name}_of_seed_{SEEDS[place]}"], value, rtol=1e-9)
        for place, expected in enumerate(of_seeds):
            own = refine_seeds.state_of_seed(states, place)
            chex.assert_trees_all_close(own, expected, rtol=1e-9, atol=1e-12)
            assert own.step == 3
        losses = [metrics[f"loss_of_seed_{seed}"] for seed in SEEDS]
        assert len(set(map(float, losses))) == len(SEEDS)
        np.testing.assert_allclose(metrics["loss"], np.mean(losses))


def test_the_weights_of_the_classifier_are_there_once(classifier):
    step, arguments, data = problem(classifier, np.float32)
    steps, given = together(step, arguments, data)
    program = str(jax.make_jaxpr(steps)(*given))
    kernel = classifier.variables["params"]["Dense_0"]["kernel"].shape
    assert f"[{','.join(map(str, kernel))}]" in program
    assert f"[{len(SEEDS)},{','.join(map(str, kernel))}]" not in program


def test_what_is_left_of_each_seed_is_what_its_training_alone_leaves(classifier, clean, journal_in, tmp_path):
    journals = [journal_in(f"together{seed}") for seed in SEEDS]
    given = (classifier, clean, SETTINGS)
    all_of_them = refine_seeds.fit_seeds(*given, SEEDS, K, journals, folder=tmp_path / "all")
    assert not (tmp_path / "all").exists()
    for seed, journal, fitted in zip(SEEDS, journals, all_of_them, strict=True):
        alone = refine.fit(*given, seed, K, journal_in(f"alone{seed}"))
        assert (fitted.steps, fitted.parameters) == (alone.steps, alone.parameters) == (6, fitted.parameters)
        chex.assert_trees_all_equal(fitted.defended.permutation, alone.defended.permutation)
        chex.assert_trees_all_close(fitted.defended.parts(), alone.defended.parts(), rtol=1e-3, atol=1e-4)

        loaded = refine.load(journal.checkpoints, classifier, SETTINGS, (SIDE, SIDE))
        chex.assert_trees_all_equal(loaded.parts(), fitted.defended.parts())
        rows, expected = (read_metrics(tmp_path / f"{name}{seed}" / "metrics.jsonl") for name in ("together", "alone"))
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for name in ("step", "epoch", "learning_rate", "loss", "gradient_norm"):
            np.testing.assert_allclose([r[name] for r in rows], [r[name] for r in expected], rtol=1e-3, err_msg=name)
        # A training of its own finds itself at its end, with the seed's share of the time.
        again = refine.fit(*given, seed, K, journal)
        chex.assert_trees_all_equal(again.defended.parts(), fitted.defended.parts())
        assert again.train_seconds == pytest.approx(fitted.train_seconds, abs=1)


def test_streamed_images_come_to_the_same(classifier, clean):
    def fit(feed):
        fitted = refine_seeds.fit_seeds(classifier, clean, SETTINGS, SEEDS, K, (), Execution(feed=feed))
        return [each.defended.parts() for each in fitted]

    chex.assert_trees_all_equal(fit("host"), fit("device"))


def test_a_training_that_is_stopped_goes_on_bit_for_bit(classifier, clean, journal_in, tmp_path, monkeypatch):
    calls = []

    class Stopping(Step):
        def __call__(self, state, data, batch):
            calls.append(batch["indices"].shape)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(state, data, batch)

    def fit(name):
        journals = [journal_in(f"{name}{seed}") for seed in SEEDS]
        given = (classifier, clean, SETTINGS, SEEDS, K, journals)
        fitted = refine_seeds.fit_seeds(*given, folder=tmp_path / f"{name} all")
        return [each.defended.parts() for each in fitted]

    expected = fit("whole")
    monkeypatch.setattr(refine_seeds, "Step", Stopping)
    with pytest.raises(Interrupted, match=r"refine stopped after step 2 of 6: saved in .*cut all"):
        fit("cut")
    assert not (tmp_path / "cut3" / "checkpoints").exists()
    chex.assert_trees_all_equal(fit("cut"), expected)
    assert calls == [(4, len(SEEDS))] * 6
    assert [read_steps(tmp_path / f"cut{seed}") for seed in SEEDS] == [[1, 2, 3, 4, 5, 6]] * len(SEEDS)


def test_a_training_of_other_settings_is_not_gone_on_with(classifier, clean, journal_in, tmp_path, monkeypatch):
    def stop(*_):
        raise Interrupted("stopped")

    def fit(**changed):
        given = (classifier, clean, {**SETTINGS, **changed}, SEEDS, K, [journal_in(f"own{seed}") for seed in SEEDS])
        refine_seeds.fit_seeds(*given, folder=tmp_path / "all")

    monkeypatch.setattr(refine_seeds, "_leave", stop)  # all are trained, and none has got its own yet
    with pytest.raises(Interrupted):
        fit()
    with pytest.raises(WorkdirError, match=r"all.checkpoints is of .*: delete .*all to train again"):
        fit(learning_rate=0.5)


def read_steps(folder):
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl")]


def test_seeds_that_cannot_be_trained_at_once_are_refused(classifier, clean):
    def fit(seeds, **changed):
        return refine_seeds.fit_seeds(classifier, clean, {**SETTINGS, **changed}, seeds, K)

    with pytest.raises(SettingError, match=r"^seeds = \(1, 1\): allowed: one or more seeds, each once"):
        fit((1, 1))
    with pytest.raises(SettingError, match=r"^defense.clean_corruption = 'contrast': allowed: none with"):
        fit((1, 2), clean_corruption="contrast")


def test_one_call_gives_a_defended_classifier_of_each_seed(classifier, clean):
    first, second = defend_seeds(classifier, clean.images, SMALL, seeds=SEEDS)
    answers = [small_defense.expected(defended, clean.images) for defended in (first, second)]
    assert answers[0].shape == (15, K)
    assert not np.allclose(*answers)
    with pytest.raises(SettingError, match=r"defense.width = 0"):
        defend_seeds(classifier, clean.images, {"width": 0}, seeds=(0, 1))
