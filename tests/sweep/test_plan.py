"""Which runs a sweep has, what they are called, and which victims they share."""

import pytest

from refine_jax import settings
from refine_jax.errors import RefineError, SettingError
from refine_jax.sweep import base, plan
from tests.sweep.fake import make


def names(tasks):
    return [task.name for task in tasks]


def test_every_combination_is_a_run_and_defenses_share_a_victim(tmp_path):
    expanded = plan.expand(make({"defense.sup_weight": (0.0, 0.1), "defense.depth": (3, 4)}), tmp_path)
    assert len(expanded.runs) == 8
    assert names(expanded.runs[:2]) == [f"runs/defense.sup_weight=0.0,defense.depth=3,seed={seed}" for seed in (0, 1)]
    assert names(expanded.victims) == ["victims/seed=0", "victims/seed=1"]
    for run in expanded.runs:
        assert run.victim.name == f"victims/seed={run.seed}"
        assert run.config.victim.workdir == str(tmp_path / run.victim.name)
        assert run.settings["defense"]["depth"] == run.values["defense.depth"] == run.config.defense.depth
    # A victim comes before those that need it, and once.
    order = expanded.tasks
    assert len(order) == len({task.name for task in order}) == 10
    assert all(order.index(run.victim) < order.index(run) for run in expanded.runs)


def test_what_changes_a_victim_gives_it_a_name(tmp_path):
    grid = {"attack.name": ("badnets", "wanet"), "defense.depth": (3, 4)}
    expanded = plan.expand(make(grid), tmp_path)
    assert names(expanded.victims) == [
        f"victims/attack.name={name},seed={seed}" for seed in (0, 1) for name in ("badnets", "wanet")
    ]
    assert expanded.victims[1].settings["attack"]["name"] == "wanet"
    shared = plan.expand(make(grid, one_victim=True), tmp_path)
    assert names(shared.victims) == ["victims/attack.name=badnets,seed=0", "victims/attack.name=wanet,seed=0"]
    assert {run.seed for run in shared.runs} == {0, 1}


def test_grids_are_put_together_and_what_is_in_two_is_one_run(tmp_path):
    expanded = plan.expand(make({"defense.depth": (3, 4)}, {"defense.width": (32, 64)}, seeds=(5,)), tmp_path)
    values = [tuple(run.values.values()) for run in expanded.runs]
    assert values == [(3, 64), (4, 64), (4, 32)]


def test_fields_of_one_axis_change_together(tmp_path):
    grid = {("victim.name", "victim.width"): (("resnet18", 16), ("vgg16", 64))}
    expanded = plan.expand(make(grid, seeds=(0,)), tmp_path)
    found = [(run.settings["victim"]["name"], run.settings["victim"]["width"]) for run in expanded.runs]
    assert found == [("resnet18", 16), ("vgg16", 64)]
    assert expanded.runs[0].settings["victim"]["learning_rate"] == 0.1  # as the network's default has it
    assert expanded.runs[1].settings["victim"]["learning_rate"] == 0.01
    with pytest.raises(SettingError, match=r"victim.name, victim.width = \('vit',\): allowed: 2 values"):
        plan.expand(make({("victim.name", "victim.width"): (("vit",),)}), tmp_path)


def test_a_value_that_cannot_be_is_said_with_its_run_before_any_work(tmp_path):
    with pytest.raises(RefineError, match=r"runs/defense.sup_weight=-1.0,seed=0: defense.sup_weight = -1.0"):
        plan.check_images(plan.expand(make({"defense.sup_weight": (0.1, -1.0)}), tmp_path))
    with pytest.raises(SettingError, match=r"did you mean 'defense.depth'"):
        plan.expand(make({"defense.deepth": (3,)}), tmp_path)
    with pytest.raises(SettingError, match=r"defense.depth = 'x'"):
        plan.expand(make({"defense.depth": ("x",)}), tmp_path)
    with pytest.raises(SettingError, match=r"seed = .*seeds=\(0, 1, 2\)"):
        plan.expand(make({"seed": (3,)}), tmp_path)
    with pytest.raises(RefineError, match=r"runs/defense.data_fraction=0.01,seed=0: defense.batch_size = 256"):
        plan.check_images(plan.expand(make({"defense.data_fraction": (0.01,)}), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_its_attack_cannot_be_is_said_before_any_work(tmp_path):
    sweep = make({"attack.blended.alpha": (0.1, 7.0)}, seeds=(0,))
    sweep.base.attack.name = "blended"
    with pytest.raises(RefineError, match=r"runs/attack.blended.alpha=7.0,seed=0: attack.blended.alpha = 7.0"):
        plan.check_images(plan.expand(sweep, tmp_path))


def test_of_devices_elsewhere_nothing_is_known_here(tmp_path):
    sweep = make({"run.devices": (64,)}, seeds=(0,))
    with pytest.raises(RefineError, match=r"run.devices = 64"):
        plan.check_images(plan.expand(sweep, tmp_path))
    plan.check_images(plan.expand(sweep, tmp_path), here=False)


@pytest.mark.parametrize("field", ["attack.blended.pattern", "defense.bdmae.mae_checkpoint"])
def test_tasks_that_would_lie_in_one_directory_are_refused(field, tmp_path):
    """Victims, and runs."""
    sweep = make({field: ("a b", "a_b")}, seeds=(0,))
    sweep.base.attack.name, sweep.base.defense.names = "blended", ("bdmae",)
    with pytest.raises(SettingError, match=rf"{field} = \('a_b',\): allowed: values that differ in letters"):
        plan.expand(sweep, tmp_path)


def test_the_base_stays_as_it_is_and_victims_that_are_given_are_taken(tmp_path):
    sweep = make({"defense.depth": (3,)})
    before = sweep.base.to_dict()
    plan.expand(sweep, tmp_path)
    assert sweep.base.to_dict() == before
    sweep.base.victim.workdir = "elsewhere"
    expanded = plan.expand(sweep, tmp_path)
    assert expanded.victims == ()
    assert {run.config.victim.workdir for run in expanded.runs} == {"elsewhere"}


def test_a_name_can_be_one_of_a_folder():
    assert plan.label({"a.b": ("x", 3), "c": "../d e", "f": None}) == "a.b=x+3,c=.._d_e,f=None"


def test_base_reads_another_configuration(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "one.py").write_text(
        "from refine_jax import settings\n"
        "def get_config(variant=''):\n"
        "    config = settings.default()\n"
        "    config.seed = len(variant)\n"
        "    return config\n"
    )
    file = str(tmp_path / "sweeps" / "two.py")
    assert base(file, "", {"": "one.py"}).seed == 0
    assert base(file, "mini", {"mini": "one.py:small"}).seed == 5
    with pytest.raises(SettingError, match=r"two.py:tiny.*: allowed: .*two.py, .*two.py:mini"):
        base(file, "tiny", {"": "one.py", "mini": "one.py:small"})


def test_fields_are_set_by_type():
    config = settings.default()
    plan.apply(config, {"victim.workdir": "x", "attack.rate": None})
    assert config.victim.workdir == "x"
    with pytest.raises(SettingError, match=r"defense.width = 1.5: allowed: a whole number"):
        plan.apply(config, {"defense.width": 1.5})


def test_a_field_without_values_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"defense\.depth = \(\): allowed: one or more values"):
        plan.expand(make({"defense.width": (2,), "defense.depth": ()}), tmp_path)
