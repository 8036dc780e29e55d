"""Eight bits: rounding by hand, graphs that stay the model, layers that are put back."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cliplet.export.dims import projection, reduced
from cliplet.export.eight_bits import _doubling
from cliplet.export.onnx import with_dims
from cliplet.export.quantize import Range, calibrated, layers_of, quantized


def graph(nodes, inputs, output, constants, kind=TensorProto.FLOAT):
    proto = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model, feeds, output=None):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output] if output else None, feeds)[0]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def product(random):
    """x (B, 40) times weights (40, 30)."""
    weights = random.normal(size=(40, 30)).astype(np.float32)
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"x": ["B", 40]}, "y", {"w": weights})


def test_weights_have_a_scale_for_each_output(product, random):
    weights = numpy_helper.to_array(product.graph.initializer[0]).copy()
    weights[:, 3] *= 1000  # which must not coarsen the others
    product.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    got = run(quantized(product, [], {}), {"x": np.eye(40, dtype=np.float32)})
    assert (np.abs(got - weights) <= np.abs(weights).max(axis=0) / 127 / 2 * 1.001).all()


def test_inputs_are_rounded_as_told(product):
    """By hand: a range of 12.7 has steps of 0.1, and 8 bits end at 127 and -128 of them."""
    (layer,) = layers_of(product)
    made = quantized(product, [layer.name], {"x": Range(-12.7, 12.7)})
    x = np.zeros((1, 40), np.float32)
    x[0, :4] = 0.26, -0.24, 99.0, -99.0
    rounded = next(
        node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear" and "x/" in node.output[0]
    )
    made.graph.output.append(helper.make_tensor_value_info(rounded, TensorProto.FLOAT, None))
    np.testing.assert_allclose(run(made, {"x": x}, rounded)[0, :5], [0.3, -0.2, 12.7, -12.8, 0.0], atol=1e-6)


def test_a_convolution_has_unsigned_inputs_with_an_offset(random):
    weights = random.normal(size=(16, 8, 3, 3)).astype(np.float32)
    model = graph([helper.make_node("Conv", ["x", "w"], ["y"], "conv")], {"x": ["B", 8, 9, 9]}, "y", {"w": weights})
    x = random.uniform(-0.3, 6, size=(4, 8, 9, 9)).astype(np.float32)
    layers = layers_of(model)
    ranges = calibrated(model, layers, [{"x": x}])
    made = quantized(model, ["conv"], ranges)
    zero = next(one for one in made.graph.initializer if one.name.endswith("/zero"))
    assert zero.data_type == TensorProto.UINT8 and 0 < numpy_helper.to_array(zero) < 30
    difference = run(made, {"x": x}) - run(model, {"x": x})
    assert np.abs(difference).max() < 0.03 * np.abs(run(model, {"x": x})).max()


def test_one_far_number_does_not_coarsen_the_rest(product, random):
    x = random.normal(size=(512, 40)).astype(np.float32)
    x[0, 0] = 100
    ranges = calibrated(product, layers_of(product), [{"x": x}])
    assert ranges["x"].high < 60
    plain = calibrated(product, layers_of(product), [{"x": x[1:]}])
    assert 2 < plain["x"].high < 6


def test_layers_that_share_an_input_share_its_rounding(random):
    constants = {name: random.normal(size=(40, 40)).astype(np.float32) for name in ("q", "k")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}x"], name) for name in constants]
    model = graph([*nodes, helper.make_node("Add", ["qx", "kx"], ["y"])], {"x": ["B", 40]}, "y", constants)
    made = quantized(model, ["q", "k"], {"x": Range(-4, 4)})
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 1


def test_rows_of_a_table_have_a_scale_each(random):
    table = (random.normal(size=(300, 16)) * np.geomspace(1e-3, 1e3, 300)[:, None]).astype(np.float32)
    model = graph(
        [helper.make_node("Gather", ["t", "ids"], ["y"], "rows")],
        {"ids": ["B", "L"]},
        "y",
        {"t": table},
        TensorProto.INT64,
    )
    made = quantized(model, [], {})
    ids = np.array([[0, 299, 17], [5, 5, 120]])
    got = run(made, {"ids": ids})
    assert (np.abs(got - table[ids]) <= np.abs(table[ids]).max(axis=2, keepdims=True) / 127 / 2 * 1.001).all()
    assert made.ByteSize() < 0.4 * model.ByteSize()


def test_gemm_both_ways_round(random):
    weights = random.normal(size=(30, 40)).astype(np.float32)
    for transposed, constant in ((1, weights), (0, weights.T.copy())):
        node = helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=transposed)
        model = graph([node], {"x": ["B", 40]}, "y", {"w": constant})
        assert layers_of(model)[0].axis == (0 if transposed else 1)
        x = random.normal(size=(5, 40)).astype(np.float32)
        np.testing.assert_allclose(run(quantized(model, [], {}), {"x": x}), x @ weights.T, atol=0.2)


def test_a_product_of_two_inputs_is_no_layer(random):
    node = helper.make_node("MatMul", ["x", "x2"], ["y"], "attention")
    model = graph([node], {"x": ["B", 40], "x2": [40, 40]}, "y", {})
    assert layers_of(model) == []


def test_layers_are_put_back_in_ever_larger_steps():
    assert list(_doubling(1)) == [1]
    assert list(_doubling(9)) == [1, 2, 4, 8, 9]


# -- fewer dimensions


@pytest.fixture
def low_rank(random):
    """Features that differ in three directions of sixteen, pictures and texts apart from each other."""
    basis = np.linalg.qr(random.normal(size=(16, 16)))[0]
    meant = random.normal(size=(200, 3)) @ basis[:3]
    rows = [meant + shift * basis[5] + 0.01 * random.normal(size=(200, 16)) for shift in (2.0, -2.0)]
    return [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in rows]


def test_the_directions_are_those_in_which_features_differ(low_rank):
    image_ND, text_MD = low_rank
    projection_DK = projection(image_ND, text_MD, 8)
    np.testing.assert_allclose(projection_DK.T @ projection_DK, np.eye(8), atol=1e-5)
    assert np.array_equal(projection(image_ND, text_MD, 4), projection_DK[:, :4])
    scores = reduced(text_MD, projection_DK, 3) @ reduced(image_ND, projection_DK, 3).T
    assert (scores.argmax(axis=1) == np.arange(200)).mean() > 0.95
    plain = text_MD[:, :3] @ image_ND[:, :3].T  # what the first three numbers would give
    assert (plain.argmax(axis=1) == np.arange(200)).mean() < 0.5


def test_graphs_compute_the_same_and_the_whole_stays_as_it_is(random, low_rank):
    rows, _ = low_rank
    model = graph([helper.make_node("Identity", ["x"], ["features"])], {"x": ["batch", 16]}, "features", {})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 16]))
    projection_DK = projection(*low_rank, 8)
    made = with_dims(model, (8, 3), projection_DK)
    assert [one.name for one in made.graph.output] == ["features", "features_8", "features_3"]
    assert np.array_equal(run(made, {"x": rows}, "features"), rows)
    for size in (8, 3):
        got = run(made, {"x": rows}, f"features_{size}")
        np.testing.assert_allclose(got, reduced(rows, projection_DK, size), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
