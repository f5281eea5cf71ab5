# SPDX-License-Identifier: Apache-2.0
"""Every kernel against the node tests of ONNX, and against onnxruntime in its older forms.

Tolerance: 1e-5 relative and 1e-6 absolute, a few units in the last place of float32, for what
float32 can hold; 2e-3 for float16 and 2e-2 for bfloat16, two steps of 10 and 7 bits of mantissa.
"""

from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the kernels are torch functions, torch an extra")

from qhyvit_onnx.errors import ModelError  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.ops import TABLE  # noqa: E402
from qhyvit_onnx.kernels.ops.dtypes import TORCH_DTYPES  # noqa: E402
from qhyvit_onnx.kernels.ops.table import Kernel, KernelTable  # noqa: E402
from qhyvit_onnx.programs import program_of  # noqa: E402

TOLERANCE = {"float16": (2e-3, 1e-3), "bfloat16": (2e-2, 1e-2)}
OPS = sorted(TABLE.versions())

UNSIGNED = {onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64}
COMPUTING = {"Add", "Sub", "Div", "Mod", "Max", "Min",
             "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}  # fmt: skip
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}
"""Cases whose expected numbers are written out with four digits."""
ORT_DEPARTS = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
"""Where onnxruntime takes the rounded length for the exact one, and misses ONNX's own numbers."""


def left_out(case):
    """Return why a kernel need not pass a case, or an empty string."""
    ports = [*case.model.graph.input, *case.model.graph.output]
    if any(not port.type.HasField("tensor_type") for port in ports):
        return "sequences and optionals are no tensors"
    types = {port.type.tensor_type.elem_type for port in ports}
    if types - set(TORCH_DTYPES):
        return "torch has no such element type, or not its rounding"
    ops = {node.op_type for node in case.model.graph.node}
    if types & UNSIGNED and ops & COMPUTING:
        return "torch does not compute on unsigned integers wider than 8 bits"
    if "Dropout" in ops and "training" in case.name and "zero_ratio" not in case.name:
        return "random numbers follow another generator"
    return ""


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def fed(case):
    """Return the first data set of a case: inputs by name, and the outputs to expect."""
    inputs, outputs = case.data_sets[0]
    names = [port.name for port in case.model.graph.input]
    feeds = {name: np.asarray(array(value)) for name, value in zip(names, inputs, strict=True)}
    return feeds, [np.asarray(array(value)) for value in outputs]


def run(model, feeds):
    found = Executor(program_of(model)).run(feeds, [port.name for port in model.graph.output])
    return list(found.values())


def check(found, wanted, rtol=1e-5):
    for tensor, want in zip(found, wanted, strict=True):
        assert tensor.dtype == TORCH_DTYPES[onnx.helper.np_dtype_to_tensor_dtype(want.dtype)]
        assert tuple(tensor.shape) == want.shape
        rtol, atol = TOLERANCE.get(want.dtype.name, (rtol, 1e-6))
        wide = np.float32 if want.dtype.name == "bfloat16" else want.dtype
        given = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_allclose(given.numpy(), want.astype(wide), rtol=rtol, atol=atol)


def fault(case):
    """Return what is wrong with our answer to a case, or an empty string."""
    feeds, wanted = fed(case)
    try:
        check(run(case.model, feeds), wanted, 1e-3 if case.name in ROUNDED else 1e-5)
    except (AssertionError, ModelError) as error:
        return f"{case.name}: {error}"
    return ""


@pytest.fixture(scope="module")
def every_case():
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        return collect_testcases(None)


@pytest.fixture(scope="module")
def cases(every_case):
    """Return the cases of one node, by op."""
    found = defaultdict(list)
    for case in every_case:
        if len(case.model.graph.node) == 1:
            found[case.model.graph.node[0].op_type].append(case)
    return found


@pytest.mark.parametrize("op", OPS)
def test_passes_the_node_tests_of_onnx(op, cases):
    chosen = [case for case in cases[op] if not left_out(case)]
    assert chosen
    assert [line for case in chosen if (line := fault(case))] == []


def test_passes_the_node_tests_that_are_functions_of_known_ops(every_case):
    known = {*OPS, "Constant"}
    chosen = [
        case
        for case in every_case
        if len(case.model.graph.node) > 1
        and {node.op_type for node in case.model.graph.node} <= known
        and not left_out(case)
    ]
    assert len(chosen) > 300
    # a chain of ops in a narrow type rounds at every link
    faults = [line for case in chosen if "bf16" not in case.name and (line := fault(case))]
    assert faults == []


