"""Black-box defenses from end to end, on a victim that counts and fails."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from refine_jax import settings as whole_settings
from refine_jax.classifier import Classifier
from refine_jax.datasets.images import Split
from refine_jax.defenses.blackbox import BudgetSpent, Oracle, OracleError, defend, substitute, zeroth_order
from refine_jax.errors import SettingError, StorageError, WorkdirError
from refine_jax.files import hash_arrays
from refine_jax.networks import registry
from refine_jax.training import compilation
from refine_jax.training.checkpoints import read
from refine_jax.training.journal import Journal
from tests.defenses.blackbox.counting import SIDE, Counting, K, images, one_in_five

N, CHECKED = 48, 20
UNET = {"width": 2, "depth": 1, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.02, "weight_decay": 0.0}
UNET |= {"checked": CHECKED, "epochs": 20}
COPY = {"name": "linear", "batch_size": 16, "epochs": 30, "optimizer": "adam", "learning_rate": 0.02}
DIRECTIONS = 4
STEP = 2 * DIRECTIONS * UNET["batch_size"]


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "linear", functools.partial(Linear))
    monkeypatch.setattr(compilation, "compiler_options", lambda backend: {"xla_backend_optimization_level": 0})


def oracle(victim, **given):
    return Oracle(victim, K, (SIDE, SIDE), **{"batch_size": 16, "sleep": lambda seconds: None, **given})


def learned(defended):
    return hash_arrays({"unet": defended.unet_variables, "permutation": defended.permutation})


def losses(folder, stage):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["classification"] for row in rows if row["stage"] == stage]


def test_a_substitute_is_learned_from_a_victim_that_fails_one_call_in_five(tmp_path):
    victim, given = Counting(one_in_five), {**UNET, "copy": COPY}
    with oracle(victim, cache=tmp_path / "answers") as asked:
        defended = defend(asked, images(N), given, folder=tmp_path)
        found = defended.findings
        assert victim.images == asked.queries == found["queries"] == N + CHECKED
        assert victim.answered == found["calls"] == 3 + 2
        assert victim.calls == 6
        assert (found["answers"], found["images"]) == ("probabilities", N)
        assert min(found["agreement"], found["agreement_trained"]) > 0.75
        # What augmentation does to the copy, by a name that does not pass for one of the victim.
        assert found["copy_augmentation_class"] in range(K)
        assert 0 <= found["copy_augmentation_share"] <= 1
        assert not any(name.startswith("augmentation") for name in found)
        seen = losses(tmp_path, "refine_substitute")
        assert seen[-1] < 0.7 * seen[0]

        shown = images(10, seed=5)
        answers = defended(shown)
        assert (victim.images, asked.queries, asked.served) == (N + CHECKED + 10, N + CHECKED, 10)
        expected = np.empty_like(answers)
        expected[:, defended.permutation] = Counting()(defended.transform(shown))
        np.testing.assert_allclose(answers, expected, rtol=1e-5)
    with oracle(Counting(lambda call: AssertionError), cache=tmp_path / "answers") as asked:
        again = defend(asked, images(N), given, folder=tmp_path)
        assert learned(again) == learned(defended)
        assert again.findings == found
        assert asked.failures == 0


def test_the_folder_of_another_defense_is_refused_before_a_query(tmp_path):
    given = {**UNET, "epochs": 1, "copy": {**COPY, "epochs": 1}}
    defend(oracle(Counting()), images(N), given, folder=tmp_path)
    unasked = Counting(lambda call: AssertionError)
    for changed, message in (
        ({"images": images(N, seed=9)}, "images: "),
        ({"settings": {**given, "width": 4}}, r"settings\.width: 2 -> 4"),
        ({"seed": np.int64(1)}, "seed: 0 -> 1"),
        ({"oracle": oracle(unasked, answers="labels")}, "answers: 'probabilities' -> 'labels'"),
        ({"oracle": oracle(unasked, shown="uint8")}, "shown: 'float' -> 'uint8'"),
    ):
        call = {"oracle": oracle(unasked), "images": images(N), "settings": given, "folder": tmp_path, **changed}
        with pytest.raises(WorkdirError, match=f"is of another defense .*{message}"):
            defend(**call)
    (tmp_path / "defense.json").unlink()  # as the first versions left it
    with pytest.raises(WorkdirError, match=r"holds a defense, and no defense\.json"):
        defend(oracle(unasked), images(N), given, folder=tmp_path)
    assert unasked.calls == 0


def test_a_call_that_was_refused_has_no_claim_to_its_folder(tmp_path):
    labels = Counting(labels=True)
    with pytest.raises(SettingError, match="answers = 'labels'"):
        defend(oracle(labels, answers="labels"), images(N), {**UNET}, method="zeroth_order", folder=tmp_path)
    with pytest.raises(SettingError, match=r"images = .* \[N, 9, 8, 3\]"):
        defend(Oracle(labels, K, (SIDE + 1, SIDE)), images(N), {**UNET, "copy": COPY}, folder=tmp_path)
    with pytest.raises(BudgetSpent):
        defend(oracle(labels, budget=35), images(N), {**UNET, "copy": COPY}, folder=tmp_path)
    assert labels.calls == 0


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"defense\.json cannot be written"):
        defend(oracle(Counting()), images(N), {**UNET, "copy": COPY}, folder=tmp_path / "file")


@pytest.mark.parametrize("change", ["victim", "budget"])
def test_what_was_learned_of_other_answers_is_not_gone_on_with(change, tmp_path):
    given = {**UNET, "epochs": 1, "copy": {**COPY, "epochs": 1}}
    defend(oracle(Counting(), budget=40 + CHECKED), images(N), given, folder=tmp_path)
    victim = Counting()
    turned = (lambda shown: victim(shown)[:, ::-1]) if change == "victim" else victim
    other = oracle(turned, budget=(40 if change == "victim" else N) + CHECKED)
    message = {"victim": "answered", "budget": "is of a copy of 40 images, and the budget reaches for 48 now"}
    with pytest.raises(WorkdirError, match=message[change]):
        defend(other, images(N), given, folder=tmp_path)
    assert victim.images == (40 if change == "victim" else 0)


def test_zeroth_order_ends_with_the_last_step_of_its_budget_and_asks_nothing_twice(tmp_path):
    given = {**UNET, "directions": DIRECTIONS, "smoothing": 0.2, "block": 2}
    budget = N + CHECKED + 40 * STEP + STEP - 1
    sound = Counting()
    asked = oracle(sound, budget=budget)
    whole = defend(asked, images(N), given, method="zeroth_order", seed=3)
    assert sound.images == asked.queries == whole.findings["queries"] == N + CHECKED + 40 * STEP
    assert (whole.findings["steps"], whole.findings["steps_asked_for"]) == (40, 60)
    assert whole.findings["calls"] == sound.calls

    down = Counting(lambda call: OSError("down") if call > 100 else None)
    with (
        oracle(down, budget=budget, cache=tmp_path / "answers", retries=0) as asked,
        pytest.raises(OracleError, match="answers are kept"),
    ):
        defend(asked, images(N), given, method="zeroth_order", seed=3, folder=tmp_path)
    # Three calls for the clean images, eight a step: where arithmetic does not repeat, steps would be paid again.
    assert read(tmp_path / "checkpoints" / "unet" / "checkpoints")[0]["step"] == (100 - 3) // 8
    failing = Counting(one_in_five)
    with oracle(failing, budget=budget, cache=tmp_path / "answers") as asked:
        defended = defend(asked, images(N), given, method="zeroth_order", seed=3, folder=tmp_path)
    assert learned(defended) == learned(whole)
    assert defended.findings == whole.findings
    assert down.images + failing.images == sound.images
    assert not {*down.seen} & {*failing.seen}
    turned = Counting()
    other = oracle(lambda shown: turned(shown)[:, ::-1], budget=budget)
    with pytest.raises(WorkdirError, match="answered"):
        defend(other, images(N), given, method="zeroth_order", seed=3, folder=tmp_path)
    assert turned.images == N
    seen = losses(tmp_path, "refine_zeroth_order")
    assert seen[-1] < 0.8 * seen[0]


def test_of_a_classifier_of_the_registry_nothing_is_seen_but_labels(tmp_path):
    # The bands' means, eight times, as the victim that counts has it.
    kernel = np.kron(np.eye(K), np.ones((SIDE * SIDE * 3 // K, 1))) * 8 / (SIDE * SIDE * 3 // K)
    variables = {"params": {"Dense_0": {"kernel": kernel.astype(np.float32), "bias": np.zeros(K, np.float32)}}}
    classifier = Classifier("linear", variables, K, (0.0,) * 3, (1.0,) * 3)
    journal = Journal(tmp_path / "checkpoints", tmp_path / "metrics.jsonl", {"victim_sha256": "abc"}, 10, 5.0)
    given = {**substitute.DEFAULTS, **UNET, "copy": {**substitute.DEFAULTS["copy"], **COPY}}
    given |= {"answers": "labels", "budget": N + CHECKED}
    fitted = substitute.fit(classifier, Split.unlabeled(images(N)), given, 0, K, journal)
    found = fitted.findings
    assert (found["queries"], found["images"], found["answers"]) == (N + CHECKED, N, "labels")
    assert fitted.parameters > 0 < fitted.train_seconds
    assert {*fitted.parts} == {"copy/checkpoints", "unet/checkpoints"}
    for part, steps in fitted.parts.items():
        assert (tmp_path / "checkpoints" / part / str(steps)).is_dir()

    # An unfinished defense does not go on with what an earlier victim has answered.
    later = dataclasses.replace(journal, identity={"victim_sha256": "def"})
    with pytest.raises(WorkdirError, match="answers holds answers of another oracle"):
        substitute.fit(classifier, Split.unlabeled(images(N)), given, 0, K, later)

    loaded = substitute.load(tmp_path / "checkpoints", classifier, given, (SIDE, SIDE))
    shown = images(10, seed=5) / np.float32(255)
    answers = np.asarray(jax.jit(lambda defended, images: defended(images))(loaded, shown))
    labels = Counting(labels=True)(np.asarray(fitted.defended.transform(shown)))
    np.testing.assert_array_equal(answers, np.eye(K)[np.asarray(loaded.permutation)[labels]])
    assert hash_arrays(loaded.parts()) == hash_arrays(fitted.defended.parts())


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("substitute", 35, "budget of 35 queries leaves 15 images for the copy, 20 .* a batch of 16"),
        ("zeroth_order", 195, "195 queries left: allowed: at least 196: .* which are 68, and 128 a step"),
    ],
)
def test_a_budget_that_does_not_reach_is_said_before_anything_is_asked(method, budget, message):
    victim = Counting()
    given = {**UNET, **({"copy": COPY} if method == "substitute" else {"directions": DIRECTIONS})}
    with pytest.raises(BudgetSpent, match=message):
        defend(oracle(victim, budget=budget), images(N), given, method=method)
    assert victim.calls == 0


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        ("substitute", {"budget": 3}, "budget = 3: allowed: one of the fields"),
        ("substitute", {"copy": {"widht": 3}}, r"copy\.widht = 3: .* \(did you mean 'width'"),
        ("substitute", {"copy": {"batch_size": 44}}, r"substitute\.copy\.batch_size = 44: allowed: at most the 43"),
        ("substitute", {"copy": {"held_out": 1.0}}, r"substitute\.copy\.held_out"),
        (
            "substitute",
            {"copy": {"name": "vit", "width": 16, "batch_size": 8}},
            r"substitute\.copy\.width = 16: allowed: 64, the only one that vit has; any with",
        ),
        ("substitute", {"batch_size": 49}, r"substitute\.batch_size = 49"),
        (
            "substitute",
            {"copy": {"name": "vgg16", "batch_size": 8}},
            r"substitute\.copy\.name = 'vgg16': allowed: a network that takes images of 8 x 8; .* at least 32 x 32",
        ),
        ("zeroth_order", {"directions": 0}, r"zeroth_order\.directions = 0: allowed: a whole number, 1 or more"),
        ("zeroth_order", {"smoothing": 0.0}, r"zeroth_order\.smoothing"),
        ("zeroth_order", {"block": 3}, r"zeroth_order\.block = 3: allowed: a divisor of both sides, 8 and 8"),
        ("zeroth", {}, "method = 'zeroth'.*did you mean 'zeroth_order'"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_asked(method, changed, message):
    victim = Counting()
    with pytest.raises(SettingError, match=message):
        defend(oracle(victim), images(N), {"batch_size": 16, "depth": 1, **changed}, method=method)
    assert victim.calls == 0


def test_zeroth_order_refuses_labels():
    victim = Counting(labels=True)
    with pytest.raises(
        SettingError, match="answers = 'labels': allowed: probabilities; for labels there is refine_subs"
    ):
        defend(oracle(victim, answers="labels"), images(N), {**UNET}, method="zeroth_order")
    assert victim.calls == 0


def test_a_configuration_has_their_settings():
    config = whole_settings.default()
    config.defense.names = ("refine_substitute", "refine_zeroth_order")
    config.defense.refine_substitute.copy.width = 8
    config.defense.refine_zeroth_order.budget = 10_000
    section = whole_settings.complete(config)["defense"]
    assert section["refine_substitute"]["copy"]["width"] == 8
    assert (section["refine_substitute"]["budget"], section["refine_zeroth_order"]["budget"]) == (None, 10_000)
    for name, module in (("refine_substitute", substitute), ("refine_zeroth_order", zeroth_order)):
        module.check(f"defense.{name}", section[name], 50_000, (32, 32))
    # As far as it can be said without the images: before a victim is trained.
    for name, module, least in (("refine_substitute", substitute, 328), ("refine_zeroth_order", zeroth_order, 5321)):
        assert least == 200 + (128 if name == "refine_substitute" else 1 + 2 * 10 * 256)
        module.check(f"defense.{name}", {**section[name], "budget": least}, 50_000, (32, 32))
        with pytest.raises(SettingError, match=rf"defense\.{name}\.budget = {least - 1}: allowed: {least} or more"):
            module.check(f"defense.{name}", {**section[name], "budget": least - 1}, 50_000, (32, 32))
    with pytest.raises(SettingError, match=r"defense\.refine_substitute\.answers = 'logits'"):
        substitute.check(
            "defense.refine_substitute", {**section["refine_substitute"], "answers": "logits"}, 999, (32, 32)
        )
