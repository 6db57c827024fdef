"""Command lines that cannot be: launch.py ends each in one sentence and status 2, before any work."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Importing JAX takes seconds, so one process imports it once and is then forked for every command line.
PROGRAM = """
import json, os, runpy, sys
import refine_jax.pipeline

def run(arguments):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1), os.dup2(writing, 2), os.close(reading), os.close(writing)
        sys.argv = ["launch.py", *arguments]
        status = 0
        try:
            runpy.run_path("launch.py", run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 99
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said

print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
"""

FILES = {
    "syntax.py": "def get_config(:\n",
    "missing.py": "\nimport no_such_module\n",
    "empty.py": "",
    "plain.py": "def get_config():\n    return {}\n",
    "typo.py": "from refine_jax import settings\n\ndef get_config():\n    c = settings.default()\n    c.seed = 'x'\n",
    "reads.py": "def get_config():\n    open('no_such_file')\n",
    "own.py": "import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})\n",
}

DIGITS, WORKDIR = "--config=configs/digits.py", "--workdir={tmp}/run"

# Arguments after "--config=configs/digits.py --workdir=DIR", and the whole of what is said, as a pattern.
SETTINGS = {
    "--config.victim.epochs=0": "victim.epochs = 0: allowed: .*1 or more",
    "--config.victim.epochs=1.5": "victim.epochs = '1.5': allowed: a whole number",
    "--config.victim.epochs=": "victim.epochs = '': allowed: a whole number",
    "--config.victim.epochs": "victim.epochs = '': allowed: a whole number",
    "--config.victim.epochs many": "victim.epochs = 'many': allowed: a whole number",
    "--config.victim.width=abc": "victim.width = 'abc': allowed: a whole number",
    "--config.victim.width=True": "victim.width = 'True': allowed: a whole number",
    "--config.victim.learning_rate=fast": "victim.learning_rate = 'fast': allowed: a finite number",
    "--config.victim.learning_rate=nan": "victim.learning_rate = nan: allowed: a finite number",
    "--config.victim.learning_rate=-1": "victim.learning_rate = -1.0: allowed: .*above 0",
    "--config.victim.milestones=(0.5,": r"victim.milestones = '\(0.5,': allowed: a tuple, such as \(0.5, 0.75\)",
    "--config.victim.milestones=(0.5,1.5)": r"victim.milestones = \(0.5, 1.5\): allowed: .*between 0 and 1.*",
    "--config.victim.milestones=half": r"victim.milestones = \('half',\): allowed: .*between 0 and 1.*",
    "--config.victim.batch_size=100000": "victim.batch_size = 100000: allowed: at most the 1352 training images",
    "--config.defense.names=()": r"defense.names = \(\): allowed: one or more of refine.*",
    "--config.defense.names=refin": r"defense.names = 'refin': allowed: .*\(did you mean 'refine'\?\)",
    "--config.defense.depth=9": "defense.depth = 9: allowed: 1 to 4 for images of 16 x 16",
    "--config.defense.sup_weight=nan": "defense.sup_weight = nan: allowed: a finite number",
    "--config.attack.target=-1": "attack.target = -1: allowed: a class, counted from 0",
    "--config.attack.target=10": "attack.target = 10: allowed: a class of digits, 0 to 9",
    "--config.attack.rate=-0.1": "attack.rate = -0.1: allowed: above 0 and at most 1",
    "--config.attack.wanet.noise=maybe": "attack.wanet.noise = 'maybe': allowed: true or false",
    "--config.attack.badnets.weight=5": "attack.badnets.weight = 5.0: allowed: .*at most 1",
    "--config.dataset.train_images=0": "dataset.train_images = 0: allowed: 1 to 1352, .*",
    "--config.seed=-1": "seed = -1: allowed: 0 to 4294967295",
    "--config.seed=1099511627776": "seed = 1099511627776: allowed: 0 to 4294967295",
    "--config.victim.epoch=3": r"victim.epoch = '3': allowed: .*\(did you mean 'victim.epochs'\?\)",
    "--config.victm.epochs=3": r"victm.epochs = '3': allowed: .*\(did you mean 'victim.epochs'\?\)",
    "--config.victim=3": "victim = '3': allowed: no other fields than victim.adaptive.depth, .*",
    "--stages=foo": "stages = 'foo': allowed: victim, .*",
    "--stages=": "stages = '': allowed: some of victim, .*",
    "--stages=victim,,evaluate": "stages = '': allowed: victim, .*",
    "--overwrite=maybe": "overwrite = 'maybe': allowed: true or false",
    "--wrokdir=x": r"--wrokdir: no such flag, only --config, .*\(did you mean '--workdir'\?\)",
    "extra": "'extra' belongs to no flag: .*",
}

# Whole command lines.
OTHERS = {
    "": r"config = '': allowed: a file with a get_config\(\), such as .*configs/digits.py.*",
    WORKDIR: r"config = '': allowed: a file with a get_config\(\), such as .*configs/digits.py.*",
    DIGITS: "workdir = None: allowed: a directory; .*",
    f"{DIGITS} --workdir=": "workdir = '': allowed: a directory; .*",
    f"{DIGITS} --workdir={{tmp}}/empty.py": "the working directory .*/empty.py is a file: name a directory",
    f"{DIGITS} --workdir={{tmp}}/empty.py/x": "the working directory .*/x cannot be written to: Not a directory",
    f"--config= {WORKDIR}": "config = '': allowed: .*",
    f"--config=configs/digit.py {WORKDIR}": r"config = 'configs/digit.py': .*\(did you mean 'configs/digits.py'\?\)",
    f"--config=no/such.py {WORKDIR}": r"config = 'no/such.py': allowed: a file with a get_config\(\)",
    f"--config=configs {WORKDIR}": "config = 'configs': allowed: a file .*",
    f"--config=configs/cifar.py:tiny {WORKDIR}": "config = 'configs/cifar.py:tiny': allowed: .*configs/cifar.py:mini",
    f"--config=configs/digits.py:mini {WORKDIR}": "configs/digits.py: .*get_config.* takes 0 positional arguments .*",
    f"--config.seed=1 {DIGITS} {WORKDIR}": "Found --config.seed=1 .* before a value for --config was specified",
    f"--config={{tmp}}/syntax.py {WORKDIR}": ".*/syntax.py, line 1: invalid syntax",
    f"--config={{tmp}}/missing.py {WORKDIR}": ".*/missing.py, line 2: ModuleNotFoundError: .*'no_such_module'",
    f"--config={{tmp}}/empty.py {WORKDIR}": ".*/empty.py: .*no attribute 'get_config'",
    f"--config={{tmp}}/plain.py {WORKDIR}": r".*/plain.py: get_config\(\) gives no ConfigDict: .*",
    f"--config={{tmp}}/typo.py {WORKDIR}": ".*/typo.py, line 5: TypeError: .*seed.*",
    f"--config={{tmp}}/reads.py {WORKDIR}": ".*/reads.py, line 2: FileNotFoundError: .*'no_such_file'",
    f"--config={{tmp}}/own.py {WORKDIR}": r"the configuration has no \S+: a get_config\(\) begins with .*",
    f"--config={{tmp}}/own.py {WORKDIR} --config.victim.epochs=3": ".*/own.py: .*victim.*",
}

CASES = {f"{DIGITS} {WORKDIR} {rest}": message for rest, message in SETTINGS.items()} | OTHERS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{command line: (status, what was said)} of all of them, and the folder they were to work in."""
    folder = tmp_path_factory.mktemp("command_line")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    lines = [line.format(tmp=folder).split() for line in CASES]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(zip(CASES, json.loads(finished.stdout), strict=True)), folder


@pytest.mark.parametrize("line", CASES)
def test_what_cannot_be_ends_in_one_sentence(outcomes, line):
    status, said = outcomes[0][line]
    assert re.fullmatch(f"error: {CASES[line]}\n", said), said
    assert status == 2


def test_nothing_was_begun(outcomes):
    assert not (outcomes[1] / "run").exists()
