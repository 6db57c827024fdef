"""Malicious pickles: each is refused by the name of what it would run, before anything is run or built."""

import functools
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from refine_jax.interop import torch_file
from tests.interop.test_torch_file import write
from tests.interop.torch_files import archive, integer, named, storage, stream, string, tensor


def call(module, name, *arguments):
    """Returns the opcodes that call a function with strings."""
    return named(module, name) + b"(" + b"".join(map(string, arguments)) + b"tR"


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def live(touched):
    """Returns pickles that make a file when Python unpickles them, and what each is refused for."""
    command = f"touch {touched}"
    code = f"open({str(touched)!r}, 'w').close()"
    chain = named("builtins", "getattr") + b"(" + call("builtins", "__import__", "os") + string("system") + b"tR"
    return {
        "os.system, protocol 0": (f"cos\nsystem\n(S{command!r}\ntR.".encode(), "names os.system"),
        "os.system, protocol 2": (b"\x80\x02" + call("os", "system", command) + b".", "names os.system"),
        "os.system, protocol 4": (
            b"\x80\x04\x95" + (7).to_bytes(8, "little") + string("os") + string("system") + b"\x93(" + string(command)
            + b"tR.",
            "names os.system",
        ),
        "os.system, by INST": (f"(S{command!r}\nios\nsystem\n.".encode(), "names os.system"),
        "os.system, by OBJ": (b"(" + named("os", "system") + string(command) + b"o.", "names os.system"),
        "posix.system, as pickle writes it": (pickle.dumps(Reduced(os.system, command)), r"names (posix|nt)\.system"),
        "eval": (pickle.dumps(Reduced(eval, code), 2), r"names __builtin__\.eval"),
        "exec": (b"\x80\x02" + call("builtins", "exec", code) + b".", r"names builtins\.exec"),
        "getattr chain": (
            b"\x80\x02" + chain + b"(" + string(command) + b"tR.", r"names builtins\.getattr"
        ),
        "dotted name": (
            b"\x80\x04" + string("collections") + string("_sys.modules.get") + b"\x93(" + string("os") + b"tR0"
            + call("os", "system", command) + b".",
            r"names collections\._sys\.modules\.get",
        ),
        "functools.partial": (
            pickle.dumps(Reduced(functools.partial(os.system, command))), r"names functools\.partial"
        ),
        "operator.methodcaller": (
            b"\x80\x02" + call("operator", "methodcaller", "system", command) + b"("
            + call("importlib", "import_module", "os") + b"tR.",
            r"names operator\.methodcaller",
        ),
        "subprocess": (pickle.dumps(Reduced(subprocess.call, ["touch", str(touched)])), r"names subprocess\.call"),
        "subprocess.Popen, protocol 4": (
            b"\x80\x04" + named("subprocess", "Popen") + b"](" + string("touch") + string(str(touched)) + b"e\x85R.",
            r"names subprocess\.Popen",
        ),
        "code in a nested pickle": (
            b"\x80\x02" + named("pickle", "loads") + b"(" + named("_codecs", "encode") + b"("
            + string(f"cos\nsystem\n(S{command!r}\ntR.") + string("latin1") + b"tRtR.",
            r"names pickle\.loads",
        ),
        "hidden behind a state dict": (
            b"\x80\x02}" + string("w") + b"]s0" + call("posix", "system", command) + b"0}.", r"names posix\.system"
        ),
    }  # fmt: skip


LIVE = list(live("x"))


@pytest.mark.parametrize("case", LIVE)
def test_the_corpus_is_live(tmp_path, case):
    """Else refusing it would show nothing."""
    touched = tmp_path / "touched"
    try:
        value = pickle.loads(live(touched)[case][0])
        if isinstance(value, subprocess.Popen):
            value.wait()
    except Exception:  # Some end in an error of their own, afterwards.
        pass
    assert touched.exists()


def wrapped(pickled):
    """Returns the files that would bring a pickle to torch.load."""
    return {"archive": archive(pickled), "stream": stream(pickled), "bare": pickled}


@pytest.mark.parametrize("case", LIVE)
@pytest.mark.parametrize("form", ["archive", "stream", "bare"])
def test_code_is_refused_by_its_name_and_not_run(tmp_path, case, form):
    touched = tmp_path / "touched"
    pickled, message = live(touched)[case]
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, wrapped(pickled)[form]))
    assert not touched.exists()


