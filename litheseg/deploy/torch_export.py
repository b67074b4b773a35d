"""The graph of a network (`torch.export`), and archives of it (.pt2) that hold no pickle.

Every other format is written from the same graph. Sizes may be left open: the graph is then taken from a large example
that is odd at every depth, so that no two sizes in it are alike by chance and no resizing is left out; what PyTorch
still notes as conditions (sizes above those at which a map shrinks to one pixel) does not affect the result and is
dropped. `litheseg.deploy.export` checks the result at other sizes by running it.

`torch.export.load` unpickles, evaluates and calls whatever an archive asks for. The archives written here ask for
nothing of the kind, and `load_archive` refuses any other before PyTorch sees it: weights are raw numbers, operators are
those of `litheseg.deploy.operators`, sizes are plain arithmetic, nothing is compressed.

Usage:
    >>> save_archive(export_program(network, (360, 480)), Path("street.pt2"), text)
    >>> logits = load_archive(Path("street.pt2"))(pixels)
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental import _config as symbolic_shapes

from litheseg.bundle.description import ARCHIVE_ENTRY, read_entry
from litheseg.deploy.network import Deployed
from litheseg.deploy.operators import OPERATORS
from litheseg.errors import BundleError, LithesegError, ModelError, first_line, listed

if TYPE_CHECKING:
    from litheseg.deploy.conversion import Conversion

__all__ = ["LIBRARIES", "USAGE", "export_program", "layer_of", "layers_named", "load_archive", "save_archive", "write"]

LIBRARIES: tuple[str, ...] = ()
USAGE = ("import torch", 'result = torch.export.load("{path}").module()(torch.from_numpy(image)).numpy()')

_LARGE = (1025, 1537)  # halved and rounded up, they stay odd: 513, 257, ... 5 and 769, 385, ... 7
# What an archive may hold, by name; anything else may be code.
_PLAIN = re.compile(
    r"[^/]+/(?:archive_format|archive_version|byteorder|\.data/\w+|data/weights/weight_\d+|data/constants/tensor_\d+|"
    r"extra/[\w.]+)"
)
_EMPTY = re.compile(r"[^/]+/data/sample_inputs/model\.pt")
_WEIGHTS = re.compile(r"[^/]+/data/(?:weights/model_weights|constants/model_constants)_config\.json")
_GRAPH = re.compile(r"[^/]+/models/model\.json")
# What a graph may ask for, by the key under which it stands: what is called, evaluated or looked up.
_ALLOWED = {
    "target": re.compile(
        r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(?:int|max|min|not)|math\.(?:ceil|floor)|"
        r"_operator\.(?:add|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|sub|truediv)"
    ),
    # No powers: a few of them are a number that no memory holds.
    "expr_str": re.compile(
        r"(?:[\s+\-/(),]|\*(?!\*)|\b\d{1,18}\b|Symbol\('\w+'(?:, \w+=True)*\)|\b(?:[su]\d+|Add|CeilDiv|CleanDiv|"
        r"FloorDiv|Integer|Max|Min|Mod|Mul|PythonMod|Rational)\b)*"
    ),
    "guards_code": re.compile(""),
    "in_spec": (_TREE := re.compile(r'(?:(?!"type")[^\\]|"type": (?:null|"builtins\.(?:dict|list|tuple)"))*')),
    "out_spec": _TREE,
    "name": (_NAME := re.compile(r"[\w.]*")),  # names become Python source
    "as_name": _NAME,
}
_ONE_LINE = re.compile(r"[^\n\r]*")
_ATEN = "torch.ops.aten."
_MAX_JSON = 1 << 26  # bytes; the graph of a thousand layers has a few million


def export_program(network: Deployed, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph of a network.

    Args:
        network: in evaluation mode.
        size: height and width of its input in pixels; None for any.

    Raises:
        ModelError: an operator or a decision in it that depends on what is in the image.
    """
    image = network.example(size or _LARGE)
    first = 1 if network.layout == "NHWC" else 2
    free = None if size is not None else {"image": {first: Dim.DYNAMIC, first + 1: Dim.DYNAMIC}}
    try:
        # Oblivious: no graph of its own for a dimension of 1.
        oblivious = symbolic_shapes.patch(backed_size_oblivious=size is None)  # type: ignore[attr-defined]
        with warnings.catch_warnings(), oblivious:
            warnings.simplefilter("ignore")
            program = torch.export.export(network, (image,), dynamic_shapes=free)
    except Exception as error:  # as many kinds as there are ways to be untraceable
        remedy = "its architecture does what no exported graph can" if size else "give a fixed size (--size HxW)"
        raise ModelError(f"the network cannot be exported ({first_line(error)}); {remedy}") from error
    for node in program.graph.nodes:  # they hold paths of this machine
        node.meta.pop("stack_trace", None)
    if size is None:
        for symbol, known in program.range_constraints.items():
            program.range_constraints[symbol] = type(known)(1, known.upper)
        program._guards_code = []
    return program


