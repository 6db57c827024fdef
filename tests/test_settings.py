import json
import math

import jax
import ml_collections
import numpy as np
import pytest

from refine_jax import attacks, datasets, fields, networks, settings
from refine_jax.datasets.images import Dataset, Split
from refine_jax.defenses import registry
from refine_jax.errors import RefineError, SettingError


def configured(**changed):
    """The default configuration with some fields changed: victim__epochs=3 stands for victim.epochs."""
    config = settings.default()
    for field, value in changed.items():
        section = config
        *sections, name = field.split("__")
        for part in sections:
            section = section[part]
        section[name] = value
    return config


def made(count=1000, size=32, num_classes=10):
    split = Split(np.zeros((count, size, size, 3), np.uint8), np.zeros(count, np.int32))
    names = tuple(str(number) for number in range(num_classes))
    return Dataset("made", split, split, names, (0.5,) * 3, (0.2,) * 3)


def refuse(config, dataset=None):
    """Returns the error that the checks before any work end with."""
    with pytest.raises(SettingError) as caught:
        settings.check(settings.complete(config), dataset or made())
    return caught.value


def test_the_default_is_the_papers_setting():
    resolved = settings.complete(settings.default())
    assert resolved["seed"] == 0
    assert resolved["attack"]["name"] == "badnets"
    assert resolved["attack"]["target"] == 0
    sgd = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "epochs": 150}
    wanted = {"batch_size": 128, "learning_rate": 0.1, "decay": 0.1, "name": "resnet18", "width": 64}
    assert resolved["victim"].items() >= {**sgd, **wanted}.items()
    wanted = {"batch_size": 256, "learning_rate": 0.01, "decay": 0.8, "width": 64, "sup_weight": 0.1}
    assert resolved["defense"].items() >= {**sgd, **wanted, "temperature": 0.1, "data_fraction": 1.0}.items()
    for section in ("victim", "defense"):
        assert [round(150 * fraction, 9) for fraction in resolved[section]["milestones"]] == [100, 130]
    settings.check(resolved, made())


def test_what_complete_gives_is_json():
    resolved = settings.complete(settings.default())
    assert json.loads(json.dumps(resolved)) == resolved


def test_completing_leaves_the_configuration_as_it_was():
    config = configured(victim__epochs=3)
    before = config.to_json_best_effort()
    settings.complete(config)
    assert config.to_json_best_effort() == before


@pytest.mark.parametrize(("name", "rate"), [("vgg16", 0.01), ("vit", 0.001), ("resnet18", 0.1), ("densenet121", 0.1)])
def test_the_learning_rate_is_the_networks_unless_one_is_given(name, rate):
    assert settings.complete(configured(victim__name=name))["victim"]["learning_rate"] == rate
    given = settings.complete(configured(victim__name=name, victim__learning_rate=0.3))
    assert given["victim"]["learning_rate"] == 0.3


def test_of_the_attacks_options_only_those_of_the_one_chosen_are_kept():
    resolved = settings.complete(configured(attack__name="wanet"))["attack"]
    assert set(resolved) == {"name", "target", "rate", "wanet"}
    assert resolved["wanet"]["k"] == 4


def test_of_the_data_sets_options_only_those_of_the_one_chosen_are_kept():
    assert set(settings.complete(settings.default())["dataset"]) == {"name", "data_dir", "train_images"}
    given = configured(dataset__name="imagenet50", dataset__classes=(10,), dataset__per_class=(50, 10))
    resolved = settings.complete(given)["dataset"]
    assert (resolved["root"], resolved["classes"], resolved["per_class"]) == (None, [10], [50, 10])


def test_the_preset_fills_in_what_is_open_and_nothing_else():
    authors = settings.complete(configured(defense__preset="authors_code"))["defense"]
    assert (authors["loss"], authors["temperature"]) == ("binary_cross_entropy", 0.07)
    given = settings.complete(configured(defense__preset="authors_code", defense__temperature=0.2))["defense"]
    assert (given["loss"], given["temperature"]) == ("binary_cross_entropy", 0.2)


