# SPDX-License-Identifier: Apache-2.0
import errno
import os
import resource

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qhyvit_onnx import output
from qhyvit_onnx.errors import ConfigError, ModelError, OutputError
from qhyvit_onnx.model_io import (
    Overwrite,
    check_model,
    check_output,
    input_specs,
    load_model,
    model_bytes,
    save_atomically,
    save_model,
)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def net():
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
            helper.make_node("Relu", ["y"], ["z"], name="relu"),
        ],
        "net",
        [info("x", ["N", 3, 8, 8])],
        [info("z", ["N", 4, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def set_weight(model, array, name="w"):
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, name))


def append_node(model, op, inputs, name, domain=""):
    model.graph.node.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, domain=domain))


# Each breaks the sound model; the message must hold the words beside it.
def no_opset(m):
    del m.opset_import[:]


def new_opset(m):
    m.opset_import[0].version = 999


def no_graph(m):
    m.ClearField("graph")


def unknown_op(m):
    m.graph.node[1].op_type = "Froth"


def custom_domain(m):
    m.opset_import.append(helper.make_opsetid("my.ops", 1))
    m.graph.node[1].domain, m.graph.node[1].op_type = "my.ops", "Froth"


def quantized(m):
    m.graph.initializer.append(numpy_helper.from_array(np.float32(1), "s"))
    append_node(m, "QuantizeLinear", ["z", "s"], "quant")


def qlinear(m):
    m.graph.node[0].op_type = "QLinearConv"


def dynamic(m):
    m.graph.node[1].op_type = "DynamicQuantizeLinear"


def nbits(m):
    m.graph.node[1].op_type, m.graph.node[1].domain = "MatMulNBits", "com.microsoft"


def half_weight(m):
    set_weight(m, np.ones((4, 3, 3, 3), np.float16))


def half_input(m):
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16


def double_weight(m):
    set_weight(m, np.ones((4, 3, 3, 3), np.float64))


def nan_weight(m):
    set_weight(m, np.full((4, 3, 3, 3), np.nan, np.float32))


def inf_weight(m):
    set_weight(m, np.full((4, 3, 3, 3), np.inf, np.float32))


def nan_constant_node(m):
    tensor = numpy_helper.from_array(np.array([1, np.nan], np.float32))
    m.graph.node.insert(0, helper.make_node("Constant", [], ["k"], name="k", value=tensor))


def same_initializer(m):
    m.graph.initializer.append(m.graph.initializer[0])


def same_node_name(m):
    m.graph.node[1].name = "conv"


def same_output(m):
    append_node(m, "Relu", ["x"], "again")
    m.graph.node[2].output[0] = "y"


def missing_input(m):
    m.graph.node[0].input[0] = "nothing"


