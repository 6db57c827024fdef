"""LaTeX tables as TeX sets them: they compile, and names and figures stand in the PDF as they were."""

import re
import shutil
import subprocess

import pytest

from refine_jax.files import read_record, write_record
from refine_jax.report import __main__ as program
from refine_jax.report import table_files
from tests.report.material import results, write_runs

DOCUMENT = r"""\documentclass{article}
\usepackage[landscape,margin=1cm]{geometry}
\usepackage{booktabs,graphicx}
\pagestyle{empty}
\begin{document}
\noindent\resizebox{\textwidth}{!}{\input{table}}
\end{document}
"""
NAMES = ("50%_of_$5 & #2 {x} ~^", "a--b \N{EN DASH} c---d", "[c] <i> |d|", "*star", r"back\slash")


@pytest.fixture(scope="module")
def tex():
    """A program that makes a PDF of a document in the folder it is run in."""
    for name, options in {
        "pdflatex": ["-halt-on-error", "-interaction=nonstopmode"],
        "lualatex": ["-halt-on-error", "-interaction=nonstopmode"],
        "tectonic": ["--only-cached"],
    }.items():
        if path := shutil.which(name):
            return [path, *options]
    return pytest.skip("no TeX is installed: pdflatex, lualatex or tectonic")


def typeset(tex, folder):
    """Returns the words of a document that has table.tex of a folder in it; None without pdftotext."""
    (folder / "paper.tex").write_text(DOCUMENT)
    done = subprocess.run([*tex, "paper.tex"], cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 0
    if not shutil.which("pdftotext"):
        return None
    text = subprocess.run(["pdftotext", "-layout", "paper.pdf", "-"], cwd=folder, capture_output=True, check=True)
    return text.stdout.decode()


def squeezed(text):
    """As a PDF has it, without white space: _ is a line there that is drawn, ~ and ^ are accents without a letter."""
    return re.sub(r"[\s_]", "", text).translate(
        str.maketrans("\N{SMALL TILDE}\N{MODIFIER LETTER CIRCUMFLEX ACCENT}", "~^")
    )


def test_the_table_of_a_run_compiles(tex, tmp_path):
    found = results()
    for name in NAMES:
        found["defenses"][name] = {**found["defenses"]["refine"], "w1": 0.125}
    header, rows = table_files.headline(found)
    (tmp_path / "table.tex").write_text(table_files.latex(header, rows))
    text = typeset(tex, tmp_path)
    if text is not None:
        lines = [squeezed(line) for line in text.splitlines() if line.strip()]
        assert lines == [squeezed("".join(row)) for row in (header, *rows)]


def test_the_table_of_many_runs_compiles(tex, tmp_path):
    write_runs(tmp_path / "runs")
    for number, name in enumerate(NAMES):
        (tmp_path / "runs" / name).mkdir()
        found = read_record(tmp_path / "runs" / "alone" / "results.json", ())
        found["settings"]["seed"] = number
        write_record(tmp_path / "runs" / name / "results.json", found)
    folder = tmp_path / "out"
    program.main([str(tmp_path / "runs"), f"--output={folder}"])
    text = typeset(tex, folder)
    if text is not None:
        for number, name in enumerate(NAMES):
            assert squeezed(f"{name} {number} refine 80.00") in squeezed(text)
