"""Images per second of what feeds a training: augmentation, and streams from the host, beside what a step consumes.

    python -m benchmarks.feed [--size 224] [--batch 64] [--workers 0 1] [--batches 20] [--steps 2] [--json FILE]

Needs ImageNet-50 to be built, from whatever classes (docs/imagenet50.md; --classes and --per_class as it was built).
Measured are
- the augmentation of either training by itself, compiled as in the step;
- one picture after another, decoded and cropped by a single thread without Grain;
- streams of batches: of pictures that are decoded and cropped when they are read, by threads (0 workers) and by worker
  processes, and of images that were decoded before and are mapped from a file. The first half of a stream's batches,
  some of which wait for workers to begin, does not count;
- a step of victim and defense, with the networks of configs/imagenet50.py, or --width of both.
A training is fed as long as its stream is faster than its step.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import memory
from refine_jax import datasets, environment
from refine_jax.datasets.augment import random_flip
from refine_jax.datasets.feed import Feed
from refine_jax.defenses import refine
from refine_jax.training.compilation import compile_training

AUGMENTATIONS = {"victim": random_flip, "refine": refine.augment}


def augmentation(name: str, size: int, batch: int, steps: int) -> float:
    """Images per second of a training's augmentation alone."""
    run = compile_training(lambda images, key: AUGMENTATIONS[name](images.astype(jnp.float32) / 255, key))
    images = jnp.asarray(memory.random_batch(batch, size)["images"])
    jax.block_until_ready(run(images, jax.random.key(0)))
    start = time.perf_counter()
    for number in range(steps):
        jax.block_until_ready(run(images, jax.random.key(number)))
    return steps * batch / (time.perf_counter() - start)


def one_by_one(images: Any, count: int) -> float:
    """Images per second of this thread, decoding and cropping."""
    images[:1]
    start = time.perf_counter()
    images[np.arange(count) % len(images)]
    return count / (time.perf_counter() - start)


def stream(images: Any, batch: int, batches: int, workers: int) -> float:
    """Images per second of a stream, once it flows."""
    feed = Feed(len(images), batch, jax.random.key(0), keep_last=False, images=images, workers=workers)
    flow = feed.batches(0, 2 * batches)
    for _ in range(batches):
        next(flow)
    start = time.perf_counter()
    count = _drain(flow)
    return count / (time.perf_counter() - start)


def _drain(flow: Iterator[dict[str, np.ndarray]]) -> int:
    return sum(len(batch["indices"]) for batch in flow)


def step(name: str, size: int, batch: int, steps: int, width: int | None) -> float:
    """Images per second of a training's step."""
    return memory.measure(name, "imagenet_resnet18", size, batch, steps, remat=False, width=width)["images_per_second"]


def main() -> None:
    """Prints a table, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="where the data set is; as dataset.data_dir")
    parser.add_argument("--classes", type=int, help="how many it was built with; left out: the 50 published ones")
    parser.add_argument("--per_class", type=int, nargs=2, help="as dataset.per_class")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1], help="of processes; 0: threads")
    parser.add_argument("--batches", type=int, default=20, help="batches of a stream that count")
    parser.add_argument("--width", type=int, help="of the networks, instead of 64 and 32")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()

    size, batch, steps = arguments.size, arguments.batch, arguments.steps
    options = {"classes": arguments.classes, "per_class": arguments.per_class, "image_size": size}
    encoded, decoded = (
        datasets.load("imagenet50", data_dir=arguments.data_dir, decoded=kept, **options).train.images
        for kept in (False, True)
    )
    results: dict[str, Any] = {"environment": environment.describe(), **vars(arguments), "images_per_second": {}}
    del results["json"]

    def say(name: str, speed: float) -> None:
        results["images_per_second"][name] = speed
        print(f"{name:48}{speed:10.1f}", flush=True)

    print(f"{'images per second':48}")
    for name in AUGMENTATIONS:
        say(f"augmentation, {name}", augmentation(name, size, batch, arguments.batches))
    say("decode and crop, one thread", one_by_one(encoded, batch * arguments.batches))
    for workers in arguments.workers:
        who = f"{workers} worker processes" if workers else "threads"
        say(f"stream, decode and crop, {who}", stream(encoded, batch, arguments.batches, workers))
    say("stream, decoded before", stream(decoded, batch, arguments.batches, 0))
    for name in memory.CASES:
        say(f"step, {name}", step(name, size, batch, steps, arguments.width))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
