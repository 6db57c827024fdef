"""docs/defend_your_model.md as it is written, on a ResNet-18 that a plain loop of PyTorch has given a backdoor."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np

from refine_jax import attacks, datasets
from tests import torch_resnets

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "defend_your_model.md").read_text()
MEAN, STD = (0.3,) * 3, (0.32,) * 3
# The page's own training takes minutes.
SHORT = ("--config.defense.epochs=1", "--config.defense.width=2", "--config.defense.depth=1")


def train_on_poisoned(digits, attack):
    """A small ResNet-18 with a backdoor."""
    torch_resnets.torch.manual_seed(0)
    poisoned = attack.poison(digits.train.images, digits.train.labels, jax.random.key(0))
    images = torch_resnets.tensors(np.asarray(poisoned.images[:]), MEAN, STD)
    return torch_resnets.train(torch_resnets.ResNet18(width=8), images, poisoned.labels, epochs=8)


def test_the_page_leads_from_a_file_of_pytorch_to_a_defended_model(tmp_path):
    digits, attack = datasets.load("digits"), attacks.build("badnets", 16, target=0, rate=0.1)
    network = train_on_poisoned(digits, attack)
    torch_resnets.torch.save(network.state_dict(), tmp_path / "suspicious.pth")
    (tmp_path / "launch.py").symlink_to(ROOT / "launch.py")
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    code = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    (command,) = re.findall(r"^    python (launch\.py .*)$", re.sub(r"\\\n\s*", "", PAGE), re.MULTILINE)
    kept = {"PYTHONPATH": str(ROOT), "REFINE_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    for arguments in (["-c", code], [*shlex.split(command), *SHORT]):
        program = [sys.executable, *arguments]
        done = subprocess.run(program, cwd=tmp_path, env={**os.environ, **kept}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "ASR" in done.stdout

    # What the classifier answers is what it answers in PyTorch, but for ties that rounding decides.
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    labels, counts = digits.test.labels, results["no_defense"]["counts"]
    clean, triggered = (
        torch_resnets.answers(network, torch_resnets.tensors(images, MEAN, STD))
        for images in (digits.test.images, attack.trigger(digits.test.images))
    )
    expected = {
        "ba": clean == labels,
        "asr": (triggered == 0)[labels != 0],
        "ra": (triggered == labels)[labels != 0],
    }
    for name, hits in expected.items():
        assert counts[name][1] == len(hits)
        assert abs(counts[name][0] - hits.sum()) <= 1, name
    assert expected["asr"].mean() > 0.8  # it has a backdoor
    imported = results["victim"]["imported"]
    assert (imported["format"], imported["warnings"]) == ("state dict", [])
    assert results["defenses"]["refine"]["counts"]["mapped_asr"][1] > 0
    manifest = json.loads((tmp_path / "runs" / "mine" / "export" / "manifest.json").read_text())
    assert manifest["class_names"] == list("0123456789")
