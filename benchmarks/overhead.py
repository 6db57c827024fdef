"""What defenses cost beside the classifier alone: training, answers, memory, parameters; by network.

    python -m benchmarks.overhead [--networks resnet18] [--defenses refine,shrinkpad,gaussian_blur,jpeg,bit_depth]
                                  [--config configs/digits.py] [--size 16] [--batch 1,64] [--devices 1] [--steps 4]
                                  [--seconds 1] [--rounds 5] [--json FILE] [--config.FIELD=VALUE ...]

Widths, batches of the trainings and all other settings are those of the configuration; weights and images are random,
since their content costs nothing. Printed are, as medians over rounds in which everything is timed in turn, with the
least and the greatest,
- train: the time of a training image of the defense, in training images of the victim, by the speeds that a run
  reports: in a training of two epochs of so many steps, without its first. A defense of several trainings goes once
  through each. What a whole training takes depends on how many epochs it has: `train_seconds` of a run;
- trained: numbers that are trained; kept: those that the defended classifier has beside the victim's;
- step MB: what XLA plans for the largest training step, what it is given and what it needs beside that; x: in the
  victim's. On one device only;
- for each batch, time: of the defended answers to it, in answers of the victim alone; ms more: what an image takes
  beside those; MB and x: as above, of the answers.
"""

import argparse
import contextlib
import json
import logging
import pathlib
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np

from refine_jax import command_line, ending, environment, networks, settings, victim
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Dataset, Split
from refine_jax.defenses import registry
from refine_jax.errors import RefineError, SettingError, choose
from refine_jax.sweep.plan import apply
from refine_jax.training import parallel
from refine_jax.training.compilation import keep_compiled
from refine_jax.training.state import count_parameters

K, EPOCHS = 10, 2
DEFENSES = ("refine", "shrinkpad", "gaussian_blur", "jpeg", "bit_depth")
# Of a training that is to be short: nothing of these changes what a step is.
SHORT = {"rounds": 1, "data_fraction": 1.0, "checked": 8}

Row = dict[str, Any]


def shortened(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a training that lasts for `EPOCHS`, and otherwise is as it was."""
    short: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            short[name] = shortened(value)
        else:
            short[name] = EPOCHS if name.endswith("epochs") else SHORT.get(name, value)
    return short


def make_dataset(count: int, size: int) -> Dataset:
    """Returns random images, and labels of `K` classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    split = Split(images, (np.arange(count) % K).astype(np.int32))
    return Dataset("random", split, split, tuple(map(str, range(K))), (0.5,) * 3, (0.25,) * 3)


@contextlib.contextmanager
def planned() -> Iterator[list[int]]:
    """Collects what XLA plans, in bytes, for each training step that one device compiles as long as this lasts."""
    found: list[int] = []

    def compile_training(function: Callable, **options: Any) -> Callable:
        jitted, programs = make(function, **options), {}

        def call(*arguments: Any) -> Any:
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
            if shapes not in programs:
                programs[shapes] = jitted.lower(*arguments).compile()
                found.append(planned_bytes(programs[shapes]))
            return programs[shapes](*arguments)

        return call

    make = parallel.compile_training
    with mock.patch.object(parallel, "compile_training", compile_training):
        yield found


def planned_bytes(program: Any) -> int:
    """Returns the bytes that a compiled program is given, and those that it needs beside that."""
    plan = program.memory_analysis()
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


class Training:
    """The trainings of one network's victim, and of its defenses.

    Args:
        resolved: From `settings.complete`, with the defenses among its names.
        size: Side of the images.
        steps: Batches of an epoch.
    """

    def __init__(self, resolved: Mapping[str, Any], size: int, steps: int):
        self._size, self._steps = size, steps
        self._settings, self._execution = resolved, parallel.Execution.of(resolved)
        self.classifier: Classifier | None = None

    def victim(self) -> tuple[float, int]:
        """Trains the victim; returns seconds an image and the bytes of the largest step."""
        section = shortened(self._settings["victim"])
        dataset = make_dataset(self._steps * section["batch_size"], self._size)
        with planned() as found:
            outcome = victim.train_benign(dataset, section, 0, None, self._execution)
        if outcome.images_per_second is None:
            raise RefineError("--steps: too few to be timed")
        self.classifier = victim.to_classifier(outcome.state.variables, dataset, section)
        return 1 / outcome.images_per_second, max(found, default=0)

    def defense(self, name: str) -> tuple[Any, float | None, int, int]:
        """Fits a defense; returns it, seconds an image (None: untrained), trained numbers, bytes as above."""
        section = shortened(registry.settings_of(name, self._settings["defense"]))
        largest = max((of["batch_size"] for of in (section, section.get("copy", {})) if "batch_size" in of), default=1)
        split = make_dataset(self._steps * largest, self._size).train
        module = registry.DEFENSES[name]
        clean = split if module.NEEDS.labels else Split.unlabeled(split.images)
        with planned() as found:
            fitted = module.fit(self.classifier, clean, section, 0, K, None, self._execution)
        speed = fitted.train_images_per_second
        return fitted.defended, None if speed is None else 1 / speed, fitted.parameters, max(found, default=0)


def trainings(training: Training, names: Sequence[str], rounds: int) -> tuple[dict[str, Any], dict[str, Row]]:
    """Trains all in turn, round after round; returns the defended classifiers, and what their trainings cost."""
    defended: dict[str, Any] = {}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Row] = {}
    for number in range(rounds):
        of_victim, bytes_of_victim = training.victim()
        for name in names:
            if number and not ratios[name]:
                continue  # nothing is trained
            defended[name], seconds, parameters, step = training.defense(name)
            rows.setdefault(name, {"trained": parameters, "step_bytes": step, "victim_step_bytes": bytes_of_victim})
            if seconds is not None:
                ratios[name].append(seconds / of_victim)
    for name in names:
        rows[name]["train"] = spread(ratios[name]) if ratios[name] else None
        rows[name]["kept"] = kept(defended[name], training.classifier)
    return defended, rows


