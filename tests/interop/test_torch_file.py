"""Files that torch.save and safetensors wrote, and what loading makes of them."""

import argparse
import os
import struct
from collections import Counter, OrderedDict

import chex
import numpy as np
import pytest

import refine_jax
from refine_jax.errors import DataError
from refine_jax.interop import torch_file, torch_weights
from tests.goldens import rules, torch_saved
from tests.interop import torch_files
from tests.interop.torch_files import archive, integer, named, storage, stream, string, tensor


def write(tmp_path, data):
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    return path


def assert_same(got, expected):
    """Compares nested values, the order of keys and the types of arrays included."""
    if isinstance(expected, dict):
        assert type(got) is dict
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, list | tuple):
        assert type(got) is type(expected)
        assert len(got) == len(expected)
        for pair in zip(got, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, np.ndarray | np.generic):
        assert type(got) is type(expected)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)
    else:
        assert type(got) is type(expected)
        assert got == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("state_dict.pth", torch_saved.state_dict),
        ("protocol4.pth", torch_saved.state_dict),
        ("legacy.pth", torch_saved.state_dict),
        ("dtypes.pth", torch_saved.dtypes),
        ("backdoorbench.pt", torch_saved.backdoorbench),
    ],
)
def test_files_of_pytorch(name, expected):
    assert_same(torch_file.load(torch_saved.FILES / name), expected())


def test_views_of_one_storage():
    loaded = refine_jax.interop.torch_file.load(str(torch_saved.FILES / "views.pth"))
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {"all": values, "again": values, "transposed": values.T, "part": values[1:, ::2]}
    expected |= {"expanded": np.ones((2, 3), np.float32), "parameter": values[0], "size": (3, 4)}
    assert_same(loaded, expected | {"dtype": np.dtype(np.float16), "device": "cuda:1"})
    loaded["all"][0, 1] = 100
    assert loaded["again"][0, 1] == loaded["transposed"][1, 0] == loaded["parameter"][1] == 100


def test_tar_archive_of_the_first_versions(tmp_path):
    path = write(tmp_path, torch_files.tar())
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_same(torch_file.load(path), {"weight": weight, "part": weight.ravel()[4:]})


@pytest.mark.parametrize("what", ["pth", "legacy", "tar"])
def test_torch_reads_the_files_made_by_hand_alike(tmp_path, what):
    torch = pytest.importorskip("torch")
    pickled = b"\x80\x02}" + string("w") + tensor((3, 2), (1, 3)) + b"s."
    values = np.arange(6, dtype=np.float32)
    if what == "legacy":
        stored = b"(" + string("storage") + named("torch", "FloatStorage") + string("0") + string("cpu") + integer(6)
        pickled = b"\x80\x02}" + string("w") + tensor((3, 2), (1, 3), stored=stored + b"NtQ") + b"s."
        data = stream(pickled, ["0"], struct.pack("<q", 6) + values.tobytes())
    else:
        data = torch_files.tar() if what == "tar" else archive(pickled, {"0": values.tobytes()})
    path = write(tmp_path, data)
    expected = torch.load(path, weights_only=False)
    assert_same(torch_file.load(path), {key: value.numpy() for key, value in expected.items()})


