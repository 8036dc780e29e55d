"""`cliplet export`: a model's graphs, written only when they are found to be the model. N pictures, M captions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from cliplet import __version__, hub, model_folder
from cliplet.console import counted
from cliplet.data.records import ImageText
from cliplet.errors import ConfigError, DataError, ModelError
from cliplet.export.dims import projection, reduced
from cliplet.export.eight_bits import REFERENCE, Cost, EightBits, Fitting, fit
from cliplet.export.judge import GATE_PICTURES, Bench, Features, Sample, cosines, of_records, scenes, torch_features
from cliplet.export.onnx import OPSET, export_graphs, with_dims
from cliplet.export.quantize import layers_of
from cliplet.export.writing import Made, before, refuse_unwritable, write_into, write_new
from cliplet.export.yardstick import Graphs, Yardstick
from cliplet.files import file_sha256
from cliplet.models.pretrained import folder_with_weights, open_model
from cliplet.runtime.choice import CLOSE, Candidate, auto_candidates
from cliplet.runtime.engines import OPEN_CLIP, TorchEngine, best_model_folder
from cliplet.runtime.exported import TOWERS, Export, Graph, Step, Tower, configuration_hash, read_export

SHARES: dict[Tower, float] = {"image": 0.5, "text": 1.0}  # of the allowed loss, by when each tower is done
MORE_DATA = "Name a data set with a training split, or with more pictures than --samples."
CLOSE_DIMS = 0.999  # engines multiply in bf16, and few dimensions show it more
DIMS_PICTURES = 1000  # from which the directions of fewer dimensions are learnt
Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What is wanted of an export."""

    int8: bool = False
    dims: tuple[int, ...] = ()  # smaller numbers of dimensions, offered beside the whole
    max_loss: float = 1.0  # points of R@1, in either direction and on any engine, that 8 bits may cost
    min_cosine: float = 0.0  # mean, to PyTorch's features, on any engine, that 8 bits must keep in each tower
    calibration: int = 256  # pictures, each with two of its captions, from which ranges of 8 bits are taken


class Data(NamedTuple):
    """What recall is measured on, and other pictures to take ranges and directions from."""

    measured: Sequence[ImageText]
    calibration: Sequence[ImageText]
    name: str


def export(
    source: str | Path,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    data: Data | None = None,
    say: Say = lambda message: None,
) -> tuple[Path, Export]:
    """Exports a model to `onnx/` in its folder, or in the new folder `out`, which has all but the weights.

    `source`: what `open_model` opens; OpenCLIP's need `out`. `data` is what 8 bits need, to be calibrated and measured,
    and fewer dimensions, to be good ones. `say` hears what each step cost. Nothing is written, and an earlier export
    stays, unless the graphs hold: ModelError for an operator that ONNX has not, features that are not the model's,
    8 bits that cost too much; ConfigError for options that make no sense.
    """
    options = options or ExportOptions()
    if options.int8 and data is None:
        raise ConfigError(
            "8 bits need pictures with captions, to take ranges from and to measure what they cost",
            "Name a data set: --data DATA.",
        )
    if out is None and (str(source).startswith(OPEN_CLIP) or hub.is_hub_name(source)):
        here = "" if str(source).startswith(OPEN_CLIP) else "is no folder here, but taken for a name on the hub; it "
        raise ConfigError(f"{source}: {here}has no folder of its own to export into", "Name a new one: --out FOLDER.")
    if out is not None:
        model_folder.refuse_occupied(out)
        if (Path(out) / model_folder.WEIGHTS).exists():
            raise ModelError(
                f"{out}: holds a model with its weights, and an exported folder has none",
                "Name a new folder, or leave --out away to put the graphs beside the weights of MODEL.",
            )
    folder = Path(out) if out is not None else best_model_folder(source)
    refuse_unwritable(folder)
    model = open_model(source)
    taken = before(source, model, folder) if out is not None else None
    width = model.config.embed_dim
    if any(not 0 < size < width for size in options.dims):
        raise ConfigError(f"--dims must be between 1 and {width - 1}, got {', '.join(map(str, options.dims))}")
    weights = folder_with_weights(source) / model_folder.WEIGHTS if out is None else None
    with Bench(model) as bench:
        made = _Exporter(bench, options, data, say).run(file_sha256(weights) if weights else "")
    if taken is not None:
        write_new(folder, model, made, taken)
    else:
        write_into(folder, made)
    return folder, read_export(folder, model.config)