def kept(defended: Any, classifier: Any) -> int:
    """Returns how many numbers a defended classifier consists of beside the victim's."""
    return count_parameters(defended) - count_parameters(classifier)


def answers(
    classifier: Any, defended: Mapping[str, Any], images: np.ndarray, seconds: float, rounds: int
) -> dict[str, Row]:
    """Times the answers to a batch in turn, of the classifier alone and behind each defense.

    Args:
        classifier: The victim; gives logits.
        defended: Name to what gives probabilities.
        images: Float in [0, 1]. [N, H, W, 3]
        seconds: That one of them is timed for, about.
        rounds: How often.

    Returns:
        A row for each defense: 'time' (in the victim's), 'milliseconds_more' an image, 'bytes', 'victim_bytes'.
    """
    predict = jax.jit(lambda network, images: network(images))
    shown = jax.device_put(images)
    everything = {"": classifier, **defended}
    programs = {name: predict.lower(network, shown).compile() for name, network in everything.items()}

    def timed(name: str, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            said = programs[name](everything[name], shown)
        jax.block_until_ready(said)
        return (time.perf_counter() - start) / calls

    once = {name: timed(name, 1) and timed(name, 1) for name in programs}  # the first call does not count
    calls = {name: max(1, round(seconds / max(once[name], 1e-9))) for name in programs}
    times = [{name: timed(name, calls[name]) for name in programs} for _ in range(rounds)]
    return {
        name: {
            "time": spread([row[name] / row[""] for row in times]),
            "milliseconds_more": spread([1000 * (row[name] - row[""]) / len(images) for row in times]),
            "bytes": planned_bytes(programs[name]),
            "victim_bytes": planned_bytes(programs[""]),
        }
        for name in defended
    }


def resolve(arguments: argparse.Namespace, rest: Sequence[str], network: str) -> dict[str, Any]:
    """Returns the settings of one network's runs.

    Raises:
        RefineError: A field, a name or a value cannot be.
    """
    path = command_line.check_file(arguments.config)
    variant = arguments.config.partition(":")[2]
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(variant) if variant else get_config()
    apply(config, dict(map(command_line.read_field, rest)))
    config.victim.name, config.defense.names = network, tuple(arguments.defenses)
    if network in networks.names() and "width" not in networks.options(network):
        config.victim.width = settings.default().victim.width  # the configuration's is that of another network
    config.run.devices = arguments.devices
    resolved = settings.complete(config)
    victim.check(resolved["victim"], make_dataset(K, arguments.size))
    for name in arguments.defenses:
        own = registry.settings_of(name, resolved["defense"])
        size = (arguments.size, arguments.size)
        registry.DEFENSES[name].check(registry.section(name), own, 1_000_000, size)
    return resolved


def print_row(network: str, name: str, row: Mapping[str, Any]) -> None:
    """Prints what one defense costs in front of one network."""
    print(f"{network}, {name}: {row['trained']:,} trained, {row['kept']:,} kept")
    if row["train"]:
        memory = _memory(row["step_bytes"], row["victim_step_bytes"])
        print(f"    train: {_shown(row['train'])} of the victim's{memory}")
    for batch, of in row["answers"].items():
        more = f"{_shown(of['milliseconds_more'], '.3g')} ms more an image"
        print(f"    batch {batch}: time {_shown(of['time'])}, {more}" + _memory(of["bytes"], of["victim_bytes"]))


def _shown(figure: Mapping[str, float], form: str = ".2f") -> str:
    return f"{figure['median']:{form}} ({figure['least']:{form}} to {figure['greatest']:{form}})"


def _memory(own: int, victims: int) -> str:
    return f", {own / 1e6:.2f} MB, {own / victims:.2f} x" if own and victims else ""


def measure(
    arguments: argparse.Namespace,
    resolved: Mapping[str, Mapping[str, Any]],
    keep: Callable[[dict[str, dict[str, Row]]], None] = lambda results: None,
) -> dict[str, dict[str, Row]]:
    """Measures and prints what every defense costs in front of every network, whose settings are given.

    Hands what there is to `keep` after every network.
    """
    results: dict[str, dict[str, Row]] = {}
    for network, own in resolved.items():
        training = Training(own, arguments.size, arguments.steps)
        defended, rows = trainings(training, arguments.defenses, arguments.rounds)
        images = make_dataset(max(arguments.batch), arguments.size).test.images / np.float32(255)
        for batch in arguments.batch:
            timed = answers(training.classifier, defended, images[:batch], arguments.seconds, arguments.rounds)
            for name, row in timed.items():
                rows[name].setdefault("answers", {})[str(batch)] = row
        for name, row in rows.items():
            print_row(network, name, row)
        results[network] = rows
        keep(results)
    return results


def parse(given: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """Reads a command line, of this process where none is given; returns it, and the settings of every network.

    Raises:
        SystemExit: A flag, a name, a field or a value cannot be; the reason is printed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--networks", type=names, default=["resnet18"], help=f"some of {', '.join(networks.names())}")
    parser.add_argument("--defenses", type=names, default=DEFENSES, help=f"some of {', '.join(registry.names())}")
    parser.add_argument("--config", default="configs/digits.py", help="whose settings, also PATH:VARIANT")
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument(
        "--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 64], help="of answers"
    )
    parser.add_argument("--devices", type=int, default=1, help="of the trainings")
    parser.add_argument("--steps", type=int, default=4, help="batches of an epoch of a training; there are two epochs")
    parser.add_argument("--seconds", type=float, default=1.0, help="that one of the answers is timed for in a round")
    parser.add_argument("--rounds", type=int, default=5, help="in which all are timed in turn")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments, rest = parser.parse_known_args(given)
    arguments.fields = rest
    try:
        for flag in ("size", "devices", "steps", "rounds"):
            if getattr(arguments, flag) < 1:
                raise SettingError(f"--{flag}", getattr(arguments, flag), "1 or more")
        if min(arguments.batch) < 1:
            raise SettingError("--batch", min(arguments.batch), "1 or more, each")
        if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
            raise SettingError("--json", str(arguments.json), "a file in a directory that is there")
        for flag, there in (("networks", networks.names()), ("defenses", registry.names())):
            for name in getattr(arguments, flag):
                choose(f"--{flag}", name, there)
        return arguments, {network: resolve(arguments, rest, network) for network in arguments.networks}
    except RefineError as error:
        parser.error(str(error))


def main() -> int:
    """Prints a table, and writes JSON where asked to; returns the exit status."""
    arguments, resolved = parse()
    described = {"environment": environment.describe(), "arguments": vars(arguments)}

    def keep(results: Mapping[str, Mapping[str, Row]]) -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(described | {"networks": results}, indent=2, default=str) + "\n")

    def run() -> str:
        # Programs of the first round are there in the next; those of another process are not.
        with tempfile.TemporaryDirectory() as folder:
            keep_compiled(pathlib.Path(folder))
            measure(arguments, resolved, keep)
        return f"medians (least to greatest) of {arguments.rounds} rounds"

    # What defenses find amiss of a classifier of noise is no news.
    logging.getLogger("refine_jax").setLevel(logging.ERROR)
    return ending.print_outcome(run)


if __name__ == "__main__":
    sys.exit(main())
