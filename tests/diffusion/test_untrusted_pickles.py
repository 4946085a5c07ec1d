"""Pickles from anywhere: what is data is read exactly, what is not runs nothing."""

import collections
import contextlib
import gc
import io
import os
import pickle
import struct
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import InputError
from diffusion.interop.restricted_unpickler import (
    Record,
    read_untrusted,
    untrusted_loads,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pickle_writer import (
    MODULE_SOURCE,
    Call,
    Name,
    Object,
    Storage,
    dumps,
    legacy_storage,
    module_dict,
    module_state,
    parameter,
    persistent,
    tensor,
    torch_legacy,
    torch_zip,
)

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 4)).astype(np.float32)

# What Python reports of code that is found, compiled or run, and of files, processes
# and sockets.
FORBIDDEN = (
    "exec compile import open code.__new__ function.__new__ marshal.loads "
    "pickle.find_class os. subprocess. shutil. socket. ctypes."
).split()
_watch = threading.local()


def _audit(event, arguments):
    if getattr(_watch, "active", False) and event.startswith(tuple(FORBIDDEN)):
        _watch.events.append((event, arguments))


sys.addaudithook(_audit)  # for good: Python has no way to take one off


@contextlib.contextmanager
def nothing_runs():
    """Assert that this thread runs and opens nothing meanwhile."""
    gc.disable()  # what earlier tests left behind may read files when it is collected
    _watch.events, _watch.active = [], True
    try:
        yield
    finally:
        _watch.active = False
        gc.enable()
    assert not _watch.events
    assert not Path("executed").exists()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work where the files' code would leave its mark: a file ``executed``."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def codecs_loaded():
    """Python imports the encodings that file formats use when it first meets them."""
    for data in (*map(good_file, GOOD_FILES), b"S'a'\n.", b"Va\n.", b"damaged"):
        with contextlib.suppress(InputError):
            untrusted_loads(data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_data_come_back_as_they_were(protocol):
    data = {
        "text": "ä\n'quoted'",
        "bytes": b"\x00\xff",
        "numbers": [0, -1, 255, 2**31, 2**70, 1.5, -0.0],
        "nested": ({"a": None}, True, False, ()),
        "set": {1, 2},
        b"key": collections.OrderedDict(x=1),
    }
    if protocol < 4:
        data.pop("set")
    assert untrusted_loads(pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_come_back_bit_for_bit(protocol):
    data = {
        "c": RNG.normal(size=(3, 5)),
        "f": np.asfortranarray(RNG.normal(size=(3, 5)).astype(np.float32)),
        "u": np.arange(6, dtype=np.uint8),
        "big": np.arange(6, dtype=">i4"),
        "scalar": np.float64(0.25),
    }
    found = untrusted_loads(pickle.dumps(data, protocol))
    for name, value in data.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_edms_shape_comes_back_bit_for_bit(protocol):
    arrays = {
        "transposed": RNG.normal(size=(4, 3)).astype(np.float32).T,
        "count": np.arange(5),
    }
    base = np.ascontiguousarray(arrays["transposed"].T)
    buffers = {
        "count": tensor(arrays["count"], legacy_storage(arrays["count"])),
        "transposed": tensor(arrays["transposed"], legacy_storage(base)),
    }
    inner = persistent("Conv2d", module_state({}, {"weight": parameter(WEIGHT)}))
    # A container of torch is no persistent class: an object with attributes.
    net = module_state({"enc": module_dict({"8x8_conv": inner})}, {}, buffers)
    arguments = {"img_resolution": 8, "model_type": "SongUNet"}
    root = module_state({"model": persistent("SongUNet", net)}, _init_kwargs=arguments)
    others = {"loss_fn": persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None}
    data = dumps({"ema": persistent("EDMPrecond", root), **others}, protocol)
    assert pickle.NEWOBJ in data and MODULE_SOURCE.encode() in data
    Path("snapshot.pkl").write_bytes(data)
    with nothing_runs():
        content = untrusted_loads(data)
    assert content["loss_fn"].state == {"P_mean": -1.2}
    for found in (content["ema"], read_untrusted("snapshot.pkl")["ema"]):
        assert isinstance(found, Record)
        assert found.name == "EDMPrecond"
        assert found.state["_init_kwargs"] == arguments
        net = found.state["_modules"]["model"].state
        for name, value in arrays.items():
            np.testing.assert_array_equal(net["_buffers"][name], value)
        container = net["_modules"]["enc"]
        assert isinstance(container, Record)
        assert container.name == "torch.nn.modules.container.ModuleDict"
        inner = container.state["_modules"]["8x8_conv"].state
        np.testing.assert_array_equal(inner["_parameters"]["weight"], WEIGHT)


def test_the_mark_of_code_that_runs_would_be_seen(tmp_path):
    with pytest.raises(AssertionError), nothing_runs():
        exec(MODULE_SOURCE)
    assert _watch.events
    mark = Path("executed")
    assert mark.exists()
    evil = hostile(tmp_path)
    for name in ("os.system", "eval", "exec", "protocol 0", "obj", "inst"):
        mark.unlink()
        pickle.loads(evil[name])
        assert mark.exists(), name


def test_torch_zip_files_share_their_storages():
    flat = np.arange(12, dtype=np.float32)
    storage = Storage("FloatStorage", "0", 12)
    state = {
        "whole": tensor(flat.reshape(3, 4), storage),
        "part": tensor(flat, storage, offset=4, size=(2, 2), stride=(1, 2)),
    }
    found = untrusted_loads(torch_zip(state, {"0": flat}))
    np.testing.assert_array_equal(found["whole"], flat.reshape(3, 4))
    np.testing.assert_array_equal(found["part"], [[4, 6], [5, 7]])


def test_real_torch_files_are_read():
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    state = {
        "a": torch.randn(3, 4).t(),
        "b": torch.arange(4),
        "c": torch.nn.Parameter(torch.randn(2).to(torch.bfloat16)),
        "d": torch.zeros(0, 3),
    }
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=zipped)
        found = untrusted_loads(out.getvalue())
        for name, value in state.items():
            expected = value.detach().float().numpy()
            np.testing.assert_array_equal(found[name].astype(np.float32), expected)


class Evil:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def hostile(tmp_path):
    marker = f"touch {tmp_path / 'executed'}"
    code = f"open({str(tmp_path / 'executed')!r}, 'w')"
    evil = pickle.dumps(Evil(os.system, marker))
    bomb = [b"\x80\x02]"] + [b"q\x00h\x00h\x00\x86"] * 200_000 + [b"."]
    tuples = b"\x80\x02)" + b"2\x86" * 5000 + b"."
    keyed = b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s."
    flat = np.arange(4, dtype=np.float32)

    def view(offset, size, stride):
        call = tensor(flat, legacy_storage(flat), offset, stride, size)
        return dumps({"a": call})

    huge_zip = io.BytesIO()
    with zipfile.ZipFile(huge_zip, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x00" * 50_000_000)
    return {
        "os.system": evil,
        "eval": pickle.dumps(Evil(eval, code)),
        "exec": pickle.dumps(Evil(exec, code)),
        "protocol 0": pickle.dumps(Evil(os.system, marker), 0),
        "obj": b"(cos\nsystem\nS'" + marker.encode() + b"'\no.",
        "inst": b"(S'" + marker.encode() + b"'\nios\nsystem\n.",
        "getattr": dumps(Call("builtins.getattr", Name("os.path"), "system")),
        "call of a record": dumps(Call("operator.methodcaller", "system")),
        "in a storage": dumps(Call("torch.storage._load_from_bytes", evil)),
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02U\x01aQ.",
        "memo bomb": b"".join(bomb),
        "doubling tuples": tuples,
        "doubling key": keyed,
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
        "huge list": b"\x80\x02]" + b"K\x01a" * 400_000 + b".",
        "huge number": b"L" + b"9" * 1_000_000 + b"L\n.",
        "huge storage": dumps({"a": Storage("FloatStorage", "0", 2**50)}),
        "overlap": view(0, (2, 2), (0, 1)),
        "overlap of a stride": view(0, (2, 3), (1, 1)),
        "negative stride": view(3, (4,), (-1,)),
        "negative size": view(0, (-1,), (1,)),
        "beyond the end": view(1, (4,), (1,)),
        "huge view": view(0, (2**40, 2**40), (0, 0)),
        "array size": pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"K\x09\x85"),
        "zip bomb": huge_zip.getvalue(),
        "zip": b"PK\x03\x04" + bytes(100),
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "object array": pickle.dumps(np.array([None])),
        "truncated": dumps({"a": parameter(WEIGHT)})[:-30],
        "empty": b"",
        "random": np.random.default_rng(1).bytes(10_000),
        "text": b"hello, I am no pickle\n",
    }


HARMLESS = {  # data after all: records that were never called
    "os.system", "eval", "exec", "protocol 0", "obj", "inst", "getattr",
    "call of a record", "in a storage", "doubling tuples", "deep",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(hostile(Path("nowhere"))))
def test_hostile_files_run_nothing_and_end_within_a_second(name, tmp_path):
    data = hostile(tmp_path)[name]
    started = time.process_time()
    error = outcome(data)
    assert time.process_time() - started < 1
    assert (error is None) == (name in HARMLESS), error
    # Apart from the time, as tracing memory costs a factor of about five.
    assert peak_memory(data) < 2 * len(data) + 48 * 2**20


def outcome(data):
    """Return the error of reading a file, or None; nothing in it may run."""
    found = None
    with nothing_runs():
        try:
            untrusted_loads(data, "the file")
        except InputError as error:
            found = str(error)
    if found is not None:
        assert found.startswith("cannot read the file: ")
        assert "\n" not in found
        assert len(found) < 300
    return found


def peak_memory(data):
    """Return the most bytes that reading a file takes at a time."""
    tracemalloc.start()
    try:
        outcome(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


GOOD = {
    "ema": persistent("Net", {"w": parameter(WEIGHT)}),
    "list": module_dict({"a": Object("torch.nn.modules.linear.Identity", {})}),
    "n": [1, 2.5],
}
SHARED = {"view": tensor(WEIGHT, Storage("FloatStorage", "0", 12)), **GOOD}
GOOD_FILES = ("pickle 2", "pickle 4", "torch zip", "torch zip inside", "torch legacy")


def good_file(kind, change=lambda data: data):
    """Return a good file, changed; of zip files either all or the pickle inside.

    The checksums of a zip file find any change from outside.
    """
    if kind.startswith("pickle"):
        return change(dumps(GOOD, int(kind[-1])))
    if kind == "torch zip inside":
        return torch_zip(SHARED, {"0": WEIGHT}, change)
    make = torch_zip if kind == "torch zip" else torch_legacy
    return change(make(SHARED, {"0": WEIGHT}))


@pytest.mark.parametrize("kind", GOOD_FILES)
def test_the_files_that_are_mutated_are_good(kind):
    assert outcome(good_file(kind)) is None
    content = untrusted_loads(good_file(kind))
    np.testing.assert_array_equal(content["ema"].state["w"], WEIGHT)
    np.testing.assert_array_equal(content.get("view", WEIGHT), WEIGHT)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_mutations_end_in_data_or_one_error(data):
    mutate(data)


@pytest.mark.slow
@settings(
    max_examples=10_000,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_ten_thousand_mutations_end_in_data_or_one_error(data):
    mutate(data)


def mutate(data):
    def change(good):
        broken = bytearray(good)
        for _ in range(data.draw(st.integers(1, 8))):
            if not broken:
                break
            place = data.draw(st.integers(0, len(broken) - 1))
            kind = data.draw(st.sampled_from("replace insert delete cut".split()))
            if kind == "replace":
                broken[place] = data.draw(st.integers(0, 255))
            elif kind == "insert":
                broken[place:place] = data.draw(st.binary(min_size=1, max_size=4))
            elif kind == "delete":
                del broken[place : place + data.draw(st.integers(1, 4))]
            elif place:
                del broken[place:]
        return bytes(broken)

    broken = good_file(data.draw(st.sampled_from(GOOD_FILES)), change)
    started = time.process_time()
    outcome(broken)
    assert time.process_time() - started < 1
    assert peak_memory(broken) < 2**20


def test_missing_files_are_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_untrusted(tmp_path / "none.pkl")
