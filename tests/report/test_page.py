"""The page as a browser would read it; matplotlib is held to the data it was given, not to pixels."""

import csv
import dataclasses
import html.parser
import re
import types
import xml.etree.ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from refine_jax import evaluation
from refine_jax.report import counts, drawn, figures, gallery, material, page, projection, strengths, summary
from tests.report import material as made

VOID = {"meta", "link", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Collects elements and texts; elements that are not closed in order are an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self._open)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page.write(made.make(), folder)
    return folder


@pytest.fixture(scope="module")
def read(report):
    return Reader((report / "index.html").read_text())


def test_nothing_of_the_page_is_elsewhere(read, report):
    for _, attributes, _ in read.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), attributes
    assert read.all("script") == []
    assert not re.search(r"@import|url\((?!#)", (report / "index.html").read_text())


def test_links_lead_to_names_that_there_are_once(read):
    names = [attributes["id"] for _, attributes, _ in read.elements if "id" in attributes]
    assert len(names) == len({*names})
    links = {attributes["href"][1:] for attributes in read.all("a")}
    assert {"main", "result", "attack", "gallery", "flow", "features", "classes", "training", "cost", "made"} <= links
    labels = {attributes["aria-labelledby"] for attributes in read.all("section")}
    assert links - {"main"} == labels <= {*names}
    for attributes in read.all("use"):
        assert attributes["xlink:href"][1:] in names


