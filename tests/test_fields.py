"""The fields of a configuration."""

import json

import pytest

from refine_jax import fields, settings
from refine_jax.errors import SettingError


@pytest.mark.parametrize(
    ("field", "allowed", "nearest"),
    [
        ("victim.epoch", "victim.epochs, ", "victim.epochs"),
        ("victm.epochs", "attack, dataset, defense, precision, run, seed, victim", "victim.epochs"),
        ("victim", "victim.batch_size, ", "victim."),
        ("attack.badnets.weigth", "attack.badnets.pattern, attack.badnets.weight", "attack.badnets.weight"),
        ("sed", "seed", "seed"),
    ],
)
def test_an_unknown_field_is_answered_with_its_siblings_and_the_nearest(field, allowed, nearest):
    with pytest.raises(SettingError) as caught:
        fields.check_field(field, "3")
    assert caught.value.field == field
    assert allowed in caught.value.allowed
    assert f"(did you mean '{nearest}" in str(caught.value)


def test_every_field_is_known():
    for field in fields.names():
        fields.check_field(field, None)
        assert fields.type_of(field) in (*fields.KINDS, object)


def test_differences_name_what_changed_came_and_went():
    old = {"a": 1, "b": {"c": 2, "d": [1, 2], "gone": None}}
    new = {"a": 1, "b": {"c": 3, "d": [1, 3]}, "new": "x"}
    assert fields.differences(old, new) == [
        "b.c: 2 -> 3",
        "b.d: [1, 2] -> [1, 3]",
        "b.gone: None -> not there",
        "new: not there -> 'x'",
    ]
    assert fields.differences(old, json.loads(json.dumps(old))) == []


def test_a_field_follows_the_attack_until_it_is_set():
    config = settings.default()
    settings.vary_by_attack(config, "attack.rate", {"adaptive_patch": 0.03})
    settings.vary_by_attack(config, "victim.epochs", {"wanet": 6})

    def resolved(name):
        config.attack.name = name
        values = settings.complete(config)
        return values["attack"]["rate"], values["victim"]["epochs"]

    # The name may be chosen, and chosen again, after the field was made to follow it, as flags do.
    assert resolved("wanet") == (None, 6)
    assert resolved("adaptive_patch") == (0.03, 150)
    assert resolved("badnets") == (None, 150)
    config.attack.rate = 0.2
    config.victim.epochs = 3
    assert resolved("adaptive_patch") == resolved("wanet") == (0.2, 3)
    with pytest.raises(TypeError):
        config.victim.epochs = "many"
