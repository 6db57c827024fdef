"""docs/black_box.md, run as it stands."""

import pathlib
import re
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import refine_jax as rj
from refine_jax.datasets import digits
from refine_jax.defenses.blackbox import settings as own_settings
from refine_jax.defenses.blackbox import substitute
from refine_jax.defenses.blackbox.learned import Learned
from refine_jax.networks.unet import UNet
from tests.defenses.blackbox.counting import SIDE, Counting, K, images

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / "docs" / "black_box.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture(name="service")
def service_fixture():
    return types.SimpleNamespace(classify=lambda images: np.full((len(images), 10), 0.1))


def test_the_oracle_asks_as_the_page_says(service, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(CODE[0], {"service": service})
    printed = capsys.readouterr().out.strip()
    assert f"print(oracle.queries, oracle.calls, oracle.left)  # {printed}\n" in CODE[0]


def test_the_pages_settings_are_possible_and_its_call_defends(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {}
    exec(CODE[1].partition("settings =")[1] + CODE[1].partition("settings =")[2], given)
    whole = own_settings.complete(given["settings"], substitute.DEFAULTS)
    own_settings.check("substitute", whole, 1000, (16, 16))

    learned = []

    def learn(oracle, images, settings, seed, journal):
        learned.append((settings, journal.checkpoints.parent.name))
        unet = UNet(width=2, depth=1)
        variables = unet.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
        return Learned(unet, variables, jnp.array([1, 2, 3, 0]), 0.0, None, 0, {"queries": 7})

    monkeypatch.setattr(substitute, "learn", learn)
    victim = Counting()
    space = {"rj": rj, "images": images(9), "settings": {"batch_size": 4, "depth": 1, "copy": {"batch_size": 4}}}
    space["oracle"] = rj.blackbox.Oracle(victim, K, (SIDE, SIDE))
    exec(CODE[2], space)
    assert capsys.readouterr().out == "{'queries': 7}\n"
    assert learned[0][1] == "defended"
    assert learned[0][0]["copy"]["name"] == "resnet18"
    assert space["probabilities"].shape == (8, K)
    assert victim.images == 8


def test_the_pages_counts_are_those_of_the_digits():
    section = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]().defense
    images, both = len(digits.load().train.images), {}
    own = section.refine_substitute
    both["substitute"] = images + own.checked
    own = section.refine_zeroth_order
    steps = images // own.batch_size * own.epochs
    both["zeroth_order"] = images + own.checked + steps * 2 * own.directions * own.batch_size
    assert f"| with the digits' settings | {both['substitute']:,} | {both['zeroth_order']:,} |" in PAGE.read_text()
