"""Tools for ONNX graphs: tracing a torch module, folding constants, naming operators and facts."""

import io
import warnings
from typing import Dict, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

SNAP_OPSET = 11  # Lens Studio documents no later one


def trace(
    module: nn.Module,
    inputs: Tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Union[str, Sequence[str]],
    opset: int = SNAP_OPSET,
    any_batch: bool = False,
):
    """The onnx.ModelProto of a module in eval mode: batch norm merged into the convolutions, constants folded.

    Args:
        module: In eval mode, on the CPU.
        inputs: Example inputs; their shapes become the graph's.
        input_names: A name each.
        output_names: The output's name, or names.
        opset: 11 to 20.
        any_batch: Leave the first dimension of inputs and outputs open.
    """
    import onnx

    output_names = [output_names] if isinstance(output_names, str) else list(output_names)
    open_axes = {name: {0: "batch"} for name in (*input_names, *output_names)} if any_batch else None
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():  # a picture's activations need not be kept
        # The exporter that writes opset 11 is the deprecated one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, inputs, buffer, input_names=list(input_names), output_names=output_names,
            opset_version=opset, do_constant_folding=True, dynamo=False, dynamic_axes=open_axes,
        )  # fmt: skip
    graph = onnx.load_from_string(buffer.getvalue())
    fold_constants(graph)
    return with_output_sizes(graph) if any_batch else graph


def with_output_sizes(model):
    """The ModelProto with the sizes of its outputs, of which the exporter knows none once the batch is open."""
    import onnx

    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def fold_constants(model) -> None:
    """Replaces, in place, every node that depends on no input by its value.

    The exporter folds a few operators only. What it leaves of the Sampler's pixel grid (Expand, Tile, Split) SnapML
    could not read.
    """
    from onnx import ModelProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    fixed, live, known = [], [], set(constants)
    for node in model.graph.node:
        if known.issuperset(node.input):
            fixed.append(node)
            known.update(node.output)
        else:
            live.append(node)
    used = {name for node in live for name in node.input}
    names = [name for node in fixed for name in node.output if name in used]
    if names:
        outputs = [helper.make_empty_tensor_value_info(name) for name in names]
        part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        part.graph.CopyFrom(helper.make_graph(fixed, "constants", [], outputs, list(constants.values())))
        for name, value in zip(names, ReferenceEvaluator(part).run(names, {})):
            constants[name] = numpy_helper.from_array(value, name)
    kept = [tensor for name, tensor in constants.items() if name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(live)
    model.graph.initializer.extend(kept)


def rename_operators(model, old: str, new: str) -> None:
    """Gives every node of type ``old`` the type ``new``, in place."""
    for node in model.graph.node:
        if node.op_type == old:
            node.op_type = new


def set_metadata(model, facts: Dict[str, object]) -> None:
    """Writes facts into a model's metadata, in place."""
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=str(value))
