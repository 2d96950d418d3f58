"""Runs a CoreML ML program without CoreML: each operation runs in torch and is rounded to its declared type."""

from pathlib import Path
from typing import Dict

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def load_program(path: Path):
    """The main function of an .mlpackage, weights included, as coremltools' own operations."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    return load(spec, spec.specificationVersion, package.weights_dir).functions["main"]


def run(function, c2w: np.ndarray) -> Dict[str, np.ndarray]:
    """Outputs by name for a pose (1, 3, 4) float32."""
    values = {"c2w": torch.from_numpy(c2w)}

    def read(variable):
        if isinstance(variable, (list, tuple)):
            return [read(item) for item in variable]
        if variable.val is None:
            return values[variable.name].float()
        return torch.from_numpy(variable.val).float() if isinstance(variable.val, np.ndarray) else variable.val

    for operation in function.operations:
        if operation.op_type != "const":
            (output,) = operation.outputs
            result = getattr(Operations, operation.op_type)(**{name: read(v) for name, v in operation.inputs.items()})
            assert tuple(result.shape) == tuple(output.shape), operation.op_type
            values[output.name] = result.to(DTYPES[output.dtype.__name__])
    return {output.name: values[output.name].float().numpy() for output in function.outputs}


def whole(numbers):
    """A constant as a list of ints."""
    return [int(x) for x in numbers]


class Operations:
    """The operations of ML programs that a student has."""

    add = staticmethod(lambda x, y: torch.as_tensor(x) + y)
    mul = staticmethod(lambda x, y: torch.as_tensor(x) * y)
    sub = staticmethod(lambda x, y: torch.as_tensor(x) - y)
    sin = staticmethod(lambda x: x.sin())
    cos = staticmethod(lambda x: x.cos())
    abs = staticmethod(lambda x: x.abs())
    inverse = staticmethod(lambda x, epsilon: 1 / (x + epsilon))
    real_div = staticmethod(lambda x, y: torch.as_tensor(x) / y)
    reduce_max = staticmethod(lambda x, axes, keep_dims: x.amax(whole(axes), bool(keep_dims)))
    clip = staticmethod(lambda x, alpha, beta: x.clamp(float(alpha), float(beta)))
    softmax = staticmethod(lambda x, axis: x.softmax(int(axis)))
    relu = staticmethod(lambda x: x.relu())
    sigmoid = staticmethod(lambda x: x.sigmoid())
    cast = staticmethod(lambda x, dtype: x)
    linear = staticmethod(lambda x, weight, bias: F.linear(x, weight, bias))
    matmul = staticmethod(lambda x, y, transpose_x, transpose_y: _turn(x, transpose_x) @ _turn(y, transpose_y))
    concat = staticmethod(lambda values, axis, interleave: torch.cat(values, int(axis)))
    reshape = staticmethod(lambda x, shape: x.reshape(whole(shape)))
    transpose = staticmethod(lambda x, perm: x.permute(whole(perm)))
    pixel_shuffle = staticmethod(lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)))

    @staticmethod
    def gelu(x, mode):
        assert mode == "EXACT"
        return F.gelu(x)

    @staticmethod
    def conv(x, weight, strides, pad_type, pad, dilations, groups, bias=None):
        before_h, after_h, before_w, after_w = whole(pad)
        x = F.pad(x, (before_w, after_w, before_h, after_h)) if pad_type == "custom" else x
        return F.conv2d(x, weight, bias, whole(strides), 0, whole(dilations), int(groups))

    @staticmethod
    def slice_by_index(x, begin, end, end_mask=(), begin_mask=()):
        for axis, (low, high) in enumerate(zip(whole(begin), whole(end))):
            low = 0 if len(begin_mask) and begin_mask[axis] else low
            high = x.shape[axis] if len(end_mask) and end_mask[axis] else high
            x = x.narrow(axis, low, high - low)
        return x


def _turn(x, turned):
    return x.transpose(-1, -2) if turned else x