IMPOSSIBLE = [
    ({"seed": -1}, "seed = -1: allowed: 0 to 4294967295"),
    ({"seed": 2**40}, "seed = 1099511627776: allowed: 0 to 4294967295"),
    ({"dataset__name": "cifar"}, "dataset.name = 'cifar': allowed: .*did you mean 'cifar10'"),
    ({"dataset__classes": (5,)}, r"dataset.classes = \(5,\): allowed: only with imagenet50; .* is 'cifar10'"),
    ({"attack__name": "badnet"}, "attack.name = 'badnet': allowed: .*did you mean 'badnets'"),
    ({"attack__target": -1}, "attack.target = -1: allowed: a class"),
    ({"attack__target": 10}, "attack.target = 10: allowed: a class of made, 0 to 9"),
    ({"attack__rate": -0.1}, "attack.rate = -0.1: allowed: .*above 0"),
    ({"attack__rate": 0.0}, "attack.rate = 0.0: allowed: .*above 0"),
    ({"attack__rate": 1.1}, "attack.rate = 1.1: allowed: .*above 0 and at most 1"),
    ({"victim__name": "resnet"}, "victim.name = 'resnet': allowed: .*did you mean 'resnet"),
    ({"victim__width": 0}, "victim.width = 0: allowed: .*1 or more"),
    ({"victim__epochs": 0}, "victim.epochs = 0: allowed: .*1 or more"),
    ({"victim__batch_size": 0}, "victim.batch_size = 0: allowed: .*1 or more"),
    ({"victim__batch_size": 1001}, "victim.batch_size = 1001: allowed: at most the 1000 training images"),
    ({"victim__learning_rate": -0.1}, "victim.learning_rate = -0.1: allowed: .*above 0"),
    ({"victim__learning_rate": 0.0}, "victim.learning_rate = 0.0: allowed: .*above 0"),
    ({"victim__momentum": 1.0}, "victim.momentum = 1.0: allowed: .*0 or more and below 1"),
    ({"victim__weight_decay": -1e-4}, "victim.weight_decay = -0.0001: allowed: .*0 or more"),
    ({"victim__milestones": (0.5, 1.0)}, r"victim.milestones = \(0.5, 1.0\): allowed: .*fractions"),
    ({"victim__milestones": (0.0, 0.5)}, r"victim.milestones = \(0.0, 0.5\): allowed: .*fractions"),
    ({"victim__milestones": (0.9, 0.5)}, r"victim.milestones = \(0.9, 0.5\): allowed: .*fractions"),
    ({"victim__milestones": ("a",)}, r"victim.milestones = \('a',\): allowed: .*fractions"),
    ({"victim__optimizer": "adamw"}, "victim.optimizer = 'adamw': allowed: .*did you mean 'adam'"),
    ({"victim__schedule": "onecycle"}, "victim.schedule = 'onecycle': allowed: .*did you mean 'one_cycle'"),
    ({"defense__names": ()}, r"defense.names = \(\): allowed: one or more of refine"),
    ({"defense__names": ("refin",)}, "defense.names = 'refin': allowed: .*did you mean 'refine'"),
    ({"defense__names": ("refine", "refine")}, "defense.names = .*: allowed: .*each once"),
    ({"defense__preset": "papr"}, "defense.preset = 'papr': allowed: .*did you mean 'paper'"),
    ({"defense__loss": "entropy"}, "defense.loss = 'entropy': allowed: cross_entropy"),
    ({"defense__unet_input": "raw"}, "defense.unet_input = 'raw': allowed: unit, normalized"),
    ({"defense__temperature": 0.0}, "defense.temperature = 0.0: allowed: .*above 0"),
    ({"defense__sup_weight": -0.1}, "defense.sup_weight = -0.1: allowed: .*0 or more"),
    ({"defense__depth": 6}, "defense.depth = 6: allowed: 1 to 5 for images of 32 x 32"),
    ({"defense__depth": 0}, "defense.depth = 0: allowed: 1 to 5"),
    ({"defense__width": 0}, "defense.width = 0: allowed: .*1 or more"),
    ({"defense__data_fraction": 0.0}, "defense.data_fraction = 0.0: allowed: .*above 0 and at most 1"),
    ({"defense__data_fraction": 1.5}, "defense.data_fraction = 1.5: allowed: .*above 0 and at most 1"),
    ({"defense__batch_size": 1001}, "defense.batch_size = 1001: allowed: at most the 1000 clean images"),
    ({"run__log_every": 0}, "run.log_every = 0: allowed: .*1 or more"),
    ({"run__checkpoint_steps": 0}, "run.checkpoint_steps = 0: allowed: 1 or more"),
    ({"run__steps_per_call": 0}, "run.steps_per_call = 0: allowed: 1 or more"),
    ({"precision": "bfloat8"}, "precision = 'bfloat8': allowed: float32, bfloat16 .*did you mean 'bfloat16'"),
    ({"run__devices": 0}, "run.devices = 0: allowed: 1 or more"),
    ({"run__feed": "hots"}, "run.feed = 'hots': allowed: device, host .did you mean 'host'"),
    ({"run__workers": -1}, "run.workers = -1: allowed: 0 or more"),
    ({"run__keep_checkpoints": 0}, "run.keep_checkpoints = 0: allowed: 1 or more"),
    ({"run__checkpoint_minutes": 0.0}, "run.checkpoint_minutes = 0.0: allowed: .*above 0"),
]


