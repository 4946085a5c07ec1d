"""What a restricted pickle may make: arrays, plain containers, inert records.

Every constructor checks its arguments, which come from the file, and makes nothing that
is larger than the bytes it was given.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Construction",
    "Name",
    "Record",
    "RefusedError",
    "checked_key",
    "constructors",
    "finished",
    "itemsize",
    "make_storage",
    "natural",
]

_MAX_DIMENSIONS = 32
_MAX_ELEMENT_NUMBER = 2**40
_STORAGE_TYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Record:
    """A class or function of the file that is not in the table: data, never a call.

    Attributes:
        name: ``module.name`` as written in the file.
        arguments: What it was to be called with.
        state: What its attributes were to be set from.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        """Remember the name and the arguments."""
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def __repr__(self) -> str:
        """Return the name alone: states may refer to one another."""
        return f"Record({self.name!r})"


class Name(str):
    """A global of the file, before anything is made of it."""


class Construction(Record):
    """A NumPy array or dtype under construction."""


class RefusedError(Exception):
    """The file asks for something that is not allowed."""


def itemsize(kind: str) -> int:
    """Return the bytes per number of a torch storage type, such as FloatStorage."""
    if kind not in _STORAGE_TYPES:
        raise RefusedError(f"tensors of type {kind!r:.60} are not known")
    return _STORAGE_TYPES[kind].itemsize


def make_storage(kind: str, count: int, raw: bytes | bytearray) -> NDArray[Any]:
    """Return a flat array over the bytes of a torch storage of `count` numbers."""
    if itemsize(kind) * count != len(raw):
        raise RefusedError("a storage has another size than it says")
    return np.frombuffer(raw, _STORAGE_TYPES[kind])


Load = Callable[[bytes], Any]


def constructors() -> dict[str, Callable[..., Any]]:
    """Return the fixed table: name in the file -> maker(load, *arguments).

    ``load`` reads a nested file under the same bounds.
    """
    return _CONSTRUCTORS


_ATOMS = (str, bytes, int, float, bool, type(None))


def checked_key(value: Any) -> Any:
    """Return a key of a dict; only atoms, as hashing nested tuples can take forever."""
    if type(value) not in _ATOMS:
        raise RefusedError("it has a key that is neither text nor number")
    return value


def natural(value: Any) -> int:
    """Return a size of the file if it is one."""
    if type(value) is not int or not 0 <= value <= _MAX_ELEMENT_NUMBER:
        raise RefusedError(f"it has {value!r:.40} where a size belongs")
    return value


def _rebuild_tensor(
    load: Load, storage: Any, offset: Any, size: Any, stride: Any, *_: Any
) -> NDArray[Any]:
    """Return a tensor as a view of its storage, after checking that it lies within."""
    if type(storage) is not np.ndarray or storage.ndim != 1:
        raise RefusedError("a tensor has no storage")
    if type(size) is not tuple or type(stride) is not tuple:
        raise RefusedError("a tensor has no shape")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise RefusedError("a tensor's shape and strides do not fit")
    start = natural(offset)
    shape, steps = tuple(map(natural, size)), tuple(map(natural, stride))
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    # Sorted by stride, each axis must step beyond what the finer ones reach: then no
    # element is met twice, and the last one tells whether all lie in the storage.
    reach = 1
    for step, length in sorted(zip(steps, shape, strict=True)):
        if length == 1:
            continue
        if step < reach:
            raise RefusedError("a tensor's strides overlap")
        reach = step * (length - 1) + reach
    if start + reach > storage.size:
        raise RefusedError("a tensor reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(
        storage[start:], shape, tuple(s * storage.itemsize for s in steps)
    )


