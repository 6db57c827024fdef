"""What the files in torch_files/ hold, in NumPy; and the program that wrote them, with PyTorch and safetensors.

python -m tests.goldens.torch_saved
"""

from collections import OrderedDict

import ml_dtypes
import numpy as np

from tests.goldens.rules import FOLDER

FILES = FOLDER / "torch_files"
# NumPy's types and PyTorch's names of them; the last ones have no storage class of their own.
DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def numbers(dtype, shape):
    """0, 1, 0, 1 for truth values, else the numbers from 0 to 6 again and again."""
    values = np.arange(int(np.prod(shape))) % (2 if dtype is np.bool_ else 7)
    return values.astype(np.float32).astype(dtype).reshape(shape)


def state_dict():
    return OrderedDict(
        {
            "conv.weight": numbers(np.float32, (2, 3, 2, 2)),
            "conv.bias": numbers(np.float32, (2,)),
            "bn.num_batches_tracked": np.array(7, np.int64),
            "none": numbers(np.float32, (0, 3)),
            "half": numbers(ml_dtypes.bfloat16, (2, 3)),
        }
    )


def dtypes():
    return {name: numbers(dtype, (3,)) for name, dtype in DTYPES.items()}


def backdoorbench():
    """Shaped like BackdoorBench's attack_result.pt."""
    paths = {index: {"path": f"./bd_test_dataset/0/{index}.png", "other_info": (index, 0, 1)} for index in (3, 5)}
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": state_dict(),
        "data_path": "./data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": None,
        "bd_test": {
            "bd_data_container": {"save_folder_path": "./bd_test_dataset", "data_dict": paths},
            "getitem_all": True,
            "original_index_array": np.arange(3),
            "poison_indicator": np.array([0.0, 1.0, 1.0], np.float32),
            "rate": np.float64(0.1),
            "classes": {0, 1},
            "raw": b"\x00\xff",
            "nothing": b"",
            "big": 1 << 70,
            "numbers": [1.5, -3, 70000, False, 2 + 1j],
        },
    }


def main():
    """Writes the files."""
    import torch  # Not needed by the tests.
    from safetensors import numpy as safetensors

    def tensor(array):
        bits = np.dtype(f"u{array.dtype.itemsize}") if array.dtype.isbuiltin != 1 else array.dtype
        made = torch.from_numpy(np.array(array).view(bits))
        return made.view(getattr(torch, array.dtype.name)) if bits is not array.dtype else made

    def tensors(tree):
        return type(tree)({key: tensor(value) for key, value in tree.items()})

    torch.save(tensors(state_dict()), FILES / "state_dict.pth")
    torch.save(tensors(state_dict()), FILES / "protocol4.pth", pickle_protocol=4)
    torch.save(tensors(state_dict()), FILES / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors(dtypes()), FILES / "dtypes.pth")
    result = backdoorbench()
    torch.save(result | {"model": tensors(result["model"])}, FILES / "backdoorbench.pt")
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {
            "all": shared,
            "again": shared,
            "transposed": shared.T,
            "part": shared[1:, ::2],
            "expanded": torch.ones(1).expand(2, 3),
            "parameter": torch.nn.Parameter(shared[0]),
            "size": shared.shape,
            "dtype": torch.float16,
            "device": torch.device("cuda:1"),
        },
        FILES / "views.pth",
    )
    safetensors.save_file(
        {"weight": numbers(np.float32, (2, 3)), "scalar": np.array(3, np.int64), "none": numbers(np.float16, (0, 2))},
        FILES / "weights.safetensors",
        {"format": "np"},
    )


if __name__ == "__main__":
    main()
