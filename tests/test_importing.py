"""Checkpoints of other programs: what is taken from them, what is asked for, and what is refused."""

import functools

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from refine_jax import import_stage, importing, networks, triggered
from refine_jax.datasets.images import Dataset, Split
from refine_jax.errors import DataError, SettingError
from refine_jax.files import hash_arrays, write_record
from refine_jax.interop import checkpoint_formats, torch_weights
from refine_jax.interop.torch_file import TorchFileError

GIVEN = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "channels": None, "input_size": None}
OPEN = dict.fromkeys(GIVEN)


def dataset(num_classes=5, side=16, sha256="f" * 64):
    split = Split(np.zeros((8, side, side, 3), np.uint8), np.zeros(8, np.int32))
    names = tuple("abcdefghijkl"[:num_classes])
    return Dataset("folder" if sha256 else "named", split, split, names, (0.1,) * 3, (0.9,) * 3, sha256)


@functools.cache
def state_dict(name="resnet18", num_classes=5, **options):
    """Weights that were drawn, by PyTorch's names; nothing is compiled for them."""
    module = networks.build(name, num_classes, **({"width": 4} if name != "vit" else {}) | options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    return torch_weights.to_torch(name, jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(s.dtype), shapes))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "victim.safetensors"
    safetensors.numpy.save_file(state_dict(), path)
    return path


def read(file, data=None, name="resnet18", **changed):
    return importing.read({"checkpoint": str(file), "name": name, **GIVEN, **changed}, data or dataset())