def _dtype(code: Any) -> np.dtype[Any]:
    if isinstance(code, Construction) and code.name == "dtype":
        order = code.state[1] if isinstance(code.state, tuple) else "<"
        code = code.arguments[0]
        order = order if order in ("<", ">", "|") else "<"
        code = order + code.lstrip("<>|=") if isinstance(code, str) else code
    if type(code) is not str or not re.fullmatch(r"[<>|=]?([biuf][1248]|\?)", code):
        raise RefusedError(f"it has arrays of type {code!r:.40}")
    return np.dtype(code)


def _numpy_array(
    shape: Any, code: Any, data: Any, order: Literal["C", "F"]
) -> NDArray[Any]:
    if type(data) is str:  # the bytes of Python 2
        data = data.encode("latin1")
    if type(shape) is not tuple or type(data) not in (bytes, bytearray):
        raise RefusedError("an array has no shape or no data")
    dtype = _dtype(code)
    sizes = tuple(map(natural, shape))
    count = 1
    for size in sizes:
        count *= size
    if len(sizes) > _MAX_DIMENSIONS or count * dtype.itemsize != len(data):
        raise RefusedError("an array has another size than its data")
    return np.frombuffer(data, dtype).reshape(sizes, order=order).copy()


def _encode(load: Load, text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise RefusedError("it encodes text in an unknown way")
    return text.encode("latin1")


def _ordered_dict(load: Load, *arguments: Any) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else ()
    if len(arguments) > 1 or not isinstance(pairs, list | tuple):
        raise RefusedError("it makes a dict of what holds no pairs")
    return {checked_key(key): value for key, value in pairs}


def _nested(load: Load, data: Any) -> Any:
    if type(data) is not bytes:
        raise RefusedError("a storage has no data")
    return load(data)


def _persistent_object(load: Load, meta: Any) -> Record:
    """Return an object of NVIDIA's ``persistence``: its source text stays text."""
    if type(meta) is not dict or type(meta.get("class_name")) is not str:
        raise RefusedError("it holds a persistent object without a class")
    record = Record(meta["class_name"])
    record.state = meta.get("state")
    return record


def _array_record(load: Load, *arguments: Any) -> Record:
    return Construction("array", arguments)


def _dtype_record(load: Load, *arguments: Any) -> Record:
    if not arguments or type(arguments[0]) is not str:
        raise RefusedError("it has an array type without a name")
    return Construction("dtype", arguments)


def _scalar(load: Load, code: Any, data: Any = b"") -> Any:
    return _numpy_array((), code, data, "C")[()]


def _from_buffer(
    load: Load, data: Any, code: Any, shape: Any, order: Any
) -> NDArray[Any]:
    return _numpy_array(shape, code, data, "F" if order == "F" else "C")


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda load, tensor, *_: tensor,
    "torch.storage._load_from_bytes": _nested,
    "torch.Size": lambda load, size=(): size,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "numpy.dtype": _dtype_record,
}
for _module in ("numpy.core", "numpy._core"):
    _CONSTRUCTORS[f"{_module}.multiarray._reconstruct"] = _array_record
    _CONSTRUCTORS[f"{_module}.multiarray.scalar"] = _scalar
    _CONSTRUCTORS[f"{_module}.numeric._frombuffer"] = _from_buffer


def finished(result: Any) -> Any:
    """Replace arrays under construction by arrays, wherever they are."""
    seen: set[int] = set()
    box = [result]
    todo: list[Any] = [box]

    def final(value: Any) -> Any:
        if isinstance(value, Construction) and value.name == "array":
            if type(value.state) is not tuple or len(value.state) != 5:
                raise RefusedError("an array has no data")
            _, shape, code, fortran, data = value.state
            return _numpy_array(shape, code, data, "F" if fortran else "C")
        todo.append(value)
        return value

    while todo:
        item = todo.pop()
        if not isinstance(item, list | dict | tuple | Record) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, list):
            item[:] = [final(value) for value in item]
        elif isinstance(item, dict):
            item.update({key: final(value) for key, value in item.items()})
        elif isinstance(item, Record):
            item.state = final(item.state)
            todo.append(item.arguments)
        else:
            todo.extend(item)
    return box[0]
