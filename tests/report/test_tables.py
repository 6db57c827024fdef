import pytest

from refine_jax.report.tables import FIGURES, text_table

RESULTS = {
    "no_defense": {
        **{"ba": 0.978, "asr": 1.0, "asr_all": 1.0, "mapped_asr": None, "ra": 0.0},
        "ci95": {"ba": [0.9712, 0.9834], "asr": [0.99, 1.0], "mapped_asr": None, "ra": [0.0, 0.01]},
    },
    "defenses": {
        "refine": {
            **{"ba": 0.97, "asr": 0.0025, "mapped_asr": 0.05, "ra": None, "der": 0.99},
            "ci95": {
                **{"ba": [0.96, 0.98], "asr": [0.001, 0.01], "mapped_asr": [0.04, 0.06]},
                **{"ra": None, "der": [0.98, 1.0]},
            },
        }
    },
}


def rows(text):
    """Cells of the lines between the two rules, and the line above."""
    lines = text.splitlines()
    first, last = (number for number, line in enumerate(lines) if line and set(line) == {"-"})
    return [lines[first - 1], *lines[first + 1 : last]]


def test_each_figure_stands_in_percent_beside_its_interval():
    found = rows(text_table(RESULTS))
    assert found[1].split() == ["BA", "97.80", "[97.12,", "98.34]", "97.00", "[96.00,", "98.00]"]
    assert found[2].split() == ["ASR", "100.00", "[99.00,", "100.00]", "0.25", "[0.10,", "1.00]"]
    assert [row.split("  ")[0] for row in found[1:]] == list(FIGURES.values())


def test_what_there_is_not_is_a_dash():
    found = rows(text_table(RESULTS))
    assert found[3].split() == ["mapped", "ASR", "-", "5.00", "[4.00,", "6.00]"]
    assert found[4].split() == ["RA", "0.00", "[0.00,", "1.00]", "-"]
    assert found[5].split() == ["DER", "-", "99.00", "[98.00,", "100.00]"]


@pytest.mark.parametrize("name", ["refine", "a_defense_with_a_name_that_is_longer_than_its_figures"])
def test_columns_stand_under_their_names(name):
    results = {**RESULTS, "defenses": {name: RESULTS["defenses"]["refine"]}}
    found = rows(text_table(results))
    column = found[0].index(name)
    assert found[1][column:].strip().startswith("97.00")
    assert found[1][column - 1] == " "


def test_many_defenses_stand_in_blocks_with_what_they_need_and_cost():
    needs = {"gradients": True, "labels": False, "clean_images": True}
    cost = {"needs": needs, "train_seconds": 83.4, "milliseconds_per_image": 0.51234}
    names = [f"defense{number}" for number in range(5)]
    results = {**RESULTS, "defenses": {name: {**RESULTS["defenses"]["refine"], **cost} for name in names}}
    results["defenses"]["defense4"]["needs"] = dict.fromkeys(needs, False)
    lines = text_table(results).splitlines()
    rules = [number for number, line in enumerate(lines) if set(line) == {"-"}]
    heads = [rules[0] - 1, rules[2] - 1]
    assert [lines[number].split() for number in heads] == [["no", "defense", *names[:3]], names[3:]]
    second = lines[heads[1] :]
    assert second[2].split() == ["BA", *2 * ["97.00", "[96.00,", "98.00]"]]
    assert second[7].split() == ["needs", "gradients,", "clean", "images", "nothing"]
    assert second[8].split() == ["training", "83", "s", "83", "s"]
    assert second[9].split() == ["per", "image", "0.512", "ms", "0.512", "ms"]


def test_strengths_stand_below_in_a_line_each():
    def entry(quality, ba, chosen=False):
        return {
            "settings": {"quality": quality},
            "chosen": chosen,
            "ba": ba,
            "asr": 0.5,
            "mapped_asr": None,
            "ra": 0.25,
        }

    swept = {**RESULTS["defenses"]["refine"], "sweep": [entry(10, 0.8), entry(75, 0.97, chosen=True)]}
    lines = text_table({**RESULTS, "defenses": {"jpeg": swept}}).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("strengths"))
    assert [line.split() for line in lines[start : start + 3]] == [
        ["strengths", "BA", "ASR", "RA"],  # and no mapped ASR, which none has
        ["jpeg", "quality", "10", "80.00", "50.00", "25.00"],
        ["jpeg", "quality", "75", "*", "97.00", "50.00", "25.00"],
    ]
    assert {*lines[start + 3]} == {"-"}
    assert "strengths" not in text_table(RESULTS)


def test_of_strengths_the_settings_that_vary_are_shown_and_no_others():
    def entry(rounds, **others):
        return {"settings": {"rounds": rounds, "learning_rate": 0.001, **others}, "chosen": rounds == 2, "ba": 0.9}

    after = RESULTS["defenses"]["refine"]
    one, two = {**after, "sweep": [entry(2)]}, {**after, "sweep": [entry(1, unlearning_epochs=5), entry(2)]}
    two["sweep"][1]["settings"]["unlearning_epochs"] = 5
    lines = text_table({**RESULTS, "defenses": {"bti_dbf_u": one, "bti_dbf_p": two}}).splitlines()
    said = [line.split() for line in lines if line.startswith("bti_dbf")]
    assert said == [["bti_dbf_p", "rounds", "1", "90.00"], ["bti_dbf_p", "rounds", "2", "*", "90.00"]]
    assert "strengths" not in text_table({**RESULTS, "defenses": {"bti_dbf_u": one}})


def test_without_a_defense_the_victim_stands_alone():
    found = rows(text_table({**RESULTS, "defenses": {}}))
    assert found[0].split() == ["no", "defense"]
    assert found[1].split() == ["BA", "97.80", "[97.12,", "98.34]"]


def test_the_table_says_what_its_figures_are():
    text = text_table(RESULTS)
    assert all(word in text for word in ("in percent", "95 % intervals", "mapped ASR: with the class"))


def test_what_makes_the_figures_doubtful_stands_below_them():
    text = text_table({**RESULTS, "warnings": ["the attack did not take", "refine has collapsed"]})
    assert text.splitlines()[-2:] == ["WARNING: the attack did not take", "WARNING: refine has collapsed"]
    assert "WARNING" not in text_table(RESULTS)


def test_a_distance_stands_as_it_is_where_it_was_measured():
    assert "W1" not in text_table(RESULTS)
    before, after = {**RESULTS["no_defense"], "w1": 1.2, "w1_images": 500}, RESULTS["defenses"]["refine"]
    text = text_table({"no_defense": before, "defenses": {"refine": {**after, "w1": 0.0625, "w1_images": 500}}})
    line = next(line for line in text.splitlines() if line.startswith("W1 "))
    assert line.split() == ["W1", "1.200", "0.062"]
    assert "0 to 1.414; 500 each" in text