RUNS_CODE = [
    "dill._dill._create_function", "dill._dill._load_type", "dill._dill._create_code",
    "cloudpickle.cloudpickle._make_function", "joblib.numpy_pickle.NumpyArrayWrapper",
    "joblib.numpy_pickle.NumpyUnpickler", "torch.storage._load_from_bytes", "torch.load", "torch.hub.load",
    "runpy._run_code", "runpy.run_path", "marshal.loads", "types.CodeType", "types.FunctionType", "ctypes.CDLL",
    "importlib.import_module", "pip.main", "webbrowser.open", "socket.create_connection", "shutil.rmtree",
    "copyreg._reconstructor", "builtins.compile", "builtins.open", "__builtin__.apply", "nt.system", "pty.spawn",
    "multiprocessing.util.spawnv_passfds",
]  # fmt: skip


@pytest.mark.parametrize("name", RUNS_CODE)
def test_reducers_of_other_tools_are_refused_by_name(tmp_path, name):
    pickled = b"\x80\x02" + call(*name.rsplit(".", 1), "x") + b"."
    with pytest.raises(torch_file.TorchFileError, match=rf"names {name}, .* do not open it with torch\.load"):
        torch_file.load(write(tmp_path, archive(pickled)))


UNKNOWN = [
    "torch._utils._import_dotted_name", "torch.serialization.os.system",
    "torch._utils._rebuild_tensor_v2.__globals__", "torch._utils.torch.load", "collections.OrderedDict.fromkeys",
    "numpy.load", "numpy.testing._private.utils.runstring", "numpy.core.multiarray.fromfile", "numpy.memmap",
    "torch.utils.cpp_extension.load", "argparse.ArgumentParser", "torch.QInt8Storage", "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
]  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_every_other_name_is_refused_by_name(tmp_path, name):
    pickled = b"\x80\x02" + call(*name.rsplit(".", 1), "x") + b"."
    with pytest.raises(torch_file.TorchFileError, match=rf"names {name}, and only tensors, .*state_dict\(\)"):
        torch_file.load(write(tmp_path, archive(pickled)))


