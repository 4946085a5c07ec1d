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
MODULE_SOURCE = "import os; os.system('touch executed')"  # where it would be run


class Call:
    """Pickles as a call of `name` with `arguments`."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Object:
    """Pickles as a plain object of a class that need not exist: NEWOBJ and BUILD."""

    def __init__(self, class_name, state):
        self.class_name, self.state = class_name, state


class Storage:
    """Pickles as a persistent id, as torch's storages do."""

    def __init__(self, kind, key, count):
        self.id = ("storage", Name(f"torch.{kind}"), key, "cpu", count)


class Name:
    """Pickles as a global that need not exist."""

    def __init__(self, name):
        self.name = name


def dumps(obj, protocol=2):
    """Return a pickle with calls of names that need not exist."""
    out = io.BytesIO()

    class Local(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

        def save_name(self, name):
            module, _, last = name.rpartition(".")
            if self.proto < 4:
                self.write(f"c{module}\n{last}\n".encode())
            else:
                self.save(module)
                self.save(last)
                self.write(pickle.STACK_GLOBAL)

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Name):
                self.save_name(obj.name)
            elif isinstance(obj, Call):
                self.save_name(obj.name)
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
            elif isinstance(obj, Object):
                self.save_name(obj.class_name)
                self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
                self.memoize(obj)
                self.save(obj.state)
                self.write(pickle.BUILD)
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


def torch_legacy(obj, arrays):
    """Return a torch file of the older format: `arrays` are its storages by key."""
    parts = [
        dumps(MAGIC),
        dumps(1001),
        dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}),
        dumps(obj),
        dumps(list(arrays)),
        *(struct.pack("<q", a.size) + a.tobytes() for a in arrays.values()),
    ]
    return b"".join(parts)


def legacy_storage(array):
    """Return a storage inside a pickle: a torch file of the older format."""
    storage = Storage(KINDS[array.dtype.str], "0", array.size)
    file = torch_legacy(storage, {"0": array})
    return Call("torch.storage._load_from_bytes", file)


def parameter(array):
    value = tensor(array, legacy_storage(array))
    return Call(
        "torch._utils._rebuild_parameter", value, True, collections.OrderedDict()
    )


def persistent(class_name, state):
    meta = {
        "type": "class",
        "version": 6,
        "module_src": MODULE_SOURCE,
        "class_name": class_name,
        "state": state,
    }
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def torch_zip(obj, arrays, change=lambda data: data):
    """Return a torch zip file; `change` is applied to the pickle that is in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", change(dumps(obj)))
        for key, array in arrays.items():
            archive.writestr(f"model/data/{key}", array.tobytes())
    return out.getvalue()


def module_state(modules, parameters=(), buffers=(), **attributes):
    """Return the attributes of a torch module, as `torch.nn.Module` names them."""
    return {
        **attributes,
        "training": False,
        "_parameters": collections.OrderedDict(parameters),
        "_buffers": collections.OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": collections.OrderedDict(),
        "_forward_pre_hooks": collections.OrderedDict(),
        "_modules": collections.OrderedDict(modules),
    }


def module_dict(modules):
    """Return a plain container of torch."""
    return Object("torch.nn.modules.container.ModuleDict", module_state(modules))


def module(class_name, tensors, **attributes):
    """Return a module as EDM pickles it: persistent, with its children inside.

    The networks' ``enc`` and ``dec`` are torch's own containers, which are no
    persistent classes.
    """
    children, parameters, buffers = {}, {}, {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = value
        elif name in ("freqs", "resample_filter"):
            buffers[name] = tensor(value, legacy_storage(value))
        else:
            parameters[name] = parameter(value)
    modules = {}
    for name, inner in children.items():
        made = module(f"Inner_{name}", inner)
        if name in ("enc", "dec"):
            made = module_dict(made.arguments[0]["state"]["_modules"])
        modules[name] = made
    state = module_state(modules, parameters, buffers, **attributes)
    return persistent(class_name, state)