def test_a_network_that_cannot_rematerialize_is_not_asked_to():
    with pytest.raises(SettingError, match=r"run\.remat = True: allowed: with resnet18, .*; .* 'vgg16'"):
        settings.complete(configured(run__remat=True, victim__name="vgg16"))
    settings.complete(configured(run__remat=True))


def test_a_network_of_one_width_is_not_asked_for_another():
    message = r"victim\.width = 16: allowed: 64, the only one that vgg16 has; any with resnet18, "
    with pytest.raises(SettingError, match=message):
        settings.complete(configured(victim__width=16, victim__name="vgg16"))
    settings.complete(configured(victim__width=16))


def test_several_devices_share_the_batches_that_are_trained_with_and_no_others(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: ["device"] * 3)

    def check(*names, copy=126, victim=126, **changed):
        config = configured(run__devices=3, victim__batch_size=victim, defense__names=names, **changed)
        config.defense.batch_size = config.defense.refine_substitute.batch_size = 126
        config.defense.refine_substitute.copy.batch_size = copy
        settings.check(settings.complete(config), made())

    check("refine", "refine_substitute")
    with pytest.raises(SettingError, match=r"^victim\.batch_size = 128: allowed: a multiple of 3"):
        check("refine", victim=128)
    check("refine", victim=128, victim__workdir="another")
    with pytest.raises(SettingError, match=r"^defense\.refine_substitute\.copy\.batch_size = 128: allowed: a mul"):
        check("refine_substitute", copy=128)
    check("refine_zeroth_order")  # of 256, on one device
    bdmae = settings.default().defense.to_dict()["bdmae"]
    assert registry.shared_batches("bdmae", {"bdmae": bdmae}) == {"defense.bdmae.batch_size": 128}
    assert registry.shared_batches("bdmae", {"bdmae": {**bdmae, "mae_checkpoint": "mae.pth"}}) == {}


@pytest.mark.parametrize(("changed", "message"), IMPOSSIBLE, ids=lambda value: value if isinstance(value, str) else "")
def test_the_impossible_is_refused_with_field_value_and_what_is_allowed(changed, message):
    error = refuse(configured(**changed))
    with pytest.raises(SettingError, match=message):
        raise error
    (field,) = changed
    assert error.field == field.replace("__", ".")


def test_a_fraction_of_the_images_must_hold_a_batch():
    error = refuse(configured(defense__data_fraction=0.2))
    assert str(error) == "defense.batch_size = 256: allowed: at most the 200 clean images"


