"""Checks ONNX files with the `onnx` package and runs them with ONNX Runtime, for the tests.

Each line of input is a JSON request, each line of output its answer; tensors go through safetensors files.

    {"do": "check", "model": PATH}                               what the checker and shape inference say
    {"do": "run", "model": PATH, "inputs": PATH, "outputs": PATH}
    {"do": "evaluate", ...}      as run, with the evaluator of the `onnx` package: slow, but it knows every type
    {"do": "fake_quantise", ..., "ranges": {WEIGHT: RANGE}, "noise": PART, "dither": STEPS, "seed": N}
                                 as run, in f64, with these products' operands rounded to INT8: see fake_quantise.py
"""

import json
import struct
import sys

import ml_dtypes
import numpy
import onnx
import onnx.reference
import onnxruntime

import fake_quantise

TYPES = {
    "F32": numpy.float32,
    "F16": numpy.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": numpy.int64,
    "BOOL": numpy.bool_,
    "I8": numpy.int8,
}
NAMES = {numpy.dtype(kind): name for name, kind in TYPES.items()}
sessions = {}
graphs = {}


def read(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: numpy.frombuffer(data[slice(*entry["data_offsets"])], TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def write(path, tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = numpy.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def dimensions(value):
    shape = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in shape]


def signature(values):
    return [
        [v.name, onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type), dimensions(v)] for v in values
    ]


def check(path):
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    # What the file claims of its values in between must be what the package works out without the claims.
    claimed = {value.name: value for value in model.graph.value_info}
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    compared = 0
    for value in inferred.graph.value_info:
        ours = claimed[value.name]
        if value.type.tensor_type.elem_type != ours.type.tensor_type.elem_type:
            raise ValueError(f"{value.name}: element types {value} and {ours}")
        if not value.type.tensor_type.HasField("shape"):
            continue
        theirs, mine = dimensions(value), dimensions(ours)
        # Symbols that the package makes up itself say nothing.
        known = [isinstance(d, int) or d in SYMBOLS for d in theirs]
        if len(theirs) != len(mine) or any(k and a != b for k, a, b in zip(known, theirs, mine)):
            raise ValueError(f"{value.name}: shapes {theirs} and {mine}")
        compared += 1
    return {
        "compared": compared,
        "values": len(claimed),
        "ir_version": model.ir_version,
        "opset": model.opset_import[0].version,
        "inputs": signature(model.graph.input),
        "outputs": signature(model.graph.output),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


SYMBOLS = {
    "batch", "text_tokens", "image_tokens", "batch_size", "sa_seq_len", "vl_seq_len", "images", "tokens",
}


def session(path):
    if path not in sessions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        sessions[path] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return sessions[path]


def answer(request):
    if request["do"] == "check":
        return check(request["model"])
    inputs = read(request["inputs"])
    if request["do"] == "fake_quantise":
        path = request["model"]
        if path not in graphs:
            graphs[path] = fake_quantise.Graph(path)
        moved = [request[key] for key in ("noise", "dither", "seed")]
        outputs = graphs[path].run(inputs, request["ranges"], *moved)
        write(request["outputs"], {name: array.astype(numpy.float32) for name, array in outputs.items()})
        return {}
    if request["do"] == "run":
        runner = session(request["model"])
        names = [output.name for output in runner.get_outputs()]
    else:
        model = onnx.load(request["model"])
        runner = onnx.reference.ReferenceEvaluator(model)
        names = [output.name for output in model.graph.output]
    write(request["outputs"], dict(zip(names, runner.run(names, inputs))))
    return {}


print(f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}", flush=True)
for line in sys.stdin:
    try:
        reply = answer(json.loads(line))
    except Exception as error:  # the test reports it
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)