def test_who_cannot_see_is_told(read):
    assert all(attributes["alt"] for attributes in read.all("img"))
    assert all(attributes.get("aria-label") for attributes in read.all("svg"))
    assert {attributes["role"] for attributes in read.all("svg")} == {"img"}
    assert all(attributes.get("scope") in ("row", "col") for attributes in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table"))
    assert read.all("html")[0]["lang"] == "en"
    assert [len(read.all(tag)) for tag in ("h1", "main", "header", "nav", "footer", "title")] == [1] * 6


def test_figures_stand_with_counts_and_warnings(read):
    text = " ".join(read.texts)
    assert "refine has collapsed" in text
    assert "12.50 [ 2.24, 47.09] 1 of 8" in re.sub(r"\[\s*", "[ ", re.sub(r"\s+", " ", text))
    assert "Behind refine, 80.00 % of the clean images are answered with their class, 12.50 % of the triggered" in text
    assert "dog & <b>" in read.texts  # the class, not an element
    assert read.all("b") == []


def test_figures_lie_beside_the_page_as_png_and_svg(report, read):
    names = {path.stem for path in report.glob("*.svg")}
    assert names == {path.stem for path in report.glob("*.png")}
    pairs = {f"{kind}_{who}" for kind in ("confusion", "flow", "features") for who in ("no_defense", "refine")}
    assert names == pairs | {"gallery", "classes", "curves_victim"}
    assert len(read.all("svg")) == len(names) - 1  # the gallery is a table there
    for path in report.glob("*.svg"):
        xml.etree.ElementTree.fromstring(path.read_text())
    for path in report.glob("*.png"):
        with Image.open(path) as image:
            image.verify()


def test_a_page_without_trigger_labels_features_and_trainings_leaves_out_their_sections():
    full = made.make()
    images = dataclasses.replace(full.images, labels=None, triggered=None, triggered_labels=None, target=None)
    unknown = dict.fromkeys(("ba", "asr", "asr_all", "mapped_asr", "ra"))
    figures_known = {**unknown, "agreement": 0.5, "counts": {"agreement": [5, 10]}, "ci95": {"agreement": [0.2, 0.8]}}
    results = {
        **full.results,
        "attack": {"name": "none", "target": None},
        "no_defense": {**unknown, "counts": {}, "ci95": {}},
        "defenses": {"refine": figures_known},
    }
    classifiers = [
        dataclasses.replace(
            shown, confusion=None, destinations=None, projection=None, mapped_target=None, figures=each
        )
        for shown, each in zip(full.classifiers, (results["no_defense"], figures_known), strict=True)
    ]
    bare = dataclasses.replace(
        full, results=results, images=images, classifiers=classifiers, examples=[], curves={}, contact_sheet=None
    )
    read = Reader(page.render(bare, {}))
    assert {attributes["aria-labelledby"] for attributes in read.all("section")} == {
        *("result", "attack", "features", "cost", "made")
    }
    assert any("function without a method" in text for text in read.texts)
    assert any("50.00 % of the clean images are answered as without it" in text for text in read.texts)


def test_strengths_stand_in_a_section_of_their_own_and_beside_the_page(tmp_path):
    full = made.make()
    page.write(dataclasses.replace(full, results=made.swept()), tmp_path)
    read = Reader((tmp_path / "index.html").read_text())
    assert "strengths" in {attributes["aria-labelledby"] for attributes in read.all("section")}
    assert "shrinkpad, pad 2 *" in read.texts
    assert [row["ba"] for row in csv.DictReader((tmp_path / "strengths.csv").open())] == ["1.0", "0.8", "0.5"]
    assert {attributes.get("aria-label") for attributes in read.all("svg")} >= {
        "Lines over pad from 1 to 4: BA 100.0 to 50.0 %, ASR 87.5 to 87.5 %, RA 12.5 to 12.5 %"
    }
    assert (tmp_path / "strengths_shrinkpad.png").exists()
    text = " ".join(read.texts)
    assert "shrinkpad: target class 1 (dog & <b>)" in text
    assert "shrinkpad: target share 0.3333" in text


def test_where_the_target_stays_what_it_is_the_page_does_not_count_it_twice():
    full, same = made.make(), np.arange(4)
    counted = evaluation.count(made.ANSWERS["refine"], made.LABELS, made.TARGET, same, made.LABELS)
    refine = {**full.results["defenses"]["refine"], **counted, "der": None}
    defended = {"refine": types.SimpleNamespace(permutation=same)}
    results = {**full.results, "defenses": {"refine": refine}}
    stays = material.gather(results, full.images, None, defended, made.ANSWERS, {}, None)
    flow = {"flow_refine": drawn.Drawn("flow", "refine", "<svg></svg>")}
    text, usual = (" ".join(Reader(page.render(each, flow)).texts) for each in (stays, full))
    said = "Behind refine the target stays what it is: pi(target) is the target, and mapped ASR is ASR."
    assert said in text
    assert said not in usual
    assert "the class that the target is mapped to" not in text
    assert [row[3] for row in page._flow_table(stays)[1]] == ["-", "-"]


def test_what_an_attacker_knows_of_the_defense_is_said(tmp_path):
    full = made.make()
    adaptive = {**made.SETTINGS["victim"], "adaptive": {"knowledge": "guessed"}}
    results = {**full.results, "settings": {**made.SETTINGS, "victim": adaptive}}
    curves = {"refine_substitute copy": full.curves["victim"]}
    bare = dataclasses.replace(full, results=results, curves=curves, classifiers=[], examples=[])
    facts = dict(summary.attack(results, made.NAMES))
    assert facts["attacker knows REFINE, its output mapping"] == "guessed"
    # Names of stages are those of figures, too.
    assert [*drawn.draw(bare, tmp_path)] == ["curves_refine_substitute_copy"]


def test_strengths_are_drawn_as_they_were_measured():
    entries = made.swept()["defenses"]["shrinkpad"]["sweep"]
    found = strengths.curves(entries, ("ba", "mapped_asr"))
    assert [*found] == ["ba"]  # the other is not known
    (ax,) = figures.draw_strengths("pad", (1, 2, 4), {"BA": found["ba"]}, {"BA": 90.0}, 1).axes
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert line.get_ydata().tolist() == [100, 80, 50]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]


def test_a_matrix_is_drawn_as_shares_of_its_rows():
    confused = np.array([[3, 1], [0, 0]])
    (ax,) = figures.draw_confusion(confused, ["a", "b"]).axes
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [text.get_text() for text in ax.texts] == ["3", "1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_more_classifiers_than_colors_can_be_told_apart():
    known = {"share": 0.5, "ci95": [0.4, 0.6]}
    many = {f"_defense {number}": [known] for number in range(2 * len(figures.SERIES) + 1)}
    figure = figures.draw_classes(many, ["cat"])
    dots = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in dots}) == len(many)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*many]


def test_names_of_classes_stand_as_they_are():
    names = ["_cat", "$a$ or $b$", "c", "d"]
    places = projection.Projection(np.arange(8.0).reshape(4, 2), np.ones((1, 2)), np.array([0.5, 0.25]))
    figure = figures.draw_features(places, np.arange(4), names)
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == [*names, "triggered"]
    # A text that is read as mathematics is another one when it is drawn.
    assert not any(text.get_parse_math() for text in texts)