def test_weights_width_and_classes_are_the_files_and_preprocessing_is_as_given(file):
    imported = read(file, channels="BGR", input_size=32)
    described = imported.classifier.describe()
    assert described["options"] == {"width": 4}
    assert (described["num_classes"], described["channels"], described["input_size"]) == (5, "BGR", [32, 32])
    assert (described["mean"], described["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    assert set(imported.preprocessing_from.values()) == {"the settings"}
    written = torch_weights.to_torch("resnet18", imported.classifier.variables)
    for key, value in state_dict().items():
        np.testing.assert_array_equal(written[key], value)
    # The size of the images needs no resizing.
    assert read(file, input_size=16).classifier.input_size is None


def test_preprocessing_that_nobody_knows_is_asked_for(file):
    with pytest.raises(SettingError, match=r"victim.mean = None: allowed: three numbers.*victim.mean and victim.std"):
        read(file, **OPEN)
    with pytest.raises(SettingError, match=r"victim.std = None: allowed: three numbers"):
        read(file, std=None)


def test_preprocessing_that_can_be_guessed_is_and_the_record_says_so(tmp_path, file):
    of_data_set = read(file, dataset(sha256=None), **OPEN)
    assert of_data_set.classifier.mean == (0.1,) * 3
    assert of_data_set.preprocessing_from["mean"] == "assumed: named's"
    assert of_data_set.remarks[0] == "victim.mean is not known, and named's is assumed: (0.1, 0.1, 0.1)"
    assert read(file).remarks == ()
    safetensors.numpy.save_file(state_dict("imagenet_resnet18"), tmp_path / "torchvision.safetensors")
    imported = read(tmp_path / "torchvision.safetensors", name="imagenet_resnet18", **OPEN)
    assert imported.classifier.mean == (0.485, 0.456, 0.406)
    assert imported.classifier.std == (0.229, 0.224, 0.225)
    assert imported.preprocessing_from["std"] == "assumed: torchvision's"
    assert (imported.classifier.channels, imported.preprocessing_from["channels"]) == ("RGB", "assumed")
    assert [remark.split()[0] for remark in imported.remarks] == ["victim.mean", "victim.std"]
    # torchvision's network on a data set of another kind: its own mean, as with the other networks.
    data = dataset(sha256=None)
    imported = read(tmp_path / "torchvision.safetensors", data, name="imagenet_resnet18", **OPEN)
    assert imported.classifier.mean == (0.1,) * 3


def test_a_layer_that_normalizes_says_what_the_settings_leave_open(tmp_path):
    layer = {"0.mean": np.float32([0.485, 0.456, 0.406]), "0.std": np.float32([0.229, 0.224, 0.225])}
    whole = layer | {f"1.{key}": value for key, value in state_dict().items()}
    safetensors.numpy.save_file(whole, tmp_path / "whole.safetensors")
    imported = read(tmp_path / "whole.safetensors", dataset(sha256=None), **OPEN)
    assert imported.classifier.mean == (0.485, 0.456, 0.406)
    assert imported.preprocessing_from["std"] == "the file"
    assert read(tmp_path / "whole.safetensors", mean=layer["0.mean"], std=layer["0.std"]).remarks == imported.remarks
    told = read(tmp_path / "whole.safetensors").remarks
    assert "victim.mean is (0.4, 0.5, 0.6) by the settings, and (0.485, 0.456, 0.406) by the file" in told


def test_one_of_two_networks_is_chosen(tmp_path):
    both = {f"{who}.{key}": value for who in ("student", "teacher") for key, value in state_dict().items()}
    safetensors.numpy.save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(SettingError, match=r"victim.entry = None: allowed: one of student, teacher"):
        read(tmp_path / "both.safetensors")
    assert "left out" not in " ".join(read(tmp_path / "both.safetensors", entry="teacher").remarks)
    with pytest.raises(SettingError, match=r"victim.entry = 'x': allowed: of this file one of student, teacher"):
        read(tmp_path / "both.safetensors", entry="x")
    with pytest.raises(SettingError, match=r"victim.entry = 'x': allowed: nothing with a run's victim"):
        read(tmp_path, entry="x")


def test_another_networks_weights_are_named(file, tmp_path):
    with pytest.raises(SettingError) as caught:
        read(file, name="resnet34")
    assert (caught.value.field, caught.value.value) == ("victim.name", "resnet34")
    assert caught.value.allowed.startswith("resnet18, whose weights ")
    strange = {f"layer{i}.weight": np.ones((2, 2), np.float32) for i in range(300)}
    safetensors.numpy.save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(
        DataError, match=r"the weights of none of the networks resnet18, .*layer0.weight.* more"
    ) as caught:
        read(tmp_path / "strange.safetensors")
    assert len(str(caught.value)) < 1000


def test_weights_that_cannot_be_are_not_said_to_be_another_networks(tmp_path):
    weights = state_dict() | {"linear.bias": np.full(5, np.nan, np.float32)}
    safetensors.numpy.save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(DataError, match=r"nan.safetensors: weights of resnet18 that are not finite .*: linear.bias"):
        read(tmp_path / "nan.safetensors")


def run_of(folder, imported, image_size=None, attack_size=None):
    """A working directory with this victim, as far as an import looks at it."""
    import_stage.keep(imported, folder / "victim" / "checkpoints")
    described = {"classifier": imported.classifier.describe(), "victim_sha256": hash_arrays(kept_of(imported))}
    made_from = {"victim": {"name": "resnet18"}, "dataset": {"name": "folder", "image_size": image_size}}
    write_record(folder / "victim" / "stage.json", {"schema": 1, "settings": made_from, "outcome": described})
    if attack_size:
        (folder / "attack").mkdir()
        write_record(folder / "attack" / "attack.json", {"image_size": attack_size})
    return folder


def kept_of(imported):
    return {name: imported.classifier.variables[name] for name in ("params", "batch_stats")}


def test_a_runs_victim_is_shown_images_of_the_size_that_it_was_trained_on(file, tmp_path):
    imported = read(file)
    for number, (made, size) in enumerate(
        [({"attack_size": [24, 20]}, (24, 20)), ({"image_size": 24}, (24, 24)), ({}, None), ({"image_size": 16}, None)]
    ):
        folder = run_of(tmp_path / str(number), imported, **made)
        for place in (folder, folder / "victim"):
            found = read(place, **OPEN)
            assert found.classifier.input_size == size
            assert found.preprocessing_from["input_size"] == ("assumed" if not made else "the file")
    assert read(folder, **OPEN | {"input_size": 8}).classifier.input_size == (8, 8)


def test_another_number_of_classes_is_refused(file):
    with pytest.raises(SettingError, match=r"dataset.class_names = \['a', .*allowed: 5 names"):
        read(file, dataset(num_classes=4))
    with pytest.raises(
        SettingError, match=r"victim.checkpoint = .*classifier of the 10 classes of named; this one has 5"
    ):
        read(file, dataset(num_classes=10, sha256=None))


def test_where_no_image_has_a_label_the_classes_are_the_classifiers(file):
    bare = dataset(num_classes=0)
    named = importing.name_classes(read(file, bare), bare)
    assert named.class_names == ("0", "1", "2", "3", "4")
    labeled = dataset()
    assert importing.name_classes(read(file, labeled), labeled) is labeled


@pytest.mark.parametrize("path", ["not there.pth", "."])
def test_what_is_no_file_and_no_run_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"victim.checkpoint = .*: allowed: a file"):
        read(path)


def test_impossible_preprocessing_is_refused(file):
    with pytest.raises(SettingError, match=r"victim.std = "):
        read(file, std=(0.1, 0.0, 0.1))


@pytest.mark.parametrize(
    ("saved", "accuracy"),
    [
        ({"acc": 93.1}, 0.931),
        ({"acc": 0.5, "epoch": 3}, 0.5),
        ({"best_acc1": 140.0}, None),
        ({}, None),
        ({"acc": "x"}, None),
        ({"model_name": "resnet18", "num_classes": 5, "acc": 0.5}, 0.5),  # and no BackdoorBench
    ],
)
def test_an_accuracy_beside_the_weights_is_what_the_file_claims(saved, accuracy, tmp_path):
    torch = pytest.importorskip("torch")
    weights = {key: torch.from_numpy(value) for key, value in state_dict().items()}
    torch.save({"model": {f"module.{key}": value for key, value in weights.items()}, **saved}, tmp_path / "a.pth")
    imported = read(tmp_path / "a.pth")
    assert imported.format == "state dict"
    assert imported.accuracy == (accuracy and pytest.approx(accuracy))
    assert imported.classifier.num_classes == 5


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), 0, True, np.array([1, 2]), "1"])
def test_what_cannot_be_an_accuracy_is_none(value):
    assert checkpoint_formats._fraction(value) is None


