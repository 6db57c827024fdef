"""What benchmarks/seeds.py compares is the same work."""

import chex

from benchmarks import seeds
from refine_jax.defenses import refine, refine_seeds
from tests import small_defense


def test_both_take_the_same_steps():
    settings = refine.complete({"width": 1, "depth": 1, "batch_size": 4})
    with small_defense.registered():
        trainings = seeds.Seeds(small_defense.make(input_size=None).classifier, settings, small_defense.SIDE, 2)
        ratios = seeds.compare(trainings, rounds=1, steps=1)
    assert len(ratios) == 1
    assert all(state.step == 2 for state in (trainings.together, *trainings.alone))
    for place, state in enumerate(trainings.alone):
        chex.assert_trees_all_close(refine_seeds.state_of_seed(trainings.together, place), state, rtol=1e-3, atol=1e-5)
    one, both = trainings.planned
    assert 0 < one < both