def test_a_flow_has_a_band_for_each_pair_as_high_as_its_images():
    flow = counts.destinations(made.LABELS, made.ANSWERS["refine"].triggered, 0, 2, 4)
    (ax,) = figures.draw_flow(flow, made.NAMES, {name: name for name in counts.DESTINATIONS}).axes
    corners = [patch.get_path().vertices for patch in ax.patches if isinstance(patch, PathPatch)]
    at_the_right = sorted(band[4, 1] - band[3, 1] for band in corners)
    at_the_left = sorted(band[7, 1] - band[0, 1] for band in corners)
    assert at_the_left == pytest.approx(sorted(flow[flow > 0]))
    assert at_the_right == pytest.approx(sorted(flow[flow > 0]))
    texts = [text.get_text() for text in ax.texts]
    assert "its class\n5 (62.5 %)" in texts
    assert "pi(target)\n2 (25.0 %)" in texts


def test_a_line_leads_from_each_label_of_a_flow_to_its_bar():
    flow = np.array([[0, 0, 0, 0], [900, 1, 2, 97]])
    (ax,) = figures.draw_flow(flow, ("a", "b"), {name: name for name in counts.DESTINATIONS}).axes
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_x() > 0]
    labels = [text for text in ax.texts if "%" in text.get_text()]
    assert len(bars) == len(labels) == len(ax.lines) == 4
    for bar, label, line in zip(bars, labels, ax.lines, strict=True):
        assert line.get_ydata() == pytest.approx([bar.get_y() + bar.get_height() / 2, label.get_position()[1]])
        assert (line.get_xdata()[0], line.get_color()) == (1, to_hex(bar.get_facecolor()))
        assert not line.get_clip_on()


def test_labels_beside_small_bars_do_not_lie_on_each_other():
    assert figures._apart([0.0, 5.0], 1.0) == [0.0, 5.0]
    moved = figures._apart([0.0, 8.0, 8.1, 8.2], 1.0)
    assert np.diff(moved).min() >= 1 - 1e-9
    assert moved[-1] == pytest.approx(8.2)


def test_the_gallery_shows_what_was_asked_and_who_failed():
    transforms = {"refine": lambda images: images / 255 / 2}
    clean = np.full((10, 2, 2, 3), 100, np.uint8)
    failed = {"refine": gallery.failures(made.LABELS, made.ANSWERS["refine"].triggered, 0, 2)}
    assert failed == {"refine": [3, 8, 9]}
    first, last = gallery.make([2, 8], clean, clean + 4, made.LABELS, made.ANSWERS, transforms, failed)
    assert [*first.cells] == ["clean", "triggered", "difference x 8", "T(clean)", "T(triggered)"]
    assert (first.failed, last.failed) == ((), ("refine",))
    assert last.ordinary == ("refine",)  # it is taken for class 2 without the trigger
    assert first.cells["difference x 8"].image.max() == 32
    assert first.cells["T(clean)"].image.max() == 50
    assert last.cells["triggered"].answers == (("no defense", 0),)
    assert last.cells["T(triggered)"].answers == (("refine", 0),)
    assert drawn.caption(last.cells["triggered"], made.NAMES, 3) == [("no defense: cat", True)]


def test_failures_are_first_those_that_are_answered_rightly_without_the_trigger():
    labels, triggered = np.array([1, 2, 3, 1, 0]), np.array([0, 0, 2, 1, 0])
    assert gallery.failures(labels, triggered, 0, 2) == [0, 1, 2]
    assert gallery.failures(labels, triggered, 0, 2, np.array([2, 2, 1, 1, 0])) == [1, 0, 2]
    assert gallery.failures(None, triggered, 0, 2) == []


def test_what_may_be_an_ordinary_error_is_said_to_be_one(read):
    captions = [text for text in read.texts if text.startswith("test image")]
    assert captions == [
        *("test image 2", "test image 5", "test image 7"),
        "test image 8; refine failed, and on the clean image, too: perhaps an ordinary error",
    ]


def test_examples_are_the_first_of_each_class_but_the_targets():
    assert gallery.choose(made.LABELS, 10, 0) == [2, 5, 7]
    assert gallery.choose(None, 3, None) == [0, 1, 2]
