"""Pickles and torch files as NumPy arrays, without executing anything.

A pickle is a program for a stack machine.  This reader runs that machine on data alone:
`pickletools` of the standard library decodes the instructions, the names of a fixed
table make arrays, and every other class or function becomes an inert `Record` that
remembers its name and what it was to be called with.  Nothing is imported, looked up
or called by a name in the file.  Instructions, sizes and strides are bounded.

Three containers are read: plain pickles, torch's zip files, and torch's older format,
which also lies inside plain pickles wherever they hold tensors.
"""

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from diffusion.interop.pickle_constructors import (
    Name,
    Record,
    RefusedError,
    checked_key,
    constructors,
    finished,
    itemsize,
    make_storage,
    natural,
)

__all__ = ["MAX_FILE_BYTES", "Record", "read_untrusted", "untrusted_loads"]

MAX_FILE_BYTES = 2**33
"""The largest published checkpoint of this kind, ADM at 512x512, takes 2.2 GB."""
_MAX_INSTRUCTIONS = 300_000  # EDM's largest network takes 25,000
_MAX_NESTED = 4  # a tensor inside a pickle inside a torch file is three

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
_CONSTRUCTORS = constructors()


class _Mark:
    """The marker on the stack."""


def read_untrusted(path: str | Path) -> Any:
    """Read a pickle or torch file from anywhere.

    Args:
        path: A pickle, a torch zip file or a torch file of the older format.

    Returns:
        The object: dicts, lists, numbers, strings, NumPy arrays, and `Record` for
        everything else.

    Raises:
        InputError: If the file is missing, too large, damaged, or asks for more than
            data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes; at most {MAX_FILE_BYTES:,} are "
            "read"
        )
    return untrusted_loads(path.read_bytes(), str(path))


def untrusted_loads(data: bytes, name: str = "the data") -> Any:
    """Read a pickle or torch file that is in memory; see `read_untrusted`.

    Args:
        data: The file's bytes.
        name: What to call it in an error.

    Raises:
        InputError: If it is damaged or asks for more than data.
    """
    reader = _Reader()
    try:
        return finished(reader.load(data))
    except InputError:
        raise
    except RefusedError as error:
        reason = str(error)
    except RecursionError:
        reason = "its objects are nested too deeply"
    # Damaged bytes fail anywhere: in pickletools, zipfile, NumPy or this machine.
    except Exception as error:
        reason = f"it is damaged ({type(error).__name__})"
    raise InputError(
        f"cannot read {name}: {reason}; nothing in it was executed. Give a checkpoint "
        "as its authors published it"
    )


class _Reader:
    """What all pickles of one file share: the bounds and the zip's storages."""

    def __init__(self) -> None:
        self.remaining = _MAX_INSTRUCTIONS
        self.depth = 0

    def load(self, data: bytes) -> Any:
        """Read any of the three containers."""
        self.depth += 1
        if self.depth > _MAX_NESTED:
            raise RefusedError("files inside files are nested too deeply")
        try:
            if data[:4] == b"PK\x03\x04":
                return self._load_zip(data)
            stream = io.BytesIO(data)
            first = _Machine(self, _no_storage).run(stream)
            if type(first) is int and first == _TORCH_MAGIC:
                return self._load_legacy(stream)
            return first
        finally:
            self.depth -= 1

    def _load_zip(self, data: bytes) -> Any:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if sum(info.file_size for info in infos.values()) > len(data):
                raise RefusedError("a torch file is not compressed, and this one is")
            pickles = [n for n in infos if n == "data.pkl" or n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise RefusedError("it is a zip file, but not torch's")
            root = pickles[0].removesuffix("data.pkl")
            order = (
                archive.read(root + "byteorder") if root + "byteorder" in infos else b""
            )
            if order.strip() not in (b"", b"little"):
                raise RefusedError("its numbers are big-endian")
            storages: dict[str, NDArray[Any]] = {}

            def storage(kind: str, key: str, count: int) -> NDArray[Any]:
                if key not in storages:
                    raw = archive.read(f"{root}data/{key}")
                    storages[key] = make_storage(kind, count, raw)
                return storages[key]

            return _Machine(self, storage).run(io.BytesIO(archive.read(pickles[0])))

    def _load_legacy(self, stream: io.BytesIO) -> Any:
        protocol = _Machine(self, _no_storage).run(stream)
        system = _Machine(self, _no_storage).run(stream)
        if protocol != _TORCH_PROTOCOL:
            raise RefusedError(f"it is of torch's format {protocol!r:.40}, not 1001")
        if not (isinstance(system, dict) and system.get("little_endian", True)):
            raise RefusedError("its numbers are big-endian")
        # Storages follow the object that refers to them: their place is made first.
        wanted: dict[str, tuple[str, int, NDArray[Any]]] = {}

        def storage(kind: str, key: str, count: int) -> NDArray[Any]:
            if key not in wanted:
                size = itemsize(kind) * count
                if size > len(stream.getbuffer()):
                    raise RefusedError("a tensor is larger than the file")
                wanted[key] = kind, count, make_storage(kind, count, bytearray(size))
            return wanted[key][2]

        result = _Machine(self, storage).run(stream)
        keys = _Machine(self, _no_storage).run(stream)
        if not isinstance(keys, list) or set(keys) != set(wanted):
            raise RefusedError("its list of storages does not fit its tensors")
        for key in keys:
            kind, count, array = wanted[key]
            (found,) = np.frombuffer(stream.read(8), "<i8")
            raw = stream.read(itemsize(kind) * count)
            if found != count or len(raw) != itemsize(kind) * count:
                raise RefusedError("a storage is cut short")
            array[:] = np.frombuffer(raw, array.dtype)
        return result


Storage = Callable[[str, str, int], NDArray[Any]]


def _no_storage(kind: str, key: str, count: int) -> NDArray[Any]:
    raise RefusedError("a tensor's data are referred to where there are none")


class _Machine:
    """One pickle's stack machine."""

    def __init__(self, reader: _Reader, storage: Storage) -> None:
        self.reader, self.storage = reader, storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            self.reader.remaining -= 1
            if self.reader.remaining < 0:
                raise RefusedError(f"it has more than {_MAX_INSTRUCTIONS} instructions")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _IGNORED:
                continue
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            else:
                raise RefusedError(f"it has the instruction {name}")
        raise RefusedError("it is cut short")

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _Mark:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise RefusedError("it is damaged (no mark)")

    def get(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])

    def put(self, index: int | None) -> None:
        if self.stack[-1] is _Mark:
            raise RefusedError("it is damaged (a mark in the memo)")
        self.memo[len(self.memo) if index is None else int(index)] = self.stack[-1]

    def make_tuple(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count or any(item is _Mark for item in items):
            raise RefusedError("it is damaged (short stack)")
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(checked_key, items))
        elif not isinstance(target, Record):
            raise RefusedError("it appends to what is no list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update((checked_key(key), value) for key, value in pairs)
        elif not isinstance(target, Record):
            raise RefusedError("it sets items of what is no dict")

    def call(self, name: Any, arguments: Any) -> None:
        """REDUCE and its kin: make what the table knows, a record otherwise."""
        if not isinstance(arguments, tuple):
            raise RefusedError("it calls with what is no tuple")
        if not isinstance(name, Name):
            self.stack.append(Record("a call of an object", arguments))
            return
        maker = _CONSTRUCTORS.get(str(name))
        if maker is None:
            self.stack.append(Record(str(name), arguments))
        else:
            self.stack.append(maker(self.reader.load, *arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state

    def global_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError("it is damaged (a name that is no text)")
        self.stack.append(Name(f"{module}.{name}"))

    def persistent(self, _: Any) -> None:
        parts = self.stack.pop()
        if not (isinstance(parts, tuple) and len(parts) >= 5 and parts[0] == "storage"):
            raise RefusedError("it refers to something outside itself")
        kind, key, count = parts[1], parts[2], natural(parts[4])
        if len(parts) > 5 and parts[5] is not None:
            raise RefusedError("it holds views of storages")
        if not isinstance(kind, Name) or type(key) is not str:
            raise RefusedError("it is damaged (a storage without type)")
        self.stack.append(self.storage(kind.rpartition(".")[2], key, count))


_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    "BINBYTES", "BINBYTES8", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINSTRING",
    "BINUNICODE", "BINUNICODE8", "BYTEARRAY8", "FLOAT", "INT", "LONG", "LONG1", "LONG4",
    "SHORT_BINBYTES", "SHORT_BINSTRING", "SHORT_BINUNICODE", "STRING", "UNICODE",
}  # fmt: skip


def _reduce(machine: _Machine, _: Any) -> None:
    arguments = machine.stack.pop()
    machine.call(machine.stack.pop(), arguments)


def _reduce_with_keywords(machine: _Machine, _: Any) -> None:
    machine.stack.pop()
    _reduce(machine, _)


def _instance(machine: _Machine, argument: str) -> None:
    items = tuple(machine.pop_to_mark())
    machine.call(Name(argument.replace(" ", ".")), items)


def _object(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    machine.call(items[0], tuple(items[1:]))


def _stack_global(machine: _Machine, _: Any) -> None:
    name = machine.stack.pop()
    machine.global_name(machine.stack.pop(), name)


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make(machine.pop_to_mark()))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    pairs = zip(items[::2], items[1::2], strict=True)
    return {checked_key(key): value for key, value in pairs}


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _set_item(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.set_items([machine.stack.pop(), value])


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _push(lambda: _Mark),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(set),
    "EMPTY_TUPLE": _push(tuple),
    "LIST": _collect(list),
    "TUPLE": _collect(tuple),
    "DICT": _collect(_pairs),
    "FROZENSET": _collect(lambda items: frozenset(map(checked_key, items))),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.append_items([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append_items(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.append_items(machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GLOBAL": lambda machine, name: machine.global_name(*name.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