def test_what_is_left_out_is_refused_aloud(cases):
    chosen = [case for op in OPS for case in cases[op] if "element type" in left_out(case)]
    assert chosen
    for case in chosen:
        feeds, _ = fed(case)
        with pytest.raises(ModelError):
            run(case.model, feeds)


def changes(op):
    """Return 13 and the later opsets at which the schema of an op changed."""
    history = onnx.defs.get_all_schemas_with_history()
    since = {schema.since_version for schema in history if schema.name == op and not schema.domain}
    return sorted({max(13, min(since))} | {version for version in since if version > 13})


def stamped(model, opset):
    """Return the model at another opset; None when its ops had another form there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = opset
    copy.ir_version = onnx.helper.find_min_ir_version_for(copy.opset_import)
    try:
        onnx.checker.check_model(copy)
    except onnx.checker.ValidationError:
        return None
    return copy


def test_equals_onnxruntime_at_every_opset_from_13(cases, run_model):
    """The same cases, moved to each opset at which the op changed, where onnxruntime takes them."""
    reached, faults = set(), []
    for op in OPS:
        for opset in changes(op):
            for case in cases[op]:
                model = None if left_out(case) else stamped(case.model, opset)
                if model is None or case.name in ORT_DEPARTS:
                    continue
                feeds, _ = fed(case)
                try:
                    wanted = run_model(model, feeds)
                except Exception:  # onnxruntime has no one error class
                    continue
                reached.add((op, opset))
                try:
                    check(run(model, feeds), wanted)
                except (AssertionError, ModelError) as error:
                    faults.append(f"{case.name} at {opset}: {error}")
    assert faults == []
    assert len(reached) > 200
    assert {op for op, _ in reached} == set(OPS) - {"Upsample"}  # gone since opset 10


X = "float[2, 4, 6, 5]"
OLD = {  # opset, x, statement, arrays
    "axes of a reduction": (17, X, "y = ReduceMean <axes = [1, -1], keepdims = 0> (x)", {}),
    "no axes of a reduction": (13, X, "y = ReduceMax (x)", {}),
    "sum over an attribute": (11, X, "y = ReduceSum <axes = [2]> (x)", {}),
    "log-sum-exp": (17, X, "y = ReduceLogSumExp <axes = [3]> (x)", {}),
    "L1": (17, X, "y = ReduceL1 <axes = [3]> (x)", {}),
    "L2": (17, X, "y = ReduceL2 <axes = [0, 3]> (x)", {}),
    "squares": (17, X, "y = ReduceSumSquare <axes = [-2]> (x)", {}),
    "product": (17, X, "y = ReduceProd <axes = [1]> (x)", {}),
    "minimum": (17, X, "y = ReduceMin <axes = [1], keepdims = 0> (x)", {}),
    "log of a sum": (17, "float[3, 4]", "z = Abs (x) y = ReduceLogSum <axes = [0]> (z)", {}),
    "softmax of rows": (12, X, "y = Softmax <axis = 2> (x)", {}),
    "softmax of rows by default": (11, X, "y = Softmax (x)", {}),
    "log-softmax of rows": (12, X, "y = LogSoftmax <axis = -1> (x)", {}),
    "clip by attributes": (10, X, "y = Clip <min = -0.5, max = 0.25> (x)", {}),
    "clip by one tensor": (11, X, "y = Clip (x, low)", {"low": np.float32(-0.5)}),
    "squeeze": (12, "float[2, 1, 3, 1]", "y = Squeeze <axes = [1, -1]> (x)", {}),
    "squeeze all": (12, "float[2, 1, 3, 1]", "y = Squeeze (x)", {}),
    "unsqueeze": (12, "float[2, 3]", "y = Unsqueeze <axes = [0, -1]> (x)", {}),
    "split by sizes": (12, X, "z, y = Split <axis = 2, split = [2, 4]> (x)", {}),
    "split in two": (11, X, "z, y = Split <axis = 1> (x)", {}),
    "pad by attributes": (
        10, X, "y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 3], value = 0.5> (x)", {},
    ),
    "pad by a mirror": (10, X, 'y = Pad <mode = "reflect", pads = [0,0,2,2,0,0,1,3]> (x)', {}),
    "pad by the edge": (
        13, X, 'y = Pad <mode = "edge"> (x, p)', {"p": np.array([0, 1, 0, 2, 0, 0, 3, -1])},
    ),
    "top by attribute": (9, X, "y, i = TopK <k = 3, axis = 2> (x)", {}),
    "top by input": (10, X, "y, i = TopK <axis = 1> (x, k)", {"k": np.array([2])}),
    "slice by attributes": (
        9, X, "y = Slice <axes = [2, 3], starts = [1, -3], ends = [1000, -1]> (x)", {},
    ),
    "dropout": (11, X, "y = Dropout <ratio = 0.4> (x)", {}),
    "upsample by attribute": (8, X, "y = Upsample <scales = [1.0, 1.0, 2.0, 1.5]> (x)", {}),
    "upsample": (9, X, 'y = Upsample <mode = "linear"> (x, s)', {"s": np.float32([1, 1, 2, 3])}),
    "resize by the corner": (10, X, "y = Resize (x, s)", {"s": np.float32([1, 1, 0.6, 1.7])}),
    "resize by the corner, linear": (
        10, X, 'y = Resize <mode = "linear"> (x, s)', {"s": np.float32([1, 1, 0.6, 1.7])},
    ),
    "resize to sizes": (
        11, X,
        'y = Resize <mode = "cubic", coordinate_transformation_mode = "pytorch_half_pixel"> '
        "(x, r, s, t)",
        {"r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32), "t": np.array([2, 4, 9, 7])},
    ),
    "resize for tensorflow": (
        11, X,
        'y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, s)',
        {"r": np.zeros(0, np.float32), "s": np.float32([1, 1, 2, 2])},
    ),
    "resize integers": (  # by powers of two, so that float32 holds every sum
        13, "uint8[1, 2, 4, 5]", 'y = Resize <mode = "linear"> (x, , s)',
        {"s": np.float32([1, 1, 2, 4])},
    ),
    "batch norm": (
        9, X, "y = BatchNormalization <epsilon = 0.01> (x, g, b, m, v)",
        {"g": (4,), "b": (4,), "m": (4,), "v": np.float32([0.5, 1, 2, 3])},
    ),
    "average pool": (
        10, X,
        "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], "
        "ceil_mode = 1, count_include_pad = 1> (x)", {},
    ),
    "gemm with a bias": (9, "float[3, 4]", "y = Gemm <transB = 1> (x, w, c)",
                         {"w": (5, 4), "c": (5,)}),
    "power of a vector": (11, "float[3, 4]", "z = Abs (x) y = Pow (z, p)", {"p": (4,)}),
    "square": (12, "float[3, 4]", "y = Pow (x, p)", {"p": np.float32(2)}),
    "codes of a channel": (
        13, X,
        "q = QuantizeLinear <axis = 1> (x, s, z) y = DequantizeLinear <axis = 1> (q, s, z)",
        {"s": np.float32([0.1, 0.02, 0.3, 1]), "z": np.uint8([128, 0, 255, 3])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_equals_onnxruntime_in_an_older_form(name, build, run_model):
    opset, port, statement, arrays = OLD[name]
    element = port.partition("[")[0]
    header = f'<ir_version: 6, opset_import: ["": {opset}]>\n'
    model = build(f"{header}g ({port} x) => ({element} y) {{ {statement} }}", **arrays)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, sizes).astype(np.uint8) if element == "uint8" else None
    feeds = {"x": rng.standard_normal(sizes).astype(np.float32) if x is None else x}
    check(run(model, feeds), run_model(model, feeds))


def test_group_norm_once_had_one_scale_a_group(build):
    """onnxruntime never ran this form: the formula of GroupNormalization-18."""
    scale, bias = np.float32([2, -1]), np.float32([0.5, 0.25])
    model = build(
        '<ir_version: 8, opset_import: ["": 18]>\ng (float[2, 4, 3] x) => (float[2, 4, 3] y) '
        "{ y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, b) }",
        s=scale,
        b=bias,
    )
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    groups = x.reshape(2, 2, -1).astype(np.float64)
    centred = groups - groups.mean(2, keepdims=True)
    want = centred / np.sqrt(groups.var(2, keepdims=True) + 0.01) * scale[:, None] + bias[:, None]
    check(run(model, {"x": x}), [want.reshape(x.shape).astype(np.float32)])


def random(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


ints = torch.tensor
GRADIENTS = {
    "Conv": lambda f: (f("Conv", pads=[1, 0, 0, 2], strides=[2, 1], group=2),
                       [random(1, 4, 4, 3), random(2, 2, 3, 3), random(2)]),
    "ConvTranspose": lambda f: (f("ConvTranspose", strides=[2, 2], pads=[1, 0, 0, 1]),
                                [random(1, 3, 3, 3), random(3, 2, 2, 2), random(2)]),
    "Gemm": lambda f: (f("Gemm", alpha=0.5, transA=1), [random(3, 2), random(3, 4), random(4)]),
    "BatchNormalization": lambda f: (
        lambda x, g, b: f("BatchNormalization")(x, g, b, torch.zeros(3).double(),
                                                torch.ones(3).double())[0],
        [random(2, 3, 4), random(3), random(3)]),
    "LayerNormalization": lambda f: (f("LayerNormalization", outputs=1),
                                     [random(3, 5), random(5), random(5)]),
    "GroupNormalization": lambda f: (f("GroupNormalization", num_groups=2),
                                     [random(2, 4, 3), random(4), random(4)]),
    "RMSNormalization": lambda f: (f("RMSNormalization"), [random(3, 5), random(5)]),
    "LpNormalization": lambda f: (f("LpNormalization"), [random(3, 5)]),
    "Softmax": lambda f: (f("Softmax"), [random(3, 5)]),
    "Gelu": lambda f: (f("Gelu", approximate="tanh"), [random(3, 5)]),
    "HardSwish": lambda f: (f("HardSwish"), [random(3, 5)]),
    "PRelu": lambda f: (f("PRelu"), [random(3, 5), random(5)]),
    "Pow": lambda f: (lambda x: f("Pow")(x, ints(3.0).double()), [random(3, 5)]),
    "Clip": lambda f: (lambda x: f("Clip")(x, ints(-0.5).double()), [random(3, 5)]),
    "AveragePool": lambda f: (
        f("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2]),
        [random(1, 2, 4, 4)]),
    "MaxPool": lambda f: (f("MaxPool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], outputs=1),
                          [random(1, 2, 4, 4)]),
    "Resize": lambda f: (lambda x: f("Resize", mode="cubic", antialias=1)(
        x, None, None, ints([1, 2, 3, 7])), [random(1, 2, 5, 4)]),
    "Pad": lambda f: (lambda x: f("Pad", mode="reflect")(x, ints([0, 2, 0, 1])), [random(2, 4)]),
    "Slice": lambda f: (lambda x: f("Slice")(x, ints([3]), ints([0]), ints([1]), ints([-2])),
                        [random(2, 5)]),
    "Gather": lambda f: (lambda x: f("Gather", axis=1)(x, ints([[0, -1], [2, 0]])),
                         [random(2, 3)]),
    "GatherND": lambda f: (lambda x: f("GatherND", batch_dims=1)(x, ints([[1], [-1]])),
                           [random(2, 3, 2)]),
    "ScatterND": lambda f: (lambda x, u: f("ScatterND", reduction="add")(x, ints([[1], [1]]), u),
                            [random(3, 2), random(2, 2)]),
    "ReduceL2": lambda f: (lambda x: f("ReduceL2")(x, ints([1])), [random(3, 4)]),
    "CumSum": lambda f: (lambda x: f("CumSum", exclusive=1, reverse=1)(x, ints(1)),
                         [random(3, 4)]),
    "DepthToSpace": lambda f: (f("DepthToSpace", blocksize=2, mode="CRD"), [random(1, 8, 2, 3)]),
    "Einsum": lambda f: (f("Einsum", equation="bij,bkj->bik"), [random(2, 3, 4), random(2, 2, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("op", GRADIENTS)
def test_gradient_is_the_slope(op):
    """Central differences of step 1e-6 in float64 are good to about 1e-9 here."""

    def bound(name, **attrs):
        return lambda *inputs: TABLE.find(name, 23).run(*inputs, **attrs)

    function, inputs = GRADIENTS[op](bound)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


def test_table_takes_the_newest_kernel_that_is_not_too_new():
    old, new = Kernel("Op", 3, abs), Kernel("Op", 13, abs)
    table = KernelTable([new, old])
    assert [table.find("Op", opset) for opset in (2, 3, 12, 13, 99)] == [None, old, old, new, new]
    assert table.find("Other", 13) is None


def test_table_refuses_two_kernels_for_one_form():
    with pytest.raises(ValueError, match="two kernels of Op since opset 3"):
        KernelTable([Kernel("Op", 3, abs), Kernel("Op", 3, max)])
