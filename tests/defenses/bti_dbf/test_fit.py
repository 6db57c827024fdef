"""BTI-DBF from end to end, on a backdoor that a small classifier really has."""

import jax
import pytest

from refine_jax.defenses.bti_dbf import purification, unlearning
from refine_jax.files import hash_arrays
from refine_jax.training import compilation, loop
from refine_jax.training.interruption import Interrupted
from refine_jax.training.journal import Journal
from tests.defenses.bti_dbf import small
from tests.defenses.bti_dbf.small import net_fixture  # noqa: F401


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "compiler_options", lambda backend: small.QUICK)


@pytest.fixture(scope="module", name="made")
def made_fixture():
    return []


@pytest.fixture(name="victim")
def victim_fixture(made, net):
    if not made:
        made.append(small.backdoored())
    return made[0]


def journal(folder, **changed):
    return Journal(folder / "checkpoints", folder / "metrics.jsonl", {"of": "a test"}, 1, 60.0, **changed)


@pytest.mark.parametrize(
    ("module", "enough"),
    [
        (purification, {"purification_epochs": 20, "norm_bound": 1.0, "rounds": 1}),
        # With one image of a batch triggered, fine-tuning alike leaves an ASR of 67 %.
        (unlearning, {"unlearning_epochs": 20, "unlearning_learning_rate": 0.01, "triggered_share": 0.3}),
    ],
)
def test_the_trigger_means_nothing_behind_it(module, enough, victim):
    test = small.split(200, 2)
    assert min(small.rates(victim, test)) > 0.95
    settings = small.settings(module, **small.INVERTED, **enough)
    fitted = module.fit(victim, small.split(128, 1), settings, 0, small.K)
    ba, asr = small.rates(fitted.defended, test)
    assert ba > 0.9
    assert asr < 0.2
    assert fitted.findings["target_class"] in range(small.K)
    assert 1 / small.K <= fitted.findings["target_share"] <= 1
    assert fitted.train_seconds > 0 < fitted.train_images_per_second


@pytest.mark.parametrize(("module", "phase"), [(purification, "inversion2"), (unlearning, "unlearning1")])
def test_a_fit_that_is_stopped_comes_to_the_same(module, phase, victim, tmp_path, monkeypatch):
    """In the middle of a phase; what was done before it is not done again."""
    clean, settings = small.split(64, 1), small.settings(module)
    whole = module.fit(victim, clean, settings, 3, small.K)
    run, started = loop._run, []

    def stopped(stage, step, state, data, batches, feed, schedule, stop, writer):
        started.append((stage.split()[-1], int(state.step)))
        if started[-1] == (phase, 0):
            stop.requested = True  # as by a signal: after this step
        return run(stage, step, state, data, batches, feed, schedule, stop, writer)

    monkeypatch.setattr(loop, "_run", stopped)
    with pytest.raises(Interrupted):
        module.fit(victim, clean, settings, 3, small.K, journal(tmp_path))
    before = [*started]
    started.clear()
    fitted = module.fit(victim, clean, settings, 3, small.K, journal(tmp_path))
    assert [name for name, step in started if step == 0] == [
        name for name in order(module) if name not in {name for name, _ in before}
    ]
    assert dict(started)[phase] == 1
    assert hash_arrays(fitted.defended.parts()) == hash_arrays(whole.defended.parts())
    assert fitted.findings == whole.findings
    loaded = module.load(tmp_path / "checkpoints", victim, settings, (small.SIDE, small.SIDE))
    assert hash_arrays(loaded.parts()) == hash_arrays(whole.defended.parts())
    assert jax.tree.structure(loaded) == jax.tree.structure(whole.defended)

    # What one round comes to is kept, and is what a fit of one round comes to.
    monkeypatch.setattr(loop, "_run", run)
    shorter = {**settings, "rounds": 1}
    first = module.load(tmp_path / "checkpoints", victim, shorter, (small.SIDE, small.SIDE))
    one_round = module.fit(victim, clean, shorter, 3, small.K)
    assert hash_arrays(first.parts()) == hash_arrays(one_round.defended.parts()) != hash_arrays(loaded.parts())


def order(module):
    last = {purification: "purification", unlearning: "unlearning"}[module]
    return ["pretraining", *(f"{name}{n}" for n in (1, 2) for name in ("mask", "inversion", last))]
