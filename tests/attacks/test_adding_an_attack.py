"""docs/adding_an_attack.md, done word for word."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from refine_jax import attacks
from refine_jax.attacks import registry
from refine_jax.errors import SettingError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adding_an_attack.md"


@pytest.fixture
def sinusoid(tmp_path, monkeypatch):
    """The page's file as a module, and the page's line in the registry."""
    file, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    path = tmp_path / "sinusoid.py"
    path.write_text(file)
    spec = importlib.util.spec_from_file_location("sinusoid", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entries = eval("{" + line + "}", {"sinusoid": module})
    for name, definition in entries.items():
        monkeypatch.setitem(registry.ATTACKS, name, definition)
    return module


@pytest.mark.usefixtures("sinusoid")
def test_it_is_an_attack_like_the_others():
    assert attacks.names()[-1] == "sinusoid"
    assert attacks.options("sinusoid") == {"amplitude": 20.0, "frequency": 6.0}
    attack = attacks.build("sinusoid", 32, target=3, amplitude=30.0, seed=5)
    images = np.full((50, 32, 32, 3), 100, np.uint8)
    triggered = attack.trigger(images)
    stripes = triggered[0, 0, :, 0].astype(int) - 100
    assert 28 <= stripes.max() <= 30
    assert -30 <= stripes.min() <= -28
    # Six waves across the image, and the same in every row, channel and image.
    assert np.abs(np.fft.rfft(stripes)).argmax() == 6
    assert (triggered == triggered[:1, :1, :, :1]).all()

    poisoned = attack.poison(images, np.arange(50) % 10, jax.random.key(0))
    assert len(poisoned.indices) == 5
    np.testing.assert_array_equal(poisoned.images[poisoned.indices], triggered[:5])
    assert (poisoned.labels[poisoned.indices] == 3).all()

    again = attacks.rebuild(attacks.describe(attack), attack.arrays)
    np.testing.assert_array_equal(again.trigger(images), triggered)


@pytest.mark.usefixtures("sinusoid")
def test_its_options_are_checked():
    with pytest.raises(SettingError, match=r"attack\.sinusoid\.amplitud = .*did you mean 'amplitude'"):
        attacks.build("sinusoid", 32, amplitud=3)
    with pytest.raises(SettingError, match=r"attack\.sinusoid\.frequency = -1"):
        attacks.build("sinusoid", 32, frequency=-1)