def layer_of(node: Node) -> str:
    """The name of the layer in the network that an operator of a graph comes from; "the input" outside of layers."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("network.") if stack and stack[-1][0] else "the input"


def layers_named(program: ExportedProgram, message: str) -> str:
    """Where the operators are that a message names, in words; "" if it names none of the graph."""
    names = {node: str(getattr(node.target, "__name__", "")).partition(".")[0] for node in program.graph.nodes}
    layers = dict.fromkeys(
        layer_of(node) for node, name in names.items() if name and re.search(rf"\b{re.escape(name)}\b", message)
    )
    return f", in {listed(list(layers))}" if layers else ""


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    save_archive(conversion.program, path, text)


def save_archive(program: ExportedProgram, path: Path, text: str) -> None:
    """Write a graph and its weights, with `text` inside; the program loses its example.

    Raises:
        LithesegError: PyTorch would store something of it by pickling, or it asks for an operator that is not listed.
        OSError: the file cannot be written.
    """
    program.example_inputs = None  # type: ignore[assignment]  # would be pickled
    content = io.BytesIO()  # on a full disk, PyTorch's own writer ends the process
    torch.export.save(program, content, extra_files={ARCHIVE_ENTRY: text})
    path.write_bytes(content.getvalue())
    try:
        check_archive(path)
    except BundleError as error:
        raise LithesegError(f"PyTorch {torch.__version__} cannot write this network as plain data: {error}") from error


def load_archive(path: Path) -> Callable[[Tensor], Tensor]:
    """The network of an archive: as `Deployed.forward`.

    Raises:
        BundleError: no archive, a damaged one, or one that would run code when it is read.
    """
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast(Callable[[Tensor], Tensor], torch.export.load(path).module(check_guards=False))
    except Exception as error:  # a damaged archive fails in as many ways as it has bytes
        raise BundleError(
            f"{path} cannot be read by PyTorch {torch.__version__} ({first_line(error)}); archives last as long as "
            "PyTorch's format: export the model anew"
        ) from error


def check_archive(path: Path) -> None:
    """Refuse an archive that is more than numbers and a graph of listed operators, or unpacks to more than it is.

    Raises:
        BundleError: it is, or it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive.infolist(), path.stat().st_size)
            for entry in archive.infolist():
                _check_entry(archive, entry, path)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise BundleError(f"{path} is damaged, or no torch.export archive ({error}); copy it again") from error


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Nothing unpacks to more than it is: PyTorch stores what it writes, and each byte once."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"'{entry.filename}' in it is compressed, which PyTorch never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("what it holds is larger than itself")


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    name = entry.filename
    if _PLAIN.fullmatch(name) or (_EMPTY.fullmatch(name) and not entry.file_size):
        return
    if _WEIGHTS.fullmatch(name):
        entries = json.loads(read_entry(archive, entry, _MAX_JSON))["config"].values()
        foreign = next((item["path_name"] for item in entries if item["use_pickle"] is not False), None)
    elif _GRAPH.fullmatch(name):
        foreign = next(_foreign(json.loads(read_entry(archive, entry, _MAX_JSON))), None)
    else:
        foreign = name
    if foreign is not None and foreign.startswith(_ATEN):
        raise BundleError(
            f"{path} asks for the operator '{foreign.removeprefix(_ATEN)}', which is not among those that an archive "
            "may ask for (litheseg.deploy.operators); export the model to onnx or openvino instead"
        )
    if foreign is not None:
        raise BundleError(f"{path} holds '{foreign}', which could run code when it is read; export the model anew")


def _foreign(content: Any, key: str = "") -> Iterator[str]:
    """The texts in a graph that PyTorch would act on and that are not allowed."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _foreign(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _foreign(value, key)
    elif isinstance(content, str):
        listed = not content.startswith(_ATEN) or content.removeprefix(_ATEN) in OPERATORS
        if not _ALLOWED.get(key, _ONE_LINE).fullmatch(content) or (key == "target" and not listed):
            yield content
