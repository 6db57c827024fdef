"""Images per second of a training step, ours and that of the authors' released program, on this machine.

    python -m benchmarks.reference --checkout DIR [--batch 32] [--rounds 5] [--steps 2] [--json FILE]

DIR is a checkout of the released program; torch has to be installed. Both run in float32 on the CPU, PyTorch in its
channels-last layout, in turns: each round times the one and then the other, so that what else the machine does meets
both. ResNet-18 and U-Net have their full width of 64. Weights are random; images are too, since their content costs
nothing. Augmentation is part of our step and, as a data loader's work, not of theirs.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refine_jax import environment, networks, victim
from refine_jax.classifier import Classifier
from refine_jax.defenses import mapping, refine
from refine_jax.networks.unet import UNet
from refine_jax.training import optimizer
from refine_jax.training.compilation import compile_training
from refine_jax.training.state import create_train_state

K, SIDE, POOL = 10, 32, 512
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

Step = Callable[[], float]


def our_refine(images: np.ndarray, batch: int) -> Step:
    """One step of the U-Net's training; returns the loss, so that the step has come to its end."""
    network = networks.build("resnet18", K)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    settings = refine.complete({"batch_size": batch})
    unet = UNet(width=64)
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, POOL // batch))
    state = create_train_state(unet, tx, jax.random.key(1), (SIDE, SIDE))
    data = {
        "images": jnp.asarray(images),
        "classifier": Classifier("resnet18", variables, K, MEAN, STD),
        "permutation": mapping.derangement(jax.random.key(2), K),
        "key": jax.random.key(3),
    }
    step = compile_training(refine.train_step(unet, tx, refine.Objective.of(settings)), donate_argnums=0)
    return _keep_state(step, state, data, batch)


def our_victim(images: np.ndarray, batch: int) -> Step:
    """One step of the victim's training."""
    network = networks.build("resnet18", K)
    settings = {**optimizer.DEFAULTS, "learning_rate": 0.1, "decay": 0.1}
    tx = optimizer.create_optimizer(settings, optimizer.create_schedule(settings, POOL // batch))
    state = create_train_state(network, tx, jax.random.key(1), (SIDE, SIDE))
    data = {
        "images": jnp.asarray(images),
        "labels": jnp.arange(POOL) % K,
        "is_poisoned": jnp.zeros(POOL, bool),
        "mean": jnp.asarray(MEAN),
        "std": jnp.asarray(STD),
        "key": jax.random.key(3),
    }
    step = compile_training(victim.train_step(network, tx, lambda images, *_: images), donate_argnums=0)
    return _keep_state(step, state, data, batch)


def _keep_state(step: Callable, state: Any, data: Any, batch: int) -> Step:
    kept = [state]
    indices = {"indices": np.arange(batch, dtype=np.int32)}

    def run() -> float:
        kept[0], metrics = step(kept[0], data, indices)
        return float(metrics["loss"])

    return run


class Released:
    """The released program's parts, from a checkout, and its two training steps on the CPU.

    Args:
        checkout: Its folder.
        images: uint8. [N, 32, 32, 3]
        batch: Images a step.
    """

    def __init__(self, checkout: pathlib.Path, images: np.ndarray, batch: int):
        import torch

        self.torch = torch
        resnet, unet, losses = (
            _module(checkout / path) for path in ("core/models/resnet.py", "utils/unet.py", "utils/losses.py")
        )
        self._batch = torch.from_numpy(images[:batch].transpose(0, 3, 1, 2).copy()).float() / 255
        self._batch = self._batch.to(memory_format=torch.channels_last)
        self._make_network = lambda: resnet.ResNet(18, K).to(memory_format=torch.channels_last)
        self._unet = unet.UNetLittle(args=None, n_channels=3, n_classes=3, first_channels=64)
        self._unet = self._unet.to(memory_format=torch.channels_last)
        self._contrastive = losses.SupConLoss()

    def refine(self) -> Step:
        """One step as in its refine.py: binary cross-entropy through the mapping, and two equal views."""
        torch = self.torch
        images, network, unet = self._batch, self._make_network().eval(), self._unet.train()
        network.requires_grad_(False)
        descent = torch.optim.SGD(unet.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        permutation = torch.roll(torch.arange(K), 1).repeat(len(images), 1)

        def run() -> float:
            labels = network(images).argmax(1)
            targets = torch.nn.functional.one_hot(labels, K).float()
            transformed = unet(images).clamp(0, 1)
            probabilities = network(transformed).softmax(1)
            probabilities = torch.zeros_like(probabilities).scatter(1, permutation, probabilities)
            features = torch.nn.functional.normalize(transformed.reshape(len(images), -1), dim=1)
            loss = torch.nn.functional.binary_cross_entropy(probabilities, targets)
            loss = loss + 0.1 * self._contrastive(torch.stack([features, features], 1), labels)
            descent.zero_grad()
            loss.backward()
            descent.step()
            return loss.item()

        return run

    def victim(self) -> Step:
        """One step of a classifier's training."""
        torch = self.torch
        images, network = self._batch, self._make_network().train()
        labels = torch.arange(len(images)) % K
        descent = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

        def run() -> float:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            descent.zero_grad()
            loss.backward()
            descent.step()
            return loss.item()

        return run


def _module(path: pathlib.Path) -> ModuleType:
    """Imports one file; its package would import everything, and what that needs."""
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{path}: not there; --checkout is the folder of the released program, the one with refine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(ours: Step, theirs: Step, batch: int, rounds: int, steps: int) -> list[dict[str, float]]:
    """Times both in turns, after two steps of each that do not count.

    Returns:
        A dict a round: images per second of both, and 'ratio', ours over theirs.
    """
    for step in (ours, theirs):
        step(), step()
    outcome = []
    for _ in range(rounds):
        speed = {}
        for name, step in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            for _ in range(steps):
                step()
            speed[name] = steps * batch / (time.perf_counter() - start)
        outcome.append({**speed, "ratio": speed["ours"] / speed["theirs"]})
    return outcome


def main() -> None:
    """Prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=pathlib.Path, required=True, help="folder of the released program")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are timed in turn")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed at once")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()

    images = np.random.default_rng(0).integers(0, 256, (POOL, SIDE, SIDE, 3), np.uint8)
    released = Released(arguments.checkout, images, arguments.batch)
    pairs = {
        "refine": lambda: (our_refine(images, arguments.batch), released.refine()),
        "victim": lambda: (our_victim(images, arguments.batch), released.victim()),
    }
    results: dict[str, Any] = {"environment": environment.describe(), "batch": arguments.batch}
    print(f"{'step':8}{'round':>6}{'ours':>10}{'theirs':>10}{'ratio':>8}   images per second")
    for name, make in pairs.items():
        rows = compare(*make(), arguments.batch, arguments.rounds, arguments.steps)
        for number, row in enumerate(rows, start=1):
            print(f"{name:8}{number:6}{row['ours']:10.2f}{row['theirs']:10.2f}{row['ratio']:8.2f}", flush=True)
        median = statistics.median(row["ratio"] for row in rows)
        print(f"{name:8}{'median':>6}{median:28.2f}")
        results[name] = {"rounds": rows, "median_ratio": median}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