def test_a_whole_pickled_module_is_refused_with_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(TorchFileError, match=r"whole pickled module .*torch.save\(model.state_dict\(\), path\)"):
        read(tmp_path / "module.pth")


def write_backdoorbench(
    folder, *, targets=(0,), path="./record/old/bd_test_dataset", pictures=True, network="imagenet_resnet18"
):
    """attack_result.pt as BackdoorBench saves it, with pictures of 12 test images, 4 of each class but the target."""
    torch = pytest.importorskip("torch")
    weights = {key: torch.from_numpy(value) for key, value in state_dict(network).items()}
    entries = {}
    for number in range(12):
        label = 1 + number % 4
        entries[np.int64(10 * number)] = {
            "path": f"{path}/{label}/{10 * number}.png",
            "other_info": [targets[number % len(targets)], label],
        }
        if pictures:
            place = folder / "bd_test_dataset" / str(label) / f"{10 * number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(place)
    container = {"save_folder_path": path, "data_dict": entries, "save_file_format": ".png"}
    state = {"bd_data_container": container, "getitem_all": True, "poison_indicator": np.ones(120)}
    saved = {"model_name": "resnet18", "num_classes": 5, "model": weights, "data_path": "data/gtsrb", "bd_train": None}
    torch.save(
        {**saved, "img_size": [16, 16, 3], "clean_data": "gtsrb", "bd_test": state}, folder / "attack_result.pt"
    )
    (folder / "attack_df.csv").write_text(",epoch,test_acc,test_asr\n0,0,0.31,0.9\n1,1,0.87,0.95\n")
    return folder / "attack_result.pt"


