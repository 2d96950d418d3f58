"""ONNX graphs: from a torch module, with constants folded; operator names and metadata."""

import io
import warnings
from typing import TYPE_CHECKING, Any, Dict, Sequence, Tuple, Union, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

SNAP_OPSET = 11  # the newest one that Lens Studio documents


def trace(
    module: nn.Module,
    inputs: Tuple[Float[Tensor, "..."], ...],
    input_names: Sequence[str],
    output_names: Union[str, Sequence[str]],
    opset: int = SNAP_OPSET,
    any_batch: bool = False,
) -> "onnx.ModelProto":
    """The graph of a module: batch norm is merged into the convolutions, and constants are folded.

    torch's exporter folds a few operators only. Those that it leaves in the Sampler (Expand, Tile, Split) are unknown
    to SnapML.

    Args:
        module: In eval mode, on the CPU.
        inputs: Example inputs; the graph gets their shapes.
        input_names: One name for each input.
        output_names: The output's name, or one name for each output.
        opset: 11 to 20.
        any_batch: Leave the first dimension of inputs and outputs open.
    """
    import onnx
    import onnxslim

    output_names = [output_names] if isinstance(output_names, str) else list(output_names)
    open_axes = {name: {0: "batch"} for name in (*input_names, *output_names)} if any_batch else None
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():  # without gradients, activations are not kept
        # Only the exporter that torch calls deprecated can write opset 11.
        warnings.simplefilter("ignore")
        torch.onnx.export(  # its annotation leaves out file objects
            module, inputs, cast(Any, buffer), input_names=list(input_names), output_names=output_names,
            opset_version=opset, do_constant_folding=True, dynamo=False, dynamic_axes=open_axes,
        )  # fmt: skip
    # onnxslim's own inference of shapes is Python, and takes several times as long as all the rest.
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))
    off = cast(Any, True)  # its annotation asks for all options in one
    return cast("onnx.ModelProto", onnxslim.slim(graph, no_shape_infer=off))


def rename_operators(graph: "onnx.ModelProto", old: str, new: str) -> None:
    """Gives every node of type ``old`` the type ``new``, in place."""
    for node in graph.graph.node:
        if node.op_type == old:
            node.op_type = new


def set_metadata(graph: "onnx.ModelProto", values: Dict[str, object]) -> None:
    """Replaces a graph's metadata, in place."""
    import onnx

    onnx.helper.set_model_props(graph, {name: str(value) for name, value in values.items()})
