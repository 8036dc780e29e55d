"""How many layers are put back, and which."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cliplet.errors import ModelError
from cliplet.export.eight_bits import Cost, Fitting, fit
from cliplet.export.judge import Bench, scenes, torch_features
from cliplet.export.onnx import export_graphs
from cliplet.export.quantize import layers_of
from cliplet.models import DualEncoder


@pytest.fixture(scope="module")
def exported(saved_model):
    """The tiny model, the graph of its text tower, and pictures and sentences with its features."""
    model = DualEncoder.from_pretrained(saved_model)
    sample = scenes(model, 2)
    return model, export_graphs(model, ["text"])["text"], sample, torch_features(model, sample)


@pytest.fixture
def task(exported):
    """Fits the text tower of the tiny model by a cost that a test gives."""
    model, original, sample, features = exported
    graph = onnx.ModelProto()
    graph.CopyFrom(original)

    def make(cost, allowed):
        said = []
        return Fitting(bench, graph, "text", sample, features, cost, allowed, said.append), said

    with Bench(model) as bench:
        yield make


def rounded(graph):
    """How many layers of a graph have 8-bit inputs."""
    after = {
        node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear" and "/s8" in node.output[0]
    }
    return sum(node.input[0] in after for node in graph.graph.node if node.op_type in ("MatMul", "Gemm"))


@pytest.mark.parametrize("most", [0, 1, 3, 5, 8])
def test_as_few_are_put_back_as_the_cost_allows(task, most):
    fitting, said = task(lambda graph: Cost(rounded(graph) - most, 1.0), Cost(0.0, 0.9))
    found = fit(fitting)
    assert found.layers == len(layers_of(fitting.graph)) == 8
    assert found.int8 == rounded(found.graph) == most
    assert len(found.kept) == 8 - most and len(set(found.kept)) == len(found.kept)
    assert said[0].startswith("text: inputs of 8 of 8 layers in 8 bits")


def test_the_cosine_counts_as_well(task):
    fitting, _ = task(lambda graph: Cost(-1.0, 0.99 if rounded(graph) > 4 else 0.9995), Cost(1.0, 0.999))
    assert fit(fitting).int8 == 4


def test_what_hurts_most_is_put_back_first(task):
    """One layer's inputs are made far larger than its others: it is the one that rounding spoils."""
    fitting, _ = task(lambda graph: Cost(rounded(graph) - 7, 1.0), Cost(0.0, 0.0))
    layers = layers_of(fitting.graph)
    victim = layers[3]
    nodes = []
    for node in fitting.graph.graph.node:
        if node.name == victim.name:  # a far number beside the inputs, whose weight is zero
            nodes.append(helper.make_node("Concat", [victim.inputs, "far"], ["wide"], "widened", axis=2))
            node.input[0] = "wide"
        nodes.append(node)
    (weights,) = [one for one in fitting.graph.graph.initializer if one.name == victim.weights]
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(np.vstack([values, np.zeros_like(values[:1])]), victim.weights))
    fitting.graph.graph.initializer.append(numpy_helper.from_array(np.array([[[1e4]]], np.float32), "far_one"))
    shape = helper.make_node("Slice", [victim.inputs, "zero", "one", "two"], ["first"], "first")
    zeros = helper.make_node("Mul", ["first", "nothing"], ["zeros"], "zeros")
    far = helper.make_node("Add", ["zeros", "far_one"], ["far"], "far")
    for name, number in (("zero", [0]), ("one", [1]), ("two", [2])):
        fitting.graph.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), name))
    fitting.graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    place = next(number for number, node in enumerate(nodes) if node.name == "widened")
    del fitting.graph.graph.node[:]
    fitting.graph.graph.node.extend([*nodes[:place], shape, zeros, far, *nodes[place:]])
    assert fitting.graph.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert fit(fitting).kept == (victim.name,)


def test_where_nothing_helps_it_is_refused(task):
    fitting, said = task(lambda graph: Cost(3.0, 1.0), Cost(1.0, 0.0))
    with pytest.raises(
        ModelError, match=r"8 bits cost 3\.00 points of R@1.* in the text tower even where only its weights"
    ):
        fit(fitting)
    assert said[-1].startswith("text: inputs of 0 of 8 layers")


def test_exactly_what_is_allowed_is_allowed(task):
    fitting, _ = task(lambda graph: Cost(1.0000000000000018, 1.0), Cost(1.0, 0.0))
    assert fit(fitting).kept == ()