def test_of_backdoorbench_network_preprocessing_accuracy_and_triggered_images_are_known(tmp_path):
    imported = read(write_backdoorbench(tmp_path), name="imagenet_resnet18", **OPEN)
    assert imported.format == "BackdoorBench"
    assert imported.classifier.mean == (0, 0, 0)
    assert imported.classifier.std == (1, 1, 1)
    assert imported.accuracy == 0.87
    assert imported.remarks == ()
    shown = triggered.beside_checkpoint(imported.triggered, dataset())
    assert shown.target == 0
    # Red is the number of the picture, whose class is 1 + number % 4.
    numbers = shown.images[:, 0, 0, 0]
    assert sorted(numbers) == list(range(12))
    np.testing.assert_array_equal(shown.labels, 1 + numbers % 4)


@pytest.mark.parametrize(("name", "written"), [("imagenet_resnet18", 18), ("imagenet_resnet34", 34)])
def test_an_imported_network_answers_as_it_does_in_pytorch(tmp_path, name, written):
    from tests import torch_resnets

    network = getattr(torch_resnets, f"TorchvisionResNet{written}")(width=4, num_classes=5)
    weights = {key: torch_resnets.torch.from_numpy(value) for key, value in state_dict(name).items()}
    network.load_state_dict(weights)
    imported = read(write_backdoorbench(tmp_path, network=name), name=name, **OPEN)
    images = triggered.beside_checkpoint(imported.triggered, dataset()).images
    with torch_resnets.torch.no_grad():
        expected = network.eval()(torch_resnets.tensors(images, (0.0,) * 3, (1.0,) * 3)).numpy()
    found = jax.jit(lambda classifier, images: classifier(images))(imported.classifier, images / np.float32(255))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("how", "remark"),
    [
        ({"targets": (0, 2)}, "have 2 targets"),
        ({"pictures": False}, "are not beside it"),
        ({"path": "C:\\old\\.."}, "are not files"),
    ],
)
def test_triggered_images_that_cannot_be_used_are_said_and_the_weights_are_taken(tmp_path, how, remark):
    imported = read(write_backdoorbench(tmp_path, **how), name="imagenet_resnet18", **OPEN)
    assert imported.triggered is None
    assert remark in imported.remarks[0]


def test_pictures_that_are_named_and_missing_are_left_out_and_others_are_not_read(tmp_path, caplog):
    imported = read(write_backdoorbench(tmp_path), name="imagenet_resnet18", **OPEN)
    (tmp_path / "bd_test_dataset" / "1" / "0.png").unlink()
    Image.new("RGB", (16, 16)).save(tmp_path / "bd_test_dataset" / "1" / "of another.png")
    assert len(triggered.beside_checkpoint(imported.triggered, dataset()).images) == 11
    assert "1 files: named by the checkpoint and not there (1/0.png)" in caplog.text
    with pytest.raises(DataError, match=r"of the classes \[0, 1, 2, 3, 4\], and there are 4"):
        triggered.beside_checkpoint(imported.triggered, dataset(num_classes=4))


def test_a_folder_of_triggered_pictures_has_their_true_classes(tmp_path):
    for name, red in (("c", 2), ("0", 0), ("4", 4)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (red, 0, 0)).save(tmp_path / name / "a.png")
    shown = triggered.of_folder(tmp_path, dataset(), 1)
    assert shown.target == 1
    np.testing.assert_array_equal(shown.labels, shown.images[:, 0, 0, 0])
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(
        SettingError, match=r"a class folder of attack.triggered_root = 'cat': allowed: a, b, .*0 to 4"
    ):
        triggered.of_folder(tmp_path, dataset(), 1)
    with pytest.raises(SettingError, match=r"attack.triggered_root = .*this one has no folders"):
        triggered.of_folder(tmp_path / "cat", dataset(), 1)


def test_pictures_of_backdoorbench_are_looked_for_by_what_comes_after_their_folders_name():
    below = checkpoint_formats._below
    assert below("./record/run/bd_test_dataset/3/17.png", "bd_test_dataset") == "3/17.png"
    assert below(r"D:\record\bd_test_dataset\3\17.png", "bd_test_dataset") == "3/17.png"
    for path in ("/etc/passwd", "bd_test_dataset", "bd_test_dataset/../../x.png"):
        with pytest.raises(ValueError, match=r"is no path below|is not in list|not in tuple"):
            below(path, "bd_test_dataset")