def test_parity_with_torch(tmp_path):
    """Every type, many shapes, strides and containers, in three ways of saving them."""
    torch = pytest.importorskip("torch")
    tensors = {}
    for name in torch_saved.DTYPES:
        for shape in [(), (0,), (2, 0, 3), (1,), (5,), (2, 3), (2, 1, 3, 2)]:
            values = torch.from_numpy(np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape))
            made = values.to(getattr(torch, name))
            tensors[f"{name} {shape}"] = made
            tensors[f"{name} {shape} transposed"] = made.permute(tuple(range(made.ndim))[::-1])
            if len(shape) == 2:
                tensors[f"{name} {shape} part"] = made[1:, 1:]
                tensors[f"{name} {shape} expanded"] = made[:, :1].expand(2, 4)
    with_attribute = torch.ones(2)
    with_attribute.partitioned = True
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(2)), "attribute": with_attribute}
    saved = OrderedDict(tensors=tensors, optimizer={"milestones": Counter({100: 1}), 3: [(), {}, None, -(1 << 300)]})
    for options in ({}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}):
        path = tmp_path / "saved.pth"
        if "_use_new_zipfile_serialization" in options:
            # PyTorch 2.13 writes tensors without a storage class of their own so, and cannot read them.
            named = tuple(list(torch_saved.DTYPES)[-5:])
            saved["tensors"] = {key: value for key, value in tensors.items() if not key.startswith(named)}
        torch.save(saved, path, **options)
        loaded = torch_file.load(path)
        reference = torch.load(path, weights_only="pickle_protocol" not in options)
        assert_same(loaded["optimizer"], dict(reference["optimizer"], milestones={100: 1}))
        for key, value in reference["tensors"].items():
            got, value = loaded["tensors"][key], value.detach()
            assert got.dtype.name == str(value.dtype).removeprefix("torch."), key
            assert got.shape == value.shape, key
            for length, step, expected in zip(got.shape, got.strides, value.stride(), strict=True):
                assert got.size == 0 or length == 1 or step == expected * got.itemsize, key
            np.testing.assert_array_equal(got.astype(np.complex128), value.to(torch.complex128).numpy(), err_msg=key)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("unet", 2)])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_weights_of_a_network_go_to_torch_and_back(tmp_path, name, width, options):
    torch = pytest.importorskip("torch")
    module = refine_jax.networks.unet.UNet(width=width, depth=2) if name == "unet" else None
    module = module or refine_jax.networks.build(name, 3, width=width)
    variables = rules.variables(module, (1, 8, 8, 3))
    state_dict = {k: torch.from_numpy(v) for k, v in torch_weights.to_torch(name, variables).items()}
    saved = {"model": OrderedDict(state_dict), "num_classes": 3, "args": argparse.Namespace(lr=0.1, name="a")}
    torch.save(saved, tmp_path / "saved.pth", **options)
    assert torch_file.load(tmp_path / "saved.pth")["args"] == {}
    chex.assert_trees_all_equal(torch_weights.convert(name, torch_file.load(tmp_path / "saved.pth")), variables)


def test_strings_and_bytes_of_python_2(tmp_path):
    pickled = b"\x80\x02}(U\x01aU\x02bcT\x02\x00\x00\x00de" + b"U\x02\xff\x00u."
    assert_same(torch_file.load(write(tmp_path, archive(pickled))), {"a": "bc", "de": b"\xff\x00"})


def test_archives_without_checksums_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(3)}, tmp_path / "saved.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(torch_file.load(tmp_path / "saved.pth"), {"w": np.arange(3)})


@pytest.mark.parametrize("name", sorted(path.name for path in torch_saved.FILES.iterdir()))
def test_a_file_cut_short_anywhere_is_refused(tmp_path, name):
    data = (torch_saved.FILES / name).read_bytes()
    for length in range(0, len(data), 1 + len(data) // 60):
        path = write(tmp_path, data[:length])
        with pytest.raises(torch_file.TorchFileError, match=r"file\.pth"):
            torch_file.load(path)


def test_one_wrong_bit_in_an_archive_is_noticed(tmp_path):
    data = bytearray(archive(b"\x80\x02" + tensor((6,), (1,)) + b".", {"0": b"weights!" * 3}))
    data[data.index(b"weights!") + 9] ^= 4
    with pytest.raises(DataError, match=r"damaged.*'archive/data/0'.*download it again"):
        torch_file.load(write(tmp_path, bytes(data)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"hello", "is no file of torch.save and no safetensors file"),
        (torch_files.packed({"x.npy": b""}), "without the one data.pkl"),
        (torch_files.packed({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "without the one data.pkl"),
        (archive(b"\x80\x02N.", **{"constants.pkl": b""}), "TorchScript.*state_dict"),
        (archive(b"\x80\x02N.", byteorder=b"big"), "byte order 'big'"),
        (archive(b"\x80\x02N.", version=b"11"), "version '11'"),
        (torch_files.dump({"w": [1]}), "is a pickle, and not one that torch.save wrote"),
        (archive(b"\x80\x02" + storage() + b".", {"0": bytes(24)}), "holds a Storage"),
        (archive(b"\x80\x02" + named("torch", "FloatStorage") + b"."), "holds a StorageType"),
        (archive(b"\x80\x02" + named("torch", "Size") + b"."), "holds a Builder"),
        (torch_files.tar(kind=b"2"), "member 'storages' as a link"),
        (torch_files.tar({"storages": b"", "tensors": b""}), "without the members"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, data, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, data))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path, "is no regular file"),
        (tmp_path / "pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path / "nothing.pth", "nothing.pth cannot be read: No such file"),
    ]:
        with pytest.raises(torch_file.TorchFileError, match=message):
            torch_file.load(path)


def test_a_file_may_hold_max_bytes(tmp_path):
    path = write(tmp_path, archive(b"\x80\x02N."))
    assert torch_file.load(path, max_bytes=path.stat().st_size) is None
    with pytest.raises(torch_file.TorchFileError, match="more than max_bytes = "):
        torch_file.load(path, max_bytes=path.stat().st_size - 1)
