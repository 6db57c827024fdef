"""examples/evaluate_torch.py: an export's U-Net in PyTorch says what it says here."""

import runpy
import sys

import jax
import numpy as np
import pytest

from refine_jax import export
from tests.examples.test_evaluate_exported import ROOT
from tests.small_defense import make, picture, registered

pytest.importorskip("torch")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with registered():
        yield


@pytest.mark.parametrize("unet_input", ["unit", "normalized"])
def test_transformed_images_are_those_of_the_run(tmp_path, monkeypatch, unet_input):
    defended = make(unet_input, None)
    export.save(defended, tmp_path / "export")
    images = picture(3)
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("export", "images.npy", "output.npz")]
    monkeypatch.setattr(sys, "argv", ["evaluate_torch.py", *paths])
    runpy.run_path(str(ROOT / "examples" / "evaluate_torch.py"), run_name="__main__")
    written = np.load(tmp_path / "output.npz")
    wanted = jax.jit(lambda d, x: d.transform(x))(defended, images.astype(np.float32) / 255)
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(written["transformed"], wanted, atol=1e-5)
    np.testing.assert_array_equal(written["permutation"], defended.permutation)
