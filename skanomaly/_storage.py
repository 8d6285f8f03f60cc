"""Files of JSON and tensors, without code, for saved detectors and checkpoints.

A file is a safetensors file whose metadata hold the JSON. A SHA-256 over JSON and tensors finds any damage.
Reading takes memory in proportion to the size of the file, whatever sizes it declares.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ._version import __version__

#: Version of the format, raised with each change that an older skanomaly cannot read.
FORMAT = 1

#: Most bytes of JSON in a file; a detector takes some thousands.
HEADER_LIMIT = 2**26

#: Ending of the name of a file that is being written.
UNFINISHED = ".unfinished"

#: Exceptions that contents of the wrong shape may raise while they are read.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Names of the numpy scalar types that are written: bool, integers, floats, and no objects.
SCALARS = {np.dtype(code).name for code in "?bBhHiIlLqQefd"}


def write(path, kind, content, encode=None):
    """Write `content` atomically: whatever happens, the file is the old one or the new one.

    Parameters
    ----------
    path : str or Path
    kind : str
        Word that says what the file is, for example "checkpoint". `read` must be given the same word.
    content : dict, list, tuple or set
        Content, which may nest containers of None, bool, int, float, str, numpy scalars and arrays, and
        tensors.
    encode : callable (value) -> (tag, content) or None, default=None
        Encoder of any other type; None for types that it does not know.

    Raises
    ------
    TypeError
        If a value cannot be written; the message says where in the content it is.
    FileNotFoundError
        If there is no folder for the file.
    """
    tensors = {}
    packed = _pack(content, "", tensors, encode)
    document = {"format": FORMAT, "kind": kind, "version": __version__, "content": packed}
    document["sha256"] = _digest(document, tensors)
    data = save(tensors, {"skanomaly": json.dumps(document)})
    if (header := int.from_bytes(data[:8], "little")) > HEADER_LIMIT:
        raise ValueError(
            f"all but the tensors takes {header} bytes, and may take {HEADER_LIMIT}; is there a history of "
            "every batch?"
        )
    # Write to the target of a symbolic link: os.replace would put a file in the place of the link.
    path = Path(os.path.realpath(Path(path).expanduser()))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            # fsync: the new name could reach the disk before the bytes, and a power cut leave an empty file.
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path, kind, decode=None):
    """Read the content that `write` wrote; tensors are on the CPU.

    Parameters
    ----------
    path : str or Path
    kind : str
        Kind that the file must have.
    decode : callable (tag, content) -> value, default=None
        Inverse of the `encode` of `write`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another kind, or of a later format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        document, tensors = _read(path)
    except (SafetensorError, OSError, *MALFORMED) as error:
        raise ValueError(
            f"{str(path)!r} is not a file written by skanomaly, or is damaged: {error}"
        ) from error
    # Before the digest, which another format may compute in another way.
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {document.get('format')}, written by skanomaly "
            f"{document.get('version')}; this is {__version__}, which reads format {FORMAT}"
        )
    expected = document.pop("sha256", None)
    if _digest(document, tensors) != expected:
        raise ValueError(f"{str(path)!r} is damaged: its contents do not match their SHA-256")
    if document.get("kind") != kind:
        raise ValueError(f"{str(path)!r} holds a {document.get('kind')}, not a {kind}")
    try:
        content = _unpack(document["content"], tensors, decode)
    except MALFORMED as error:
        raise ValueError(f"{str(path)!r} is malformed: {error!r}") from error
    if tensors:
        raise ValueError(f"{str(path)!r} is malformed: no content for tensors {sorted(tensors)[:3]}")
    return content


def packable(value, encode=None):
    """Whether `write` takes the value."""
    try:
        _pack(value, "", {}, encode)
    except TypeError:
        return False
    return True


def _read(path):
    size = path.stat().st_size if path.is_file() else 0
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if not 0 < header <= min(size - 8, HEADER_LIMIT):
        raise ValueError(f"a header of {header} bytes in a file of {size}")
    with safe_open(path, framework="pt") as file:
        document = json.loads((file.metadata() or {})["skanomaly"])
        if not isinstance(document, dict):
            raise ValueError("no JSON object in it")
        return document, {key: file.get_tensor(key) for key in file.keys()}


