"""How a program ends where the interpreter is not waited for."""

import subprocess
import sys

PROGRAM = """
import atexit, sys
from refine_jax import ending
atexit.register(lambda: print("the interpreter's own end"))
sys.stdout.write("said")
sys.stderr.write("and told")
ending.leave_at_once(75)
"""


def test_leaving_at_once_keeps_the_status_and_what_was_said():
    # Into pipes, where what is printed waits in a buffer.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said", "and told")
