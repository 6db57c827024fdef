"""docs/black_box.md, run as it stands."""

import pathlib
import re
import types

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "black_box.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture(name="service")
def service_fixture():
    return types.SimpleNamespace(classify=lambda images: np.full((len(images), 10), 0.1))


def test_the_oracle_asks_as_the_page_says(service, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(CODE[0], {"service": service})
    printed = capsys.readouterr().out.strip()
    assert f"print(oracle.queries, oracle.calls, oracle.left)  # {printed}\n" in CODE[0]