NUMBERS = {field: kind for field, kind in fields._types().items() if kind in (int, float)}
# A ConfigDict makes 1.0 of a True that is put where a float belongs, before anyone can look at it.
NO_NUMBERS = {int: (True, math.nan, math.inf, 1.5, "3", (3,)), float: (math.nan, math.inf, -math.inf, "3", (3,))}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in NUMBERS for value in NO_NUMBERS[NUMBERS[field]]]
)
def test_where_a_number_belongs_nothing_else_may_stand(field, value):
    *sections, name = field.split(".")
    config = section = settings.default()
    for part in sections:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    error = refuse(config)
    assert error.field == field
    assert error.value is value
    assert error.allowed in ("a whole number", "a finite number")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("dataset__name", 3, "a text"), ("defense__names", "refine", "a tuple"), ("attack__wanet__noise", 1, "true")],
)
def test_other_types_are_held_to_as_well(field, value, allowed):
    *sections, name = field.split("__")
    config = section = settings.default()
    for part in sections:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    error = refuse(config)
    assert (error.field, error.value) == (field.replace("__", "."), value)
    assert error.allowed.startswith(allowed)


def test_a_field_that_is_not_open_cannot_be_left_out():
    config = settings.default()
    with config.victim.ignore_type():
        config.victim.epochs = None
    assert str(refuse(config)) == "victim.epochs = None: allowed: a whole number"


def test_whole_numbers_may_stand_for_numbers():
    assert settings.complete(configured(victim__learning_rate=1))["victim"]["learning_rate"] == 1.0


def test_an_unknown_field_in_a_file_is_refused_too():
    config = settings.default()
    config.victim.epoch = 3
    assert str(refuse(config)).startswith("victim.epoch = 3: allowed: no other fields than")


def test_a_configuration_that_does_not_begin_with_the_default_is_told_to():
    with pytest.raises(RefineError, match=r"has no attack\.\S+: .*begins with settings.default"):
        settings.complete(ml_collections.ConfigDict({"seed": 0}))


def test_every_name_there_is_may_be_chosen():
    for name in attacks.names():
        settings.complete(configured(attack__name=name))
    for name in networks.names():
        settings.complete(configured(victim__name=name))
    for name in datasets.names():
        settings.complete(configured(dataset__name=name))


def test_an_imported_victim_has_no_settings_of_a_training():
    preprocessing = {"mean", "std", "channels", "input_size"}
    resolved = settings.complete(configured(victim__checkpoint="a.pth", attack__name="none"))
    assert set(resolved["victim"]) == {"name", "workdir", "checkpoint", *preprocessing}
    chosen = settings.complete(configured(victim__checkpoint="a.pth", victim__entry="ema", attack__name="none"))
    assert chosen["victim"] == {**resolved["victim"], "entry": "ema"}
    assert set(resolved["attack"]) == {"name", "target", "rate", "triggered_root"}
    trained = settings.complete(configured())
    assert not {"checkpoint", *preprocessing} & {*trained["victim"]}
    assert "triggered_root" not in trained["attack"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attack__name": "none"}, r"attack.name = 'none': allowed: badnets"),
        ({"victim__entry": "net"}, r"victim.entry = 'net': allowed: nothing without victim.checkpoint"),
        ({"victim__mean": (0, 0, 0)}, r"victim.mean = .*: allowed: nothing without victim.checkpoint"),
        ({"attack__triggered_root": "x"}, r"attack.triggered_root = 'x': allowed: nothing without victim.checkpoint"),
        ({"victim__checkpoint": "a", "victim__workdir": "b"}, r"victim.workdir = 'b': allowed: nothing with"),
        (
            {"victim__checkpoint": "a", "attack__triggered_root": "b"},
            r"attack.triggered_root = 'b': allowed: only with",
        ),
        ({"victim__checkpoint": "a", "victim__mean": (1, 2)}, r"victim.mean = .*: allowed: three numbers"),
        ({"victim__checkpoint": "a", "victim__std": (1, 0, 1)}, r"victim.std = .*: allowed: three numbers.*above 0"),
        ({"victim__checkpoint": "a", "victim__channels": "GBR"}, r"victim.channels = 'GBR': allowed: RGB, BGR"),
        ({"victim__checkpoint": "a", "victim__input_size": 0}, r"victim.input_size = 0: allowed: 1 to 4096"),
    ],
)
def test_settings_of_an_import_that_cannot_be_are_refused(changed, message):
    with pytest.raises(SettingError, match=message):
        settings.complete(configured(**changed))