def unsorted(m):
    nodes = [m.graph.node[1], m.graph.node[0]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del m.graph.node[:]
    m.graph.node.extend(copies)


def short_weight(m):
    m.graph.initializer[0].raw_data = m.graph.initializer[0].raw_data[:-4]


def wrong_type(m):
    m.graph.initializer[0].data_type = 99


def wrong_shape(m):
    m.graph.output[0].CopyFrom(info("z", ["N", 5, 6, 6]))


def no_shape(m):
    m.graph.output[0].CopyFrom(info("z", None))


def sparse(m):
    value = helper.make_tensor("sp", TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    m.graph.sparse_initializer.append(helper.make_sparse_tensor(value, index, [4]))


BROKEN = [
    (no_opset, ["opset"]),
    (new_opset, ["opset is 999"]),
    (no_graph, ["no graph"]),
    (unknown_op, ["Froth", "[node relu]"]),
    (custom_domain, ["Froth", "my.ops", "[node relu]"]),
    (quantized, ["quantized already", "QuantizeLinear", "[node quant]"]),
    (qlinear, ["QLinearConv", "[node conv]"]),
    (dynamic, ["DynamicQuantizeLinear", "[node relu]"]),
    (nbits, ["MatMulNBits", "[node relu]"]),
    (half_weight, ["tensor w is float16"]),
    (half_input, ["tensor x is bfloat16"]),
    (double_weight, ["tensor w is double"]),
    (nan_weight, ["tensor w holds NaN"]),
    (inf_weight, ["tensor w holds Inf"]),
    (nan_constant_node, ["tensor k holds NaN"]),
    (same_initializer, ["w initializer name is not unique"]),
    (same_node_name, ["2 nodes", "[node conv]"]),
    (same_output, ["y"]),
    (missing_input, ["'nothing'", "[node conv]"]),
    (unsorted, ["topologically sorted", "[node relu]"]),
    (short_weight, ["name: w", "too small"]),
    (wrong_type, ["99"]),
    (wrong_shape, ["(4) vs (5)", "relu"]),
    (no_shape, ["z declares no shape"]),
    (sparse, ["sparse"]),
]


@pytest.mark.parametrize(("damage", "said"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_a_broken_model_names_file_and_part(tmp_path, damage, said):
    model = net()
    damage(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load_model(path)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert all(part in text for part in ("bad.onnx", *said)), text
    assert len(text) < 500
    assert os.listdir(tmp_path) == ["bad.onnx"]


def test_a_model_in_memory_is_checked_alike():
    check_model(net())
    model = net()
    unknown_op(model)
    with pytest.raises(ModelError, match="Froth"):
        check_model(model)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x08", "cut short"),
        (b"just some words\n", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(90), "zip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "PNG"),
        (b"\x20\x00\x00\x00ORTM" + bytes(90), ".ort"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(90), "TFLite"),
        (np.random.default_rng(0).bytes(1000), "not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model(tmp_path, content, said):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx") as caught:
        load_model(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_cut_model_is_refused(tmp_path, sixteenth):
    whole = net().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        load_model(path)


def test_a_missing_file_is_a_usage_error_and_a_folder_is_not(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.onnx does not exist"):
        load_model(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="no regular file"):
        load_model(tmp_path / "pipe.onnx")


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(net().SerializeToString().replace(b"\x01y", b"\x01\xff"))
    with pytest.raises(ModelError, match="not UTF-8"):
        load_model(path)


def external(folder):
    path = folder / "m.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


def test_external_data_is_loaded(tmp_path):
    model = load_model(external(tmp_path))
    want = numpy_helper.to_array(net().graph.initializer[0])
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), want)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", "missing"), ("", "short"), ("location", "../m.bin"), ("location", "/etc/hosts"),
        ("offset", "-5"), ("length", "1000000000000"), ("length", "many"),
    ],
)  # fmt: skip
def test_bad_external_data_names_the_tensor_or_file(tmp_path, key, text):
    path = external(tmp_path)
    if text == "missing":
        (tmp_path / "m.bin").unlink()
    elif text == "short":
        os.truncate(tmp_path / "m.bin", 100)
    else:
        model = onnx.load(path, load_external_data=False)
        entries = model.graph.initializer[0].external_data
        kept = [(e.key, e.value) for e in entries if e.key != key]
        del entries[:]
        for name, value in [*kept, (key, text)]:
            entries.add(key=name, value=value)
        path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_model(path)


def test_sound_models_load(tmp_path):
    model = net()
    model.graph.node[1].name = model.graph.node[0].name = ""  # nameless nodes are legal
    model.graph.initializer.append(numpy_helper.from_array(np.float32(-np.inf), "mask"))
    append_node(model, "Add", ["z", "mask"], "masked")
    model.graph.initializer.append(numpy_helper.from_array(np.float64(2), "lone"))
    append_node(model, "SequenceConstruct", ["z"], "pack")
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("pack_out", TensorProto.FLOAT, ["N", 4, 6, 6])
    )
    path = tmp_path / "m ö.onnx"
    save_model(path, model)
    assert load_model(path) == model


def test_a_local_function_may_have_any_domain(tmp_path):
    model = net()
    model.graph.node[1].domain, model.graph.node[1].op_type = "mine", "Act"
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Act", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    save_model(tmp_path / "m.onnx", model)
    load_model(tmp_path / "m.onnx")


def test_a_quantized_sub_graph_is_found(tmp_path):
    model = net()
    inner = [helper.make_node("MatMulInteger", ["a", "b"], ["c"], name="deep")]
    branch = helper.make_graph(inner, "branch", [], [info("c", None, TensorProto.INT32)])
    node = helper.make_node("If", ["x"], ["o"], name="if", then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"MatMulInteger \[node deep\]"):
        load_model(path)


def test_input_specs():
    model = net()
    model.graph.input.append(info("w", [4, 3, 3, 3]))  # an initializer that is also an input
    model.graph.input.append(info("ids", [1, None, 0], TensorProto.INT64))
    assert [str(spec) for spec in input_specs(model)] == [
        "x float32 [?, 3, 8, 8]",
        "ids int64 [1, ?, ?]",
    ]


@pytest.mark.parametrize("kind", ["sequence", "string tensor"])
def test_inputs_must_be_tensors_of_numbers(kind):
    model = net()
    if kind == "sequence":
        entry = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    else:
        entry = info("s", [1], TensorProto.STRING)
    model.graph.input.append(entry)
    with pytest.raises(ModelError, match=f"input s is a {kind}"):
        input_specs(model)


def test_check_output(tmp_path):
    path = tmp_path / "o.onnx"
    assert check_output(path) == path
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"o\.onnx exists; give --overwrite"):
        check_output(path)
    check_output(str(path), Overwrite.REPLACE)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["o.onnx"]


def test_check_output_refuses_folders_inputs_and_devices(tmp_path):
    path = tmp_path / "i.onnx"
    path.write_bytes(b"model")
    (tmp_path / "link.onnx").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(ConfigError, match="also an input"):
        check_output(tmp_path / "link.onnx", Overwrite.REPLACE, inputs=[path])
    with pytest.raises(ConfigError, match="no regular file"):
        check_output(tmp_path / "pipe", Overwrite.REPLACE)


def test_a_folder_that_is_missing_or_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for parent, said in (("gone", "does not exist"), ("file", "is no folder")):
        with pytest.raises(OutputError, match=said) as caught:
            check_output(tmp_path / parent / "o.onnx")
        assert caught.value.exit_code == 6
        with pytest.raises(OutputError, match=said):
            save_atomically(tmp_path / parent / "o.onnx", b"new")


def test_a_read_only_folder_is_found_by_trying(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(output, "_open_new", refuse)
    with pytest.raises(OutputError, match=r"o\.onnx: Read-only file system"):
        check_output(tmp_path / "o.onnx")


def half_then_fail(stream):
    stream.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_stop(stream):
    stream.write(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("writer", "raised"), [(half_then_fail, OutputError), (half_then_stop, KeyboardInterrupt)]
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, writer, raised):
    path = tmp_path / "o.onnx"
    path.write_bytes(b"old")
    with pytest.raises(raised):
        save_atomically(path, writer)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["o.onnx"]


def test_a_full_disk_for_real(tmp_path):
    path = tmp_path / "o.onnx"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"o\.onnx: File too large"):
            save_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_saving_replaces_and_gives_the_same_bytes(tmp_path):
    path = tmp_path / "o.onnx"
    path.write_bytes(b"old")
    save_model(path, net())
    assert path.read_bytes() == model_bytes(net())
    save_atomically(path, lambda stream: stream.write(b"new"))
    assert path.read_bytes() == b"new"
    (tmp_path / "other").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_model_beyond_two_gigabytes_is_an_output_error(monkeypatch):
    monkeypatch.setattr(output, "PROTOBUF_LIMIT", 10)
    with pytest.raises(OutputError, match="larger than 2 GiB"):
        model_bytes(net())
