import os
import subprocess
import sys

import jax
import pytest

from refine_jax.errors import SettingError
from refine_jax.training import determinism

OPTION = "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize("before", ["", "--xla_dump_to=dump", OPTION])
def test_the_option_is_given_once_beside_what_the_user_gives(monkeypatch, before):
    monkeypatch.setenv("XLA_FLAGS", before)
    determinism.ask()
    determinism.ask()
    assert sorted(os.environ["XLA_FLAGS"].split()) == sorted({OPTION, *before.split()})


def test_xla_knows_the_option():
    # An unknown one ends the process.
    code = "from refine_jax.training import determinism; determinism.ask(); import jax; print(jax.numpy.ones(2).sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr


@pytest.mark.parametrize(
    ("backend", "flags", "wanted", "refused"),
    [
        ("gpu", "", True, True),
        ("gpu", "--xla_gpu_deterministic_ops=false", True, True),
        ("gpu", f"--xla_dump_to=dump {OPTION}", True, False),
        ("gpu", "", False, False),
        ("cpu", "", True, False),
    ],
)
def test_a_gpu_that_was_opened_without_the_option_is_refused(monkeypatch, backend, flags, wanted, refused):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    if refused:
        with pytest.raises(SettingError, match=f"run.deterministic = True: allowed: with XLA_FLAGS={OPTION}"):
            determinism.check("run.deterministic", wanted)
    else:
        determinism.check("run.deterministic", wanted)