class _Exporter:
    """One export, step by step."""

    def __init__(self, bench: Bench, options: ExportOptions, data: Data | None, say: Say):
        self.bench, self.options, self.data, self.say = bench, options, data, say
        self.model = bench.model
        self.steps: list[Step] = []
        self.probe = scenes(self.model)
        self.probe_features = torch_features(self.model, self.probe)
        self.gate = of_records(data.measured, self.model, GATE_PICTURES) if data else self.probe
        self.expected = torch_features(self.model, self.gate) if data else self.probe_features
        self.yardstick = Yardstick(bench, data.measured) if data else None

    def run(self, weights: str) -> Made:
        """All of it; `weights` is the hash of the file that the graphs will lie beside."""
        graphs: Graphs = export_graphs(self.model)
        for tower in TOWERS:
            self._refuse_other(graphs, tower)
        self._step("exported to ONNX, in float32", graphs, auto_candidates("fp32"))
        eights: dict[Tower, EightBits] = {}
        if self.options.int8:
            graphs, eights = self._in_8_bits(graphs)
        dims_recalls: dict[str, dict[str, float]] = {}
        if self.options.dims:
            graphs, dims_recalls = self._smaller(graphs)
        described = self._described(graphs, eights)
        config = self.model.config
        made = Export(
            cliplet=__version__,
            precision="int8" if self.options.int8 else "fp32",
            opset=OPSET,
            configuration=configuration_hash(config),
            weights=weights,
            tokenizer="",  # of the file, which is written last
            logit_scale=TorchEngine(self.model).logit_scale,
            embed_dim=config.embed_dim,
            dims=tuple(self.options.dims),
            parameters=self.model.count_parameters(),
            graphs={tower: one for tower, (one, _) in described.items()},
            measured_on=self._measured_on(),
            steps=tuple(self.steps),
            dims_recalls=dims_recalls,
        )
        return Made({tower: data for tower, (_, data) in described.items()}, self._probe_arrays(), made)

    def _refuse_other(self, graphs: Graphs, tower: Tower) -> None:
        """Raises ModelError where the float graph is not the model."""
        found = self._cosines(graphs[tower], tower, REFERENCE, self.gate, self.expected)
        if not np.isfinite(found).all() or found.min() < CLOSE:
            raise ModelError(
                f"the exported {tower} tower is not the model: the cosine of their features falls to "
                f"{found.min():.5f}, {CLOSE} asked",
                "Nothing was written. Please report this with the model's config.json.",
            )

    def _cosines(
        self, graph: onnx.ModelProto, tower: Tower, candidate: Candidate, sample: Sample, expected: Features
    ) -> np.ndarray:
        return cosines(self.bench.open(graph, tower, candidate), tower, sample, self.model.tokenizer, expected)

    def _step(self, name: str, graphs: Graphs, engines: Sequence[Candidate]) -> None:
        """Writes down, and says, what the model is worth after a step."""
        means = {
            tower: float(self._cosines(graphs[tower], tower, engines[0], self.gate, self.expected).mean())
            for tower in TOWERS
        }
        size = sum(graphs[tower].ByteSize() for tower in TOWERS)
        found: dict[str, float] = {}
        if self.yardstick:
            for engine in engines:
                recalls = self.yardstick.recalls(self.yardstick.features(graphs, engine))
                found |= {f"{metric} {engine.engine} {engine.precision}": value for metric, value in recalls.items()}
        step = Step(step=name, bytes=size, image_cosine=means["image"], text_cosine=means["text"], recalls=found)
        self.steps.append(step)
        best = f", R@1 {' / '.join(f'{value:.2f}' for value in list(found.values())[:2])}" if found else ""
        self.say(
            f"{name}: {size / 1e6:.1f} MB, cosines {means['image']:.5f} of pictures, {means['text']:.5f} of "
            f"sentences{best}"
        )

    def _in_8_bits(self, floats: Graphs) -> tuple[Graphs, dict[Tower, EightBits]]:
        """Both towers in 8 bits. The picture tower may cost half of what is allowed, the text tower what is left."""
        assert self.data is not None and self.yardstick is not None
        yardstick, engines = self.yardstick, auto_candidates("int8")
        calibration = of_records(self.data.calibration, self.model, self.options.calibration)
        self.say(f"calibrating on {counted(len(calibration.pixels_NSS3), 'picture')}")
        expected = torch_features(self.model, calibration)
        before = yardstick.recalls(yardstick.features(floats, auto_candidates("fp32")[0]))
        graphs: Graphs = floats
        eights: dict[Tower, EightBits] = {}
        for tower, share in SHARES.items():

            def cost(graph: onnx.ModelProto, tower: Tower = tower, graphs: Graphs = graphs) -> Cost:
                points = max(yardstick.loss(before, {**graphs, tower: graph}, engine) for engine in engines)
                found = (self._cosines(graph, tower, engine, self.gate, self.expected).mean() for engine in engines)
                return Cost(points, float(min(found)))

            allowed = Cost(share * self.options.max_loss, self.options.min_cosine)
            fitted = fit(Fitting(self.bench, floats[tower], tower, calibration, expected, cost, allowed, self.say))
            eights[tower] = fitted
            graphs = {**graphs, tower: fitted.graph}
            self._step(f"{tower} tower in 8 bits, inputs of {fitted.int8} of {fitted.layers} layers", graphs, engines)
        return graphs, eights

    def _smaller(self, graphs: Graphs) -> tuple[Graphs, dict[str, dict[str, float]]]:
        """Graphs with outputs of fewer dimensions, and R@1 of each size."""
        width, largest = self.model.config.embed_dim, max(self.options.dims)
        if self.data is None or self.yardstick is None:
            self.say("without --data, fewer dimensions are the first of all, and no good ones")
            first_DK = np.eye(width, largest, dtype=np.float32)
            return {tower: with_dims(graphs[tower], self.options.dims, first_DK) for tower in TOWERS}, {}
        engine = auto_candidates("int8" if self.options.int8 else "fp32")[0]
        learnt = Yardstick(self.bench, self.data.calibration[:DIMS_PICTURES]).features(graphs, engine)
        readable = np.isfinite(learnt.image_ND).all(axis=1)
        if readable.sum() < 2:
            raise DataError("fewer dimensions need pictures other than those that R@1 is measured on", MORE_DATA)
        projection_DK = projection(learnt.image_ND[readable], learnt.text_MD, largest)
        whole = self.yardstick.features(graphs, engine)
        found = {str(width): self.yardstick.recalls(whole)}
        for size in self.options.dims:
            rows = (reduced(one, projection_DK, size) for one in whole)
            found[str(size)] = self.yardstick.recalls(Features(*rows))
            values = " / ".join(f"{value:.2f}" for value in found[str(size)].values())
            self.say(f"{size} of {width} dimensions: R@1 {values}")
        smaller = {tower: with_dims(graphs[tower], self.options.dims, projection_DK) for tower in TOWERS}
        self._refuse_other_dims(smaller, engine, projection_DK)
        return smaller, found

    def _refuse_other_dims(self, graphs: Graphs, engine: Candidate, projection_DK: np.ndarray) -> None:
        """Raises ModelError where an output of fewer dimensions is not what was measured."""
        inputs: dict[Tower, tuple[np.ndarray, ...]] = {
            "image": (self.probe.pixels_NSS3,),
            "text": self.model.tokenizer(self.probe.texts),
        }
        for tower, rows in inputs.items():
            whole = self.bench.open(graphs[tower], tower, engine)(*rows)
            for size in self.options.dims:
                cut = self.bench.open(graphs[tower], tower, engine, f"features_{size}")(*rows)
                least = (cut * reduced(whole, projection_DK, size)).sum(axis=1).min()
                if not least >= CLOSE_DIMS:
                    raise ModelError(f"{engine} gives other {tower} features of {size} dimensions: cosine {least:.5f}")

    def _described(self, graphs: Graphs, eights: dict[Tower, EightBits]) -> dict[Tower, tuple[Graph, bytes]]:
        """What parity.json says of each graph, and the graph's file."""
        engines = auto_candidates("int8" if eights else "fp32")
        if not eights:  # of floats the gate is the measure, and the bound at use its own
            engines = [REFERENCE]
        found: dict[Tower, tuple[Graph, bytes]] = {}
        for tower in TOWERS:
            data = graphs[tower].SerializeToString()
            eight = eights.get(tower)
            gate, probe = (
                min(float(self._cosines(graphs[tower], tower, engine, *one).min()) for engine in engines)
                for one in ((self.gate, self.expected), (self.probe, self.probe_features))
            )
            described = Graph(
                file=f"{tower}.onnx",
                sha256=hashlib.sha256(data).hexdigest(),
                bytes=len(data),
                cosine=gate,
                probe_cosine=probe,
                layers=eight.layers if eight else len(layers_of(graphs[tower])),
                int8=eight.int8 if eight else 0,
                kept=eight.kept if eight else (),
            )
            found[tower] = described, data
        return found

    def _probe_arrays(self) -> dict[str, np.ndarray]:
        ids, mask = self.model.tokenizer(self.probe.texts)
        return {
            "pixels": self.probe.pixels_NSS3,
            "input_ids": ids,
            "attention_mask": mask,
            "image_features": self.probe_features.image_ND,
            "text_features": self.probe_features.text_MD,
        }

    def _measured_on(self) -> str:
        if self.data is None:
            return f"{counted(len(self.probe.pixels_NSS3), 'rendered scene')}"
        return f"{self.data.name}: {counted(len(self.data.measured), 'picture')}"
