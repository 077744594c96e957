"""Reader for the constants and nodes of an ONNX graph, straight from its protobuf bytes.

Only what carries weights is read: `ModelProto.graph` (7); `GraphProto.node` (1) and `.initializer` (5); `NodeProto`'s
inputs, outputs, name, operator and attributes; of an attribute its tensor and its subgraphs (an `If` may hold a
convolution); and `TensorProto`. Field numbers as in onnx.proto3. A tensor kept in another file is refused: its path
would be chosen by the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from diarist.errors import ModelFormatError

MAX_DEPTH = 8
"""Of subgraphs inside subgraphs."""
MAX_RANK = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}
"""TensorProto.DataType; the packed field that may hold the values instead of raw_data is beside."""
_PACKED_FLOATS = {1: (4, "<f4"), 11: (10, "<f8")}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, "Value"]


@dataclass(slots=True)
class Value:
    """The parts of an attribute that can carry or locate weights."""

    integer: int = 0
    text: str = ""
    tensor: torch.Tensor | None = None


@dataclass(slots=True)
class Graph:
    """Constants by name and nodes in order; those of a subgraph come before the node that holds it."""

    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)


def read(path: Path) -> Graph:
    """The graph of a model.

    Raises:
        ModelFormatError: Not an ONNX file, truncated, with tensors in other files or of sizes that do not fit.
    """
    if not path.stat().st_size:
        raise ModelFormatError(f"{path} is empty")
    data = np.memmap(path, dtype=np.uint8, mode="c")
    reader = _Reader(path)
    graph = Graph()
    found = False
    for number, value in reader.fields(memoryview(data.data)):
        if number == 7 and isinstance(value, memoryview):
            found = True
            reader.graph(value, graph, 0)
    if not found:
        raise ModelFormatError(f"{path} is not an ONNX model: it has no graph")
    return graph


def read_network(path: Path, extract: Callable[[Graph, Path], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Read a graph and take a network's tensors out of it.

    Args:
        path: The ONNX file.
        extract: Finds the tensors. It may assume the shapes of the right network: what breaks on another is reported.

    Raises:
        ModelFormatError: The file cannot be read, or does not hold the network that `extract` looks for.
    """
    try:
        return extract(read(path), path)
    except (ValueError, IndexError, TypeError, RuntimeError) as error:
        raise ModelFormatError(f"{path} does not hold the network that was expected: {error}") from error


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path

    def broken(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path} is not a readable ONNX model: {what}")

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                raise self.broken("it is truncated")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise self.broken("a number has more than ten bytes")

    def fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Field number and value of one message: an int, or the bytes of a fixed or length-delimited field."""
        at = 0
        while at < len(data):
            key, at = self.varint(data, at)
            kind = key & 7
            if kind == _VARINT:
                value, at = self.varint(data, at)
                yield key >> 3, value
                continue
            if kind == _BYTES:
                length, at = self.varint(data, at)
            elif kind in {_FIXED32, _FIXED64}:
                length = 4 if kind == _FIXED32 else 8
            else:
                raise self.broken(f"a field has the unknown wire type {kind}")
            if length > len(data) - at:
                raise self.broken("it is truncated, or a length leaves its message")
            yield key >> 3, data[at : at + length]
            at += length

    def text(self, value: int | memoryview) -> str:
        if not isinstance(value, memoryview):
            raise self.broken("a name is a number")
        try:
            return value.tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken("a name is not text") from error

    def message(self, value: int | memoryview) -> memoryview:
        if not isinstance(value, memoryview):
            raise self.broken("a message is a number")
        return value

    def graph(self, data: memoryview, graph: Graph, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.broken(f"graphs are nested more than {MAX_DEPTH} deep")
        for number, value in self.fields(data):
            if number == 1:
                node = self.node(self.message(value), graph, depth)
                graph.nodes.append(node)
                constant = node.attributes.get("value")
                if node.operator == "Constant" and constant and constant.tensor is not None and node.outputs:
                    graph.constants.setdefault(node.outputs[0], constant.tensor)
            elif number == 5:
                name, tensor = self.tensor(self.message(value))
                if name in graph.constants:
                    raise self.broken(f"the constant {name!r} is there twice")
                graph.constants[name] = tensor

    def node(self, data: memoryview, graph: Graph, depth: int) -> Node:
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Value] = {}
        name = operator = ""
        for number, value in self.fields(data):
            if number == 1:
                inputs.append(self.text(value))
            elif number == 2:
                outputs.append(self.text(value))
            elif number == 3:
                name = self.text(value)
            elif number == 4:
                operator = self.text(value)
            elif number == 5:
                key, attribute = self.attribute(self.message(value), graph, depth)
                attributes[key] = attribute
        return Node(operator, name, tuple(inputs), tuple(outputs), attributes)

    def attribute(self, data: memoryview, graph: Graph, depth: int) -> tuple[str, Value]:
        name, found = "", Value()
        for number, value in self.fields(data):
            if number == 1:
                name = self.text(value)
            elif number == 3 and isinstance(value, int):
                found.integer = value
            elif number == 4 and isinstance(value, memoryview) and len(value) < 256:
                found.text = value.tobytes().decode("utf-8", errors="replace")
            elif number == 5:
                found.tensor = self.tensor(self.message(value))[1]
            elif number == 6:
                self.graph(self.message(value), graph, depth + 1)
        return name, found

    def tensor(self, data: memoryview) -> tuple[str, torch.Tensor]:
        name, code, shape = "", 0, list[int]()
        raw: memoryview | None = None
        packed: dict[int, list[memoryview]] = {}
        numbers: list[int] = []
        for number, value in self.fields(data):
            if number == 1:
                shape += [value] if isinstance(value, int) else self.varints(value)
            elif number == 2 and isinstance(value, int):
                code = value
            elif number == 8:
                name = self.text(value)
            elif number == 9:
                raw = self.message(value)
            elif number in {4, 10}:
                packed.setdefault(number, []).append(self.message(value))
            elif number in {5, 7}:
                numbers += [value] if isinstance(value, int) else self.varints(value)
            elif number == 13 or (number == 14 and value):
                raise self.broken(f"{name!r} lies in another file, which diarist does not open")
        return name, self.values(name, code, shape, raw, packed, numbers)

    def varints(self, data: memoryview) -> list[int]:
        found, at = [], 0
        while at < len(data):
            value, at = self.varint(data, at)
            found.append(value)
        return found

    def values(
        self,
        name: str,
        code: int,
        shape: list[int],
        raw: memoryview | None,
        packed: dict[int, list[memoryview]],
        numbers: list[int],
    ) -> torch.Tensor:
        if code not in _DTYPES:
            raise self.broken(f"{name!r} has the unsupported data type {code}")
        dtype = np.dtype(_DTYPES[code])
        if len(shape) > MAX_RANK:
            raise self.broken(f"{name!r} has {len(shape)} axes")
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if raw is None and code in _PACKED_FLOATS:
            number, form = _PACKED_FLOATS[code]
            values = np.frombuffer(b"".join(packed.get(number, ())), dtype=form)
        elif raw is None:
            if code not in {6, 7}:
                raise self.broken(f"{name!r} has no values")
            values = np.array(numbers, dtype=np.uint64).astype(np.int64).astype(dtype)  # two's complement
        else:
            if len(raw) % dtype.itemsize:
                raise self.broken(f"{name!r} has {len(raw)} bytes")
            values = np.frombuffer(raw, dtype=dtype)
        if values.size != count:
            raise self.broken(f"{name!r} has {values.size} values for the shape {shape}")
        return torch.from_numpy(np.array(values.reshape(shape)))  # copied: places in the file are not aligned


def constants_of(graph: Graph, operator: str) -> list[tuple[torch.Tensor, ...]]:
    """For each operation of a kind, in order, the constants among its inputs; operations on the same ones once."""
    found: dict[tuple[str, ...], tuple[torch.Tensor, ...]] = {}
    for node in graph.nodes:
        if node.operator == operator:
            names = tuple(name for name in node.inputs if name in graph.constants)
            found.setdefault(names, tuple(graph.constants[name] for name in names))
    return [constants for constants in found.values() if constants]


def linears(graph: Graph) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight (rows = outputs) and bias of each linear layer, in order: `Gemm`, or `MatMul` followed by `Add`."""
    added = {
        other: constant
        for node in graph.nodes
        if node.operator == "Add" and len(node.inputs) == 2
        for other, constant in (node.inputs, node.inputs[::-1])
        if constant in graph.constants
    }
    found = []
    for node in graph.nodes:
        if node.operator == "Gemm" and len(node.inputs) == 3 and {*node.inputs[1:]} <= graph.constants.keys():
            weight, bias = (graph.constants[name] for name in node.inputs[1:])
            transposed = node.attributes.get("transB")
            found.append((weight if transposed and transposed.integer else weight.T.contiguous(), bias))
        elif node.operator == "MatMul" and node.inputs[1:] and node.inputs[1] in graph.constants:
            bias_name = added.get(node.outputs[0]) if node.outputs else None
            if bias_name is not None:
                found.append((graph.constants[node.inputs[1]].T.contiguous(), graph.constants[bias_name]))
    return found