def _digest(document, tensors):
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _pack(value, path, tensors, encode):
    """Value as JSON. A type that JSON lacks becomes an object with one key, the tag of the type."""

    def inner(part, name):
        return _pack(part, f"{path}/{name}" if path else str(name), tensors, encode)

    # Before Python's own numbers: a np.float64 is a float, and would come back as one.
    if isinstance(value, np.generic) and value.dtype.name in SCALARS:
        return {"scalar": [value.dtype.name, value.item()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # Not isinstance: a namedtuple would lose its type without an error.
    if type(value) is tuple:
        return {"tuple": [inner(part, i) for i, part in enumerate(value)]}
    if isinstance(value, list):
        return [inner(part, i) for i, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return {"set": [inner(part, i) for i, part in enumerate(sorted(value, key=repr))]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: inner(part, key) for key, part in value.items()}}
    if isinstance(value, dict):
        return {"pairs": [[inner(key, "key"), inner(part, key)] for key, part in value.items()]}
    is_array = isinstance(value, np.ndarray)
    if is_array and value.dtype.kind == "O" and all(isinstance(v, str) for v in value.flat):
        return {"strings": value.tolist()}
    if is_array or isinstance(value, torch.Tensor):
        if path in tensors:
            raise ValueError(f"two values are both named {path}")
        tensors[path] = (_array_to_tensor if is_array else _plain_tensor)(value, path)
        tag = "tensor" if not is_array else "text" if value.dtype.kind == "U" else "array"
        return {tag: path}
    if encoded := encode and encode(value):
        tag, content = encoded
        return {tag: inner(content, tag)}
    raise TypeError(f"{path} is of type {type(value).__name__}, which cannot be saved without code")


def _array_to_tensor(value, path):
    native = value.dtype.newbyteorder("=")
    if native.kind == "U":
        # As numbers: strings in the JSON could be forged to fill the memory, all as long as the longest.
        return torch.from_numpy(np.array(value, dtype=native, order="C")[..., None].view(np.int32))
    if np.ma.is_masked(value) or native.name not in SCALARS:
        what = "masked values" if np.ma.is_masked(value) else f"dtype {value.dtype}"
        raise TypeError(f"{path} is an array of {what}, which cannot be saved; save numbers without a mask")
    # A copy in C order and native bytes: torch takes neither negative strides nor foreign bytes.
    return torch.from_numpy(np.array(value, dtype=native, order="C", subok=False))


def _plain_tensor(value, path):
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
        raise TypeError(f"{path} is a tensor of {value.dtype}, {value.layout}, which cannot be saved")
    # A copy: safetensors refuses tensors that share memory.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _unpack(packed, tensors, decode):
    """Undo `_pack`; each tensor used is taken out of the dict."""
    if isinstance(packed, list):
        return [_unpack(part, tensors, decode) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((tag, content),) = packed.items() if len(packed) == 1 else ((None, None),)
    if tag == "tuple" and isinstance(content, list):
        return tuple(_unpack(part, tensors, decode) for part in content)
    if tag == "set":
        return {_unpack(part, tensors, decode) for part in content}
    if tag == "dict":
        return {key: _unpack(part, tensors, decode) for key, part in content.items()}
    if tag == "pairs":
        return {_unpack(key, tensors, decode): _unpack(part, tensors, decode) for key, part in content}
    if tag == "scalar" and content[0] in SCALARS and isinstance(content[1], (bool, int, float)):
        return np.dtype(content[0]).type(content[1])
    if tag == "text":
        codes = tensors.pop(content).numpy()
        if codes.dtype != np.int32 or codes.size and not 0 <= codes.min() <= codes.max() <= sys.maxunicode:
            raise ValueError(f"{content} is no text")
        return codes.view(f"U{codes.shape[-1]}").reshape(codes.shape[:-1])
    if tag == "strings":
        strings = np.empty(np.shape(content), dtype=object)
        strings[...] = content
        return strings
    if tag in ("tensor", "array"):
        tensor = tensors.pop(content)
        return tensor if tag == "tensor" else tensor.numpy()
    if decode is None or tag is None:
        raise TypeError(f"no value is written as {list(packed)[:3]}")
    return decode(tag, _unpack(content, tensors, decode))
