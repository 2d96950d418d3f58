"""The operators that SnapML documents: which of its four backends runs which operator, and under which conditions.

Lens Studio imports a file if at least one backend runs each layer. The ML component's inference mode selects the
backend. The table applies to graphs of opset 11 with fixed shapes and channels as the second dimension.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, NamedTuple, Tuple

from rich.table import Table

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_graph import rename_operators

BACKENDS = CPU, IPHONE_GPU, ANDROID_GPU, NPU = "CPU", "iPhone GPU", "Android GPU", "iPhone NPU"
EVERYWHERE = frozenset(BACKENDS)
NOWHERE: FrozenSet[str] = frozenset()
MAX_RANK = 4


class Layer(NamedTuple):
    """One node of a graph."""

    name: str
    operator: str
    attributes: Dict[str, Any]
    inputs: Tuple[Tuple[int, ...], ...]
    """Shapes; () for an input that is omitted."""
    constant: Tuple[bool, ...]
    """For each input, whether it is stored in the file."""
    output: Tuple[int, ...]


class Operator(NamedTuple):
    """A row of the table."""

    runs_on: Callable[[Layer], FrozenSet[str]]
    limits: Dict[str, str] = {}
    """For backends that do not run every layer: ``no``, or the condition."""
    condition: str = ""
    """Condition of all backends."""
    complaint: str = ""
    """Error message for a layer that no backend runs."""


def _only(*backends: str) -> Callable[[Layer], FrozenSet[str]]:
    return lambda layer: frozenset(backends)


def _convolution(layer: Layer) -> FrozenSet[str]:
    kernel = _kernel(layer)
    fits = len(set(kernel.strides)) == len(set(kernel.dilations)) == 1 and kernel.padding_fits()
    groups, channels = layer.attributes.get("group", 1), layer.inputs[0][1]
    if not fits or groups not in (1, channels):
        return NOWHERE
    return EVERYWHERE if groups == 1 else frozenset([ANDROID_GPU])


def _transposed_convolution(layer: Layer) -> FrozenSet[str]:
    kernel = _kernel(layer)
    square = all(len(set(sizes)) == 1 for sizes in (kernel.strides, kernel.pads, kernel.sizes))
    groups, channels = layer.attributes.get("group", 1), layer.inputs[0][1]
    fits = square and set(kernel.dilations) == {1} and kernel.padding_fits() and groups in (1, channels)
    return EVERYWHERE if fits else NOWHERE


class _Kernel(NamedTuple):
    """Kernel of a convolution: sizes, strides and dilations by axis, paddings by side."""

    sizes: Tuple[int, ...]
    strides: List[int]
    dilations: List[int]
    pads: List[int]

    def padding_fits(self) -> bool:
        """Whether no padding is larger than the kernel."""
        return all(pad <= size for pad, size in zip(self.pads, (*self.sizes, *self.sizes)))


def _kernel(layer: Layer) -> _Kernel:
    sizes = layer.inputs[1][2:]
    axes, attributes = len(sizes), layer.attributes
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    return _Kernel(sizes, strides, dilations, attributes.get("pads", [0] * 2 * axes))


def _elementwise(layer: Layer) -> FrozenSet[str]:
    if any(_broadcasts_twice(shape, layer.output) for shape in layer.inputs):
        return NOWHERE
    return EVERYWHERE - {NPU} if any(layer.constant) else EVERYWHERE


def _broadcasts_twice(shape: Tuple[int, ...], output: Tuple[int, ...]) -> bool:
    padded = (1,) * (len(output) - len(shape)) + shape
    stretched = {axis for axis, (a, b) in enumerate(zip(padded, output), start=4 - len(output)) if a != b}
    return 1 in stretched and bool(stretched & {2, 3})


def _concatenation(layer: Layer) -> FrozenSet[str]:
    rank = len(layer.output)
    from_the_back = layer.attributes["axis"] % rank - rank
    return EVERYWHERE if from_the_back == 1 - MAX_RANK else EVERYWHERE - {NPU}


def _softmax(layer: Layer) -> FrozenSet[str]:
    # Opset 11 has one softmax over the axis and all axes after it.
    axis = layer.attributes.get("axis", 1) % len(layer.output)
    return EVERYWHERE if axis == 1 and set(layer.output[2:]) <= {1} else NOWHERE


_NOT_ON_NPU = Operator(_only(*EVERYWHERE - {NPU}), {NPU: "no"})
_EVERYWHERE = Operator(_only(*BACKENDS))
_ELEMENTWISE = Operator(
    _elementwise,
    {NPU: "if no operand is a constant"},
    "stretches an operand along the channels, or along height and width, not both",
    "broadcasts over channels and pixels at once; SnapML does not",
)

_ELEMENTWISE_NOT_ON_NPU = _ELEMENTWISE._replace(runs_on=lambda layer: _elementwise(layer) - {NPU}, limits={NPU: "no"})

OPERATORS: Dict[str, Operator] = {
    "Conv": Operator(
        _convolution,
        {ANDROID_GPU: "yes, also depthwise"},
        "same stride and same dilation for height and width, padding at most the kernel, one group",
        "has a stride, dilation, padding or group that SnapML does not run",
    ),
    "ConvTranspose": Operator(
        _transposed_convolution,
        {},
        "same kernel, stride and padding for height and width, padding at most the kernel, dilation 1, one group "
        "or depthwise",
        "has a kernel, stride, dilation, padding or group that SnapML does not run",
    ),
    "Relu": _EVERYWHERE,
    "GeluSnap": Operator(_only(*EVERYWHERE - {ANDROID_GPU}), {ANDROID_GPU: "no"}),
    "Sigmoid": _EVERYWHERE,
    "Add": _ELEMENTWISE,
    "Mul": _ELEMENTWISE,
    "Div": _ELEMENTWISE_NOT_ON_NPU,
    "Abs": _EVERYWHERE,
    "Concat": Operator(_concatenation, {NPU: "along the channels"}),
    "Softmax": Operator(
        _softmax,
        {},
        "along the channels, of one pixel each",
        "is not along the channels, or is over several pixels at once",
    ),
    "Sin": _NOT_ON_NPU,
    "Cos": _NOT_ON_NPU,
    "Constant": _NOT_ON_NPU,
    "Transpose": _NOT_ON_NPU,
    "Reshape": _NOT_ON_NPU,
    "ReduceSum": _NOT_ON_NPU,
    "Slice": _NOT_ON_NPU,
}


def check_snap_operators(path: Path) -> None:
    """Checks that every layer of a file runs on at least one backend of SnapML.

    Raises:
        UserError: An operator is not in OPERATORS, a tensor has more than four dimensions, or a layer does not fulfil
            the conditions of its operator, such as a sum that broadcasts over channels and over height or width at
            once. The message names file and layer.
    """
    for layer in read_layers(path):
        if max(map(len, (*layer.inputs, layer.output))) > MAX_RANK:
            raise UserError(f"{path}: {layer.name} has more than four dimensions, which SnapML does not run.")
        operator = OPERATORS[layer.operator]
        if not operator.runs_on(layer):
            raise UserError(f"{path}: {layer.name} {operator.complaint}.")


def backends(path: Path) -> Dict[str, List[str]]:
    """For each backend, the operators of a file that it does not run, sorted; an empty list if it runs the file.

    Raises:
        UserError: The file has an operator that SnapML does not document.
    """
    layers = read_layers(path)
    return {
        backend: sorted({layer.operator for layer in layers if backend not in _running(layer)}) for backend in BACKENDS
    }


def read_layers(path: Path) -> List[Layer]:
    """The nodes of a file, with the shapes of their inputs and outputs.

    Raises:
        UserError: The file has an operator that SnapML does not document.
    """
    import onnx

    model = onnx.load(str(path))
    operators = [node.op_type for node in model.graph.node]
    foreign = sorted(set(operators) - set(OPERATORS))
    if foreign:
        raise UserError(f"{path} uses {', '.join(foreign)}, which SnapML does not run: export it without them.")
    rename_operators(model, "GeluSnap", "Relu")  # shapes are inferred for standard operators only
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {"": (), **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(node.output[0] for node in graph.node if node.op_type == "Constant")
    return [
        Layer(
            node.name,
            operator,
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
            tuple(shapes[name] for name in node.input),
            tuple(name in constants for name in node.input),
            shapes[node.output[0]],
        )
        for node, operator in zip(graph.node, operators)
    ]


def markdown_table() -> str:
    """OPERATORS as a table in Markdown, for docs/lens-studio.md."""
    rows = [("operator", *BACKENDS, "condition"), ("---",) * (len(BACKENDS) + 2)]
    for name, operator in OPERATORS.items():
        cells = [operator.limits.get(backend, "yes") for backend in BACKENDS]
        rows.append((f"`{name}`", *cells, operator.condition))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def backend_table(paths: Iterable[Path]) -> Table:
    """A table with a row for each operator of each file.

    A row has the number of the operator's nodes, and for each backend yes, no, or how many of the nodes it runs.
    """
    table = Table(title="Operators by backend of SnapML")
    for heading in ("file", "operator", "nodes", *BACKENDS):
        table.add_column(heading, justify="right" if heading == "nodes" else "left")
    for path in paths:
        layers = read_layers(path)
        nodes = Counter(layer.operator for layer in layers)
        running = Counter((layer.operator, backend) for layer in layers for backend in _running(layer))
        for row, (operator, count) in enumerate(sorted(nodes.items())):
            cells = [_cell(running[operator, backend], count) for backend in BACKENDS]
            table.add_row("" if row else path.name, operator, str(count), *cells, end_section=row == len(nodes) - 1)
    return table


def _running(layer: Layer) -> FrozenSet[str]:
    return OPERATORS[layer.operator].runs_on(layer)


def _cell(running: int, count: int) -> str:
    return {0: "no", count: "yes"}.get(running, f"{running} of {count}")
