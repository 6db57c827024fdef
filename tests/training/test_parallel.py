import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from refine_jax.errors import SettingError
from refine_jax.training.parallel import Execution

ROOT = pathlib.Path(__file__).parents[2]
# Four devices, and a compiler that does not take its time.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def measured():
    """What tests/training/devices.py prints: how many devices there are is settled when a process begins."""
    command = [sys.executable, "-m", "tests.training.devices"]
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_several_devices_do_in_float64_what_one_does(measured):
    for row in measured["float64"]:
        assert max(row["metrics"], row["gradient"], row["statistics"]) < 1e-9, row


def test_several_devices_do_in_float32_what_one_does_up_to_its_noise(measured):
    for row in measured["float32"]:
        assert row["metrics"] < 1e-5, row
        assert row["gradient"] < 4e-2, row


def test_a_training_goes_on_on_another_number_of_devices(measured):
    assert measured["resumed"]["steps"] == 6
    assert measured["resumed"]["params"] < 1e-6


def test_more_devices_than_there_are_and_batches_that_cannot_be_shared_are_refused(monkeypatch):
    count = jax.device_count()
    with pytest.raises(SettingError, match=rf"^run.devices = {count + 1}: allowed: 1 to {count}, the devices that"):
        Execution(devices=count + 1).chosen()
    monkeypatch.setattr(jax, "devices", lambda: ["device"] * 3)
    Execution(devices=None).check_batch("victim.batch_size", 129)
    with pytest.raises(SettingError, match=r"^victim.batch_size = 128: allowed: a multiple of 3, the number of dev"):
        Execution(devices=None).check_batch("victim.batch_size", 128)


def test_images_go_by_the_memory_of_a_device_of_this_process(monkeypatch):
    """Of another process's device, JAX raises where its memory is asked for."""
    devices = [types.SimpleNamespace(process_index=index, number=number) for index in (0, 1) for number in (0, 1)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        for count in (2, 4, None):
            own = Execution(devices=count).own()
            assert (own.process_index, own.number) == (index, 0)
