"""docs/defend_your_model.md as it is written, on the demo's victim and on a ResNet-18 that PyTorch has trained."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from refine_jax import attacks, datasets

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "defend_your_model.md").read_text()
MEAN, STD = (0.3,) * 3, (0.32,) * 3
# The page's own trainings take minutes.
SHORT = ("--config.defense.epochs=1", "--config.defense.width=2", "--config.defense.depth=1")
# A victim that has learned little, as the demo leaves one: what it has learned does not matter to the command.
DEMO = "launch.py --config=configs/digits.py --workdir=runs/demo --stages=victim --config.victim.epochs=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to follow the page in, with the pictures of its first section."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("launch.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    run(folder, "-c", re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0])
    return folder


def run(folder, *arguments):
    """Runs Python there; returns what it prints."""
    kept = {"PYTHONPATH": str(ROOT), "REFINE_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, *arguments]
    done = subprocess.run(program, cwd=folder, env={**os.environ, **kept}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(workdir):
    """The page's command with this working directory, made short."""
    commands = re.findall(r"^    python (launch\.py .*)$", re.sub(r"\\\n\s*", "", PAGE), re.MULTILINE)
    (found,) = [line for line in commands if f"--workdir={workdir} " in line]
    return [*shlex.split(found), *SHORT]


def train_on_poisoned(torch_resnets, digits, attack):
    """A small ResNet-18 with a backdoor."""
    torch_resnets.torch.manual_seed(0)
    poisoned = attack.poison(digits.train.images, digits.train.labels, jax.random.key(0))
    images = torch_resnets.tensors(np.asarray(poisoned.images[:]), MEAN, STD)
    return torch_resnets.train(torch_resnets.ResNet18(width=8), images, poisoned.labels, epochs=8)


def test_the_page_can_be_tried_on_what_the_demo_leaves(place):
    run(place, *shlex.split(DEMO))
    assert "ASR" in run(place, *command("runs/mine"))
    results = json.loads((place / "runs" / "mine" / "results.json").read_text())
    imported = results["victim"]["imported"]
    assert (imported["format"], {*imported["preprocessing_from"].values()}) == ("refine-jax", {"the file"})
    assert results["defenses"]["refine"]["counts"]["mapped_asr"][1] > 0


def test_the_page_leads_from_a_file_of_pytorch_to_a_defended_model(place):
    from tests import torch_resnets  # skips this test alone where there is no PyTorch

    digits, attack = datasets.load("digits"), attacks.build("badnets", 16, target=0, rate=0.1)
    network = train_on_poisoned(torch_resnets, digits, attack)
    torch_resnets.torch.save(network.state_dict(), place / "suspicious.pth")
    assert "ASR" in run(place, *command("runs/mine_file"))

    # What the classifier answers is what it answers in PyTorch, but for ties that rounding decides.
    results = json.loads((place / "runs" / "mine_file" / "results.json").read_text())
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
    manifest = json.loads((place / "runs" / "mine_file" / "export" / "manifest.json").read_text())
    assert manifest["class_names"] == list("0123456789")
