"""The fused graph in f64, with or without rounding to INT8, computed from the ONNX file alone: what the tests of INT8 hold
ONNX Runtime and libtorch against.

Nothing here comes from the exporter: the plain f32 file is read, and each product whose weight has a range is computed from
operands that are rounded as the ONNX specification says of QuantizeLinear and DequantizeLinear (per tensor and per column).
"""

import numpy
import onnx
import onnx.numpy_helper


def rounded(values, scale):
    return numpy.clip(numpy.rint(values / scale), -128, 127) * scale


class Graph:
    def __init__(self, path):
        model = onnx.load(path)
        self.nodes = model.graph.node
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.outputs = [output.name for output in model.graph.output]

    def run(self, inputs, ranges, noise, dither, seed):
        """Each product's activations are moved at random: by `noise` in parts of their root mean square, and where they are
        rounded by `dither` in steps of that rounding."""
        random = numpy.random.default_rng(seed)
        values = {name: array.astype(numpy.float64) for name, array in inputs.items()}

        def value(name):
            if name in values:
                return values[name]
            array = self.constants[name]
            return array.astype(numpy.float64) if array.dtype == numpy.float32 else array

        for node in self.nodes:
            x = [value(name) for name in node.input]
            attribute = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            match node.op_type:
                case "MatMul":
                    left, right = x
                    if noise:
                        spread = noise * numpy.sqrt(numpy.mean(left**2))
                        left = left + random.normal(0, spread, left.shape)
                    if node.input[1] in ranges:
                        # Scales are f32 in the file, and largest magnitudes are exact.
                        scale = numpy.float64(numpy.float32(ranges[node.input[1]]) / numpy.float32(127))
                        if dither:
                            left = left + random.normal(0, dither * scale, left.shape)
                        left = rounded(left, scale)
                        largest = numpy.abs(right).max(axis=0).astype(numpy.float32)
                        scales = (largest / numpy.float32(127)).astype(numpy.float64)
                        right = rounded(right, numpy.where(scales > 0, scales, 1.0))
                    y = left @ right
                case "Add":
                    y = x[0] + x[1]
                case "Mul":
                    y = x[0] * x[1]
                case "Tanh":
                    y = numpy.tanh(x[0])
                case "Sigmoid":
                    y = 1 / (1 + numpy.exp(-x[0]))
                case "Relu":
                    y = numpy.maximum(x[0], 0)
                case "Identity" | "Cast":
                    y = x[0]
                case "Softmax":
                    e = numpy.exp(x[0] - x[0].max(axis=-1, keepdims=True))
                    y = e / e.sum(axis=-1, keepdims=True)
                case "LayerNormalization":
                    centred = x[0] - x[0].mean(axis=-1, keepdims=True)
                    variance = (centred**2).mean(axis=-1, keepdims=True)
                    y = centred / numpy.sqrt(variance + attribute["epsilon"]) * x[1]
                    y = y + x[2] if len(x) > 2 else y
                case "Reshape":
                    shape = [x[0].shape[i] if n == 0 else int(n) for i, n in enumerate(x[1])]
                    y = x[0].reshape(shape)
                case "Transpose":
                    y = x[0].transpose(attribute["perm"])
                case "Concat":
                    y = numpy.concatenate(x, axis=attribute["axis"])
                case "Slice":
                    index = [slice(None)] * x[0].ndim
                    for first, last, axis in zip(x[1], x[2], x[3]):
                        index[axis] = slice(int(first), int(last))
                    y = x[0][tuple(index)]
                case "Split":
                    parts = numpy.split(x[0], numpy.cumsum(x[1])[:-1], axis=attribute["axis"])
                    values.update(zip(node.output, parts))
                    continue
                case other:
                    raise ValueError(f"{node.name}: no {other} here")
            values[node.output[0]] = y
        return {name: values[name] for name in self.outputs}
