"""Writes pickles and torch files of published shapes, without torch.

Calls and storages are objects of this module; no class of another project is needed,
and none of its source is in the files.
"""

import collections
import io
import pickle
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C


class Call:
    """Pickles as a call of `name` with `arguments`."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Storage:
    """Pickles as a persistent id, as torch's storages do."""

    def __init__(self, kind, key, count):
        self.id = ("storage", Name(f"torch.{kind}"), key, "cpu", count)


class Name:
    """Pickles as a global that need not exist."""

    def __init__(self, name):
        self.name = name


def global_(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def dumps(obj, protocol=2):
    """Return a pickle with calls of names that need not exist."""
    out = io.BytesIO()

    class Local(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                self.write(global_(obj.name))
            elif isinstance(obj, Call):
                self.write(global_(obj.name))
                self.save(obj.arguments)
                self.write(b"R")
            else:
                super().save(obj, save_persistent_id)

    Local(out, protocol).dump(obj)
    return out.getvalue()


KINDS = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<i8": "LongStorage"}


def tensor(array, storage, offset=0, stride=None, size=None):
    steps = tuple(s // array.itemsize for s in array.strides)
    return Call(
        "torch._utils._rebuild_tensor_v2",
        storage,
        offset,
        array.shape if size is None else size,
        steps if stride is None else stride,
        False,
        Call("collections.OrderedDict"),
    )


def legacy_storage(array):
    """Return a storage inside a pickle: a torch file of the older format."""
    kind = KINDS[array.dtype.str]
    parts = [
        dumps(MAGIC),
        dumps(1001),
        dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}),
        dumps(Storage(kind, "0", array.size)),
        dumps(["0"]),
        struct.pack("<q", array.size) + array.tobytes(),
    ]
    return Call("torch.storage._load_from_bytes", b"".join(parts))


def parameter(array):
    value = tensor(array, legacy_storage(array))
    return Call(
        "torch._utils._rebuild_parameter", value, True, collections.OrderedDict()
    )


def persistent(class_name, state):
    meta = {
        "type": "class",
        "version": 6,
        "module_src": "import os; os.system('touch executed')",
        "class_name": class_name,
        "state": state,
    }
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def torch_zip(obj, arrays):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", dumps(obj))
        for key, array in arrays.items():
            archive.writestr(f"model/data/{key}", array.tobytes())
    return out.getvalue()


def module(class_name, tensors, buffers=(), **state):
    """Return a module as EDM pickles it: persistent, with its children inside."""
    children, own = {}, {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = value
        else:
            own[name] = value
    kinds = {"_parameters": {}, "_buffers": {}}
    for name, value in own.items():
        kind = "_buffers" if name in ("freqs", "resample_filter") else "_parameters"
        made = parameter(value)
        kinds[kind][name] = made.arguments[0] if kind == "_buffers" else made
    modules = {name: module("Inner", inner) for name, inner in children.items()}
    return persistent(
        class_name,
        {
            **state,
            **{kind: collections.OrderedDict(found) for kind, found in kinds.items()},
            "_modules": collections.OrderedDict(modules),
            "training": False,
        },
    )