def test_a_lambda_of_cloudpickle_is_refused(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    with pytest.raises(torch_file.TorchFileError, match=r"names cloudpickle\.cloudpickle\._"):
        torch_file.load(write(tmp_path, archive(cloudpickle.dumps(lambda x: x, protocol=4))))


def test_an_array_of_joblib_is_refused(tmp_path):
    joblib = pytest.importorskip("joblib")
    joblib.dump({"w": np.ones(2)}, tmp_path / "file.pth")
    with pytest.raises(torch_file.TorchFileError, match=r"names joblib\.numpy_pickle\.NumpyArrayWrapper"):
        torch_file.load(tmp_path / "file.pth")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_whole_module_is_refused_with_what_to_do(tmp_path, options):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save({"model": model}, tmp_path / "model.pth", **options)
    message = r"whole pickled module \(it names torch\.nn.*Sequential\).*torch\.save\(model\.state_dict\(\), path\)"
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(tmp_path / "model.pth")


def test_a_module_of_the_users_own_is_named(tmp_path):
    pickled = b"\x80\x02" + named("models.resnet", "ResNet") + b")\x81}" + string("conv1")
    pickled += named("torch.nn.modules.conv", "Conv2d") + b")\x81sb."
    with pytest.raises(torch_file.TorchFileError, match=r"whole pickled module \(it names models\.resnet\.ResNet\)"):
        torch_file.load(write(tmp_path, archive(pickled)))


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    for opcodes in (named("evil_module", "x"), string("evil_module") + string("x") + b"\x93"):
        with pytest.raises(torch_file.TorchFileError, match=r"names evil_module\.x"):
            torch_file.load(write(tmp_path, archive(b"\x80\x04" + opcodes + b".")))
    assert "evil_module" not in sys.modules


def test_a_state_sets_no_attributes(tmp_path):
    state = b"}" + string("__class__") + string("x") + b"s"
    pickled = b"\x80\x02" + named("collections", "OrderedDict") + b")R" + state + b"b."
    assert torch_file.load(write(tmp_path, archive(pickled))) == {}
    pickled = b"\x80\x02" + tensor((6,), (1,)) + state + b"b."
    with pytest.raises(torch_file.TorchFileError, match="gives a ndarray a dict as its state"):
        torch_file.load(write(tmp_path, archive(pickled, {"0": bytes(24)})))


ARRAY = named("numpy._core.multiarray", "_reconstruct")
ARRAY += b"(" + named("numpy", "ndarray") + b"K\0\x85" + string("b") + b"tR"


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x82\x01", "opcode EXT1"),
        (b"\x84\x01\0\0\0", "opcode EXT4"),
        (named("torch", "Size") + b")}\x92", "opcode NEWOBJ_EX"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"\xff", "the byte b'\\\\xff'"),
        (b"N)R", "calls None, which is nothing"),
        (storage() + b")R", "calls a Storage, which is nothing"),
        (named("torch", "Size") + b"NR", "calls torch.Size with None"),
        (named("torch", "Size") + b"NNN\x87R", "calls torch.Size with arguments that it has not"),
        (named("torch", "Size") + integer(-1) + b"\x85\x85R", "has -1 where a size belongs"),
        (named("torch._utils", "_rebuild_tensor") + b"(" + storage() + b"K\0K\6\x85K\1\x85" + string("f4") + b"tR",
         "calls torch._utils._rebuild_tensor with arguments that it has not"),
        (string("system") + b"Q", "refers to something outside"),
        (b"(" + string("module") + b"NNNtQ", "refers to something outside"),
        (b"(" + string("storage") + b"N" + string("0") + string("cpu") + b"K\x06tQ", "storage of the type None"),
        (storage("9"), "storage '9', which it does not hold"),
        (storage("../data.pkl"), r"storage '../data\.pkl', which it does not hold"),
        (storage(numel=7), "holds 24 bytes in its storage '0', and describes 28"),
        (b"h\x07", "recalls a value that it did not keep"),
        (b"e", "closes a container that it did not open"),
        (b"0", "takes more values than it gave"),
        (b"N(NNe", "fills None as if it were a list"),
        (b"}(Nu", "a key without a value"),
        (b"}))s", "has a tuple as a key"),
        (b"}" + integer(1 << 61) + b"Ns", "has 2305843009213693952 as a key"),
        (b"\x8b\x00\x01\x00\x00" + bytes(256), "a whole number of 256 bytes"),
        (b"I" + b"1" * 256 + b"\n", "where a number belongs"),
        (b"X\xff\xff\xff\xff", "ends in the middle of its pickle"),
        (b"\x8d" + b"\xff" * 8, "ends in the middle of its pickle"),
        (b"X\x09\x00\x00\x00", "ends in the middle of its pickle"),
        (b"\x80\x06", "protocol 6"),
        (ARRAY + b"(K\1K\2\x85" + call("numpy", "dtype", "O8") + b"\x89" + b"]tb", "type 'O8': only numbers"),
        (ARRAY + b"(K\1K\2\x85" + call("numpy", "dtype", "V8") + b"\x89" + b"]tb", "type 'V8': only numbers"),
        (ARRAY + b"(K\1K\3\x85" + call("numpy", "dtype", "i1") + b"\x89" + string("ab") + b"tb", "shape needs 3"),
        (ARRAY + b"(K\1" + integer(1 << 50) + b"K\0\x86" + call("numpy", "dtype", "i1") + b"\x89" + string("") + b"tb",
         "array of shape"),
    ],
)  # fmt: skip
def test_what_torch_does_not_write_is_refused(tmp_path, opcodes, message):
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.load(write(tmp_path, archive(b"\x80\x02" + opcodes + b".", {"0": bytes(24)})))


def test_a_name_is_printed_short_and_in_ascii(tmp_path):
    name = "\u202e\x1b[31m" + "x" * 10_000
    with pytest.raises(torch_file.TorchFileError) as error:
        torch_file.load(write(tmp_path, archive(b"\x80\x04" + string("os") + string(name) + b"\x93.")))
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_python_unpickles_what_is_allowed_alike():
    """The opcodes of every protocol, against Python's own unpickler."""
    from refine_jax.interop import torch_pickle
    from refine_jax.interop.pickle_machine import Budget
    from refine_jax.interop.torch_tensors import refuse_persistent

    value = [{"a": 1.5, b"b": (1, (2,), (3, 4), (5, 6, 7), (1, 2, 3, 4))}, -1, 300, 1 << 40, -(1 << 600), True, None]
    value += ["\U0001f600 \xe9 " * 100, "x" * 300, {1, 2}, b"y" * 300, [], {}, (), 1 + 2j, [[[]]], "\\n\n"]
    value.append(value[0])
    for protocol in range(2, 6):
        data = pickle.dumps(value, protocol)
        got = torch_pickle.load(io.BytesIO(data), len(data), refuse_persistent, Budget())
        assert got == pickle.loads(data) == value
        assert got[-1] is got[0]
