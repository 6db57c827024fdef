"""README.md and docs/: links lead somewhere; flags, fields, commands, names and files that they mention are there."""

import argparse
import ast
import copy
import doctest
import importlib
import importlib.util
import inspect
import operator
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

import launch
import refine_jax
from benchmarks import overhead
from refine_jax import attacks, evaluate, fields, settings
from refine_jax.defenses import registry as defenses
from refine_jax.report import __main__ as report
from refine_jax.sweep import __main__ as sweep

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
# docs/adding_an_attack.md and docs/adding_a_defense.md add these; tests/attacks/test_adding_an_attack.py and
# tests/defenses/test_adding_a_defense.py follow the pages.
INVENTED = ("sinusoid", "gaussian_noise")

each_page = pytest.mark.parametrize("name", PAGES)


def blocks(text, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def spans(text):
    """Contents of what stands between backticks in a line."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def anchor(heading):
    """What GitHub makes of a heading: lower case, punctuation left out, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def command_lines(text):
    """Arguments of launch.py: of whole commands, and of flags with values between backticks."""
    loop_variables = {"$attack": "wanet", "$seed": "1"}
    joined = re.sub(r"\\\n\s*", "", text)
    commands = re.findall(r"^ {4,}python launch\.py (.*)$", joined, flags=re.MULTILINE)
    commands += [f"--config=configs/cifar.py {span}" for span in spans(text) if span.startswith("--config.")]
    for command in dict.fromkeys(commands):
        for variable, value in loop_variables.items():
            command = command.replace(variable, value)
        arguments = shlex.split(command)
        # A field alone is checked as a field; FIELD=VALUE stands for any.
        invented = any(name in command for name in INVENTED)
        if not invented and "FIELD" not in command and all("=" in argument for argument in arguments):
            yield arguments


def resolve(dotted):
    """What refine_jax.a.b is, rj for short."""
    return operator.attrgetter(dotted.partition(".")[2])(refine_jax)


@each_page
def test_relative_links_and_images_lead_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        page = folder / path if path else folder / name
        assert page.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
            assert heading in map(anchor, headings), target


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\(docs/([\w.]+)\)", PAGES["README.md"]))
    assert linked == {*PAGES} - {"README.md"}


@pytest.mark.parametrize("page", ["studies.md", "sweeps.md"])
def test_every_sweep_of_this_project_is_described(page):
    files = {f"configs/sweeps/{file.name}" for file in (ROOT / "configs" / "sweeps").glob("*.py")}
    assert {*re.findall(r"configs/sweeps/\w+\.py", PAGES[page])} == files


def test_the_api_page_has_what_the_readme_names():
    targets = re.findall(r"^::: (\S+)$", PAGES["api.md"], flags=re.MULTILINE)
    names = [
        span for row in re.findall(r"^\| (`rj\..*?) \|", PAGES["README.md"], flags=re.MULTILINE) for span in spans(row)
    ]
    assert len(names) > 20
    for name in names:
        found = resolve(name)
        # By the name that the README gives, or by where it is written.
        known = f"refine_jax{name.removeprefix('rj')}", f"{found.__module__}.{found.__qualname__}"
        assert any(f"{full}.".startswith(f"{target}.") for full in known for target in targets), name


@each_page
def test_flags_are_those_of_launch(name):
    defined = flags.FLAGS.get_key_flags_for_module(launch)
    known = {flag.name for flag in defined} | {f"no{flag.name}" for flag in defined if flag.boolean}
    assert {"config", "workdir"} <= known
    for program in (evaluate, report, sweep):
        known |= set(re.findall(r"--(\w+)", program.parser().format_help()))
    # Commands of other programs have flags of their own.
    joined = re.sub(r"\\\n\s*", "", PAGES[name])
    text = re.sub(r"(python -m|pip|python fuzz/|python examples/|tensorboard --).*", "", joined)
    assert set(re.findall(r"(?<![\w-])--([a-z]\w*)", text)) <= known


@each_page
def test_fields_of_the_configuration_exist(name):
    for field in re.findall(r"--config\.([a-z]\w*(?:\.\w+)*)", PAGES[name]):
        if not any(name in field for name in INVENTED):
            fields.check_field(field, "")


# Those of the configurations stand at their top.
DOCSTRINGS = {
    str(file.relative_to(ROOT)): ast.get_docstring(ast.parse(file.read_text()), clean=False) or ""
    for file in sorted((ROOT / "configs").rglob("*.py"))
}
COMMANDS = {
    f"{name}: {' '.join(line)}": line for name, text in (PAGES | DOCSTRINGS).items() for line in command_lines(text)
}


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_of_a_command_line_are_possible(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["launch.py", *COMMANDS[command]])  # where ml_collections looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    for flag in flags.FLAGS.get_key_flags_for_module(launch):
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    values(sys.argv)
    settings.complete(values["config"].value)


class Parsed(BaseException):
    """Ends a program where it has read its command line."""


def programs():
    """Commands of programs with flags, other than launch.py: (module or file, arguments)."""
    pages = [*PAGES.values(), *(page.read_text() for page in (ROOT / "results").glob("*/README.md"))]
    joined = re.sub(r"\\\n\s*", "", "\n".join(pages)).replace("$study", "ablations")
    found = re.findall(
        r"^ {4,}python (-m (?:refine_jax|benchmarks)\.\w+|(?:fuzz|examples)/\w+\.py) (.+)$", joined, re.M
    )
    commands = {(name.removeprefix("-m "), arguments.partition("  #")[0].strip()) for name, arguments in found}
    # The fuzzer hands on what it does not know to libFuzzer, and refuses nothing.
    return sorted(command for command in commands if command[0] != "fuzz/fuzz_torch_file.py")


@pytest.mark.parametrize(("name", "arguments"), programs())
def test_other_programs_take_the_flags_that_they_are_given(name, arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if name == "refine_jax.sweep":
        assert sweep.main([*shlex.split(arguments), "--list"]) == 0
        # Of results that are kept here everything is done; elsewhere nothing is begun.
        state = "done" if "--workdir=results/" in arguments else "waiting"
        assert re.search(rf"^\d+ runs, \d+ shared victims: \d+ {state}$", capsys.readouterr().out, re.M)
        return
    if name == "benchmarks.overhead":  # takes fields too, and looks at all before it measures
        overhead.parse(shlex.split(arguments))
        return
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(arguments)])
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(self, *given, **named):
        parse(self, *given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, ROOT / name)
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
    else:
        inner = f"{name}.__main__"
        program = importlib.import_module(inner if importlib.util.find_spec(name).submodule_search_locations else name)
    with pytest.raises(Parsed):
        program.main()


@each_page
def test_dotted_names_resolve(name):
    for module in re.findall(r"python -m (refine_jax\.\w+)", PAGES[name]):
        assert importlib.util.find_spec(module)
    text = re.sub(r"python -m \S+", "", PAGES[name])
    for dotted in re.findall(r"\b(?:rj|refine_jax)(?:\.[A-Za-z_]\w*)+", text):
        resolve(dotted)


@pytest.mark.parametrize("code", [code for text in PAGES.values() for code in blocks(text, "python")])
def test_python_compiles_and_its_calls_fit(code):
    # An indented block is a line of a dict.
    for call in ast.walk(ast.parse("{" + code + "}" if code.startswith(" ") else code)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("rj."):
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(resolve(ast.unparse(call.func))).bind(*call.args, **keywords)


@pytest.mark.parametrize("session", [code for text in PAGES.values() for code in blocks(text, "pycon")])
def test_worked_examples_come_out_as_printed(session):
    example = doctest.DocTestParser().get_doctest(session, {}, "docs", None, None)
    assert len(example.examples) > 1
    assert doctest.DocTestRunner().run(example).failed == 0


@each_page
def test_files_that_are_mentioned_exist(name):
    folders = ("refine_jax", "tests", "configs", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    there = [f"/{path.relative_to(ROOT)}" for path in (*files, ROOT / "launch.py")]
    for span in spans(PAGES[name]):
        if re.fullmatch(r"[\w/]+\.py", span) and not any(name in span for name in INVENTED):
            assert any(path.endswith(f"/{span}") for path in there), span


def test_every_attack_has_a_section_that_names_its_options():
    text = PAGES["attacks.md"]
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    assert tuple(sections) == attacks.names()
    for name, section in sections.items():
        assert {*attacks.options(name)} <= {*spans(section)}, name


def test_every_defense_has_a_section_that_names_its_settings():
    text = PAGES["defenses.md"]
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    assert tuple(sections) == defenses.names()
    for name, section in sections.items():
        assert {*defenses.DEFENSES[name].DEFAULTS} <= {*spans(section)}, name
