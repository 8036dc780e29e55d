"""Features of frozen towers: the same batches, losses, gradients and validation as with the towers themselves."""

import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cliplet.config import (
    AugmentConfig,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    StageConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)
from cliplet.data import feature_store
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, Records
from cliplet.errors import TrainingError
from cliplet.evaluation import evaluate
from cliplet.models import DualEncoder
from cliplet.models.dual_encoder import Output
from cliplet.runtime.encoder import Encoder
from cliplet.runtime.engines import TorchEngine
from cliplet.training import features as features_module
from cliplet.training.distributed import Ranks
from cliplet.training.features import FrozenFeatures, augments
from cliplet.training.objective import loss_terms, total
from cliplet.training.optim import build_optimizer
from cliplet.training.stages import set_trainable
from cliplet.training.step import autocast, embed
from cliplet.training.tower_features import compute_images, image_store, training_pixels, weights_checksum
from cliplet.training.trainer import State, Trainer

COUNT, BATCH = 23, 4
CPU = torch.device("cpu")
HEADS_ONLY = StageConfig(image_blocks=0, text_blocks=0, augment=False)
CONVFFN = HeadConfig(kind="convffn", hidden=24, dropout=0.0)
MIXED = LossConfig(info_nce=1.0, hard_negative=0.5)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(feature_store, "PART_ROWS", 5)


@pytest.fixture
def records(tmp_path):
    """23 pictures of noise, the n-th with 1 + n % 3 captions of some words."""
    random = np.random.default_rng(0)
    words = ["a", "red", "boat", "two", "dogs", "run", "in", "the", "deep", "snow", "child", "with", "blue", "ball"]
    result = []
    for number in range(COUNT):
        file = tmp_path / "pictures" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(file)
        captions = tuple(
            f"{number} " + " ".join(random.choice(words, 1 + random.integers(9))) for _ in range(1 + number % 3)
        )
        result.append(ImageText(str(file), captions))
    return result


@pytest.fixture
def make(tiny_config, records, tmp_path):
    """A trainer of a tiny model, both towers of which have dropout or batch norm, and whose parameters are random."""

    def make(stage=HEADS_ONLY, records=records, text_head=None, batch=BATCH, ranks=None, augment=None, seed=0, **train):
        text = TextTowerConfig(
            width=32, layers=1, heads=4, context_length=24, dropout=0.3, tokenizer=TokenizerConfig(vocab_size=300)
        )
        model_config = tiny_config.model_copy(update={"text": text, "text_head": text_head or HeadConfig()})
        output = train.pop("output", tmp_path / "run")
        config = RunConfig(
            data=DataConfig(captions_per_image=2, workers=2),
            augment=augment or AugmentConfig(),
            model=model_config,
            train=TrainConfig(output=str(output), batch_size=batch, stages=(stage,), precision="fp32", **train),
        )
        torch.manual_seed(seed)
        model = DualEncoder.build(model_config, [caption for record in records for caption in record.captions])
        torch.manual_seed(seed)  # heads draw more or fewer numbers
        with torch.no_grad():  # timm begins its residual branches at zero
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        set_trainable(model, stage)
        model.train()
        state = State(model, build_optimizer(model, OptimConfig()), torch.amp.GradScaler("cpu", enabled=False))
        val_records = Records.of(records[:9])
        ranks = ranks or Ranks()
        quarantine = Quarantine(tmp_path / f"quarantine{ranks.rank}.jsonl")
        return Trainer(config, state, CPU, "fp32", {}, Records.of(records), val_records, quarantine, ranks)

    return make


def frozen(trainer, said=None):
    return FrozenFeatures.of_stage(trainer, trainer.config.train.stages[0], [].append if said is None else said.append)


def epoch(trainer, number=0, start=0, features=None):
    return list(
        trainer.loader.epoch(
            number,
            start,
            augmented=trainer.config.train.stages[0].augment,
            image_features=features and features.image,
            text_features=features and features.text,
        )
    )


def loss_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    image_BD, text_CD = embed(model, batch)
    output = Output(image_BD, text_CD, model.temperature(image_BD, text_CD), model.logit_bias)
    value = total(loss_terms(output, batch.caption_image_C, MIXED), MIXED)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same_rows(first, second):
    return np.array_equal(first.rows_B, second.rows_B) and np.array_equal(first.caption_rows_C, second.caption_rows_C)


# Training


@pytest.mark.parametrize("text_head", [None, CONVFFN], ids=["linear", "convffn"])
@pytest.mark.parametrize(
    "stage",
    [HEADS_ONLY, HEADS_ONLY.model_copy(update={"text_blocks": 1}), HEADS_ONLY.model_copy(update={"image_blocks": 1})],
    ids=["heads", "heads and text", "heads and image"],
)
def test_the_same_losses_and_gradients(make, stage, text_head):
    """K is 2. Where a tower trains its dropout is switched off here, for both ways to be alike."""
    trainer = make(stage, text_head=text_head)
    model, features = trainer.state.model, frozen(trainer)
    assert (features.image is None) == (stage.image_blocks != 0)
    assert (features.text is None) == (stage.text_blocks != 0)
    model.eval()
    for number in range(2):
        for cached, plain in zip(epoch(trainer, number, features=features), epoch(trainer, number), strict=True):
            assert same_rows(cached, plain) and torch.equal(cached.caption_image_C, plain.caption_image_C)
            assert (cached.pixels_B3HW is None) == (features.image is not None)
            assert (cached.input_ids_CL is None) == (features.text is not None)
            value, gradients = loss_and_gradients(model, cached)
            expected, expected_gradients = loss_and_gradients(model, plain)
            assert value == pytest.approx(expected, rel=1e-6)
            assert gradients.keys() == expected_gradients.keys() and gradients
            for name, gradient in gradients.items():
                size = expected_gradients[name].abs().max().item()
                torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-6 + 3e-6 * size)


def test_a_model_in_training_mode_gives_the_same_features(make):
    """Frozen towers compute as in evaluation: what is stored is what they give within a training step."""
    trainer = make()
    model, features = trainer.state.model.train(), frozen(trainer)
    assert model.training
    for cached, plain in zip(epoch(trainer, features=features), epoch(trainer), strict=True):
        torch.testing.assert_close(cached.image_BW, model.image_tower_output(plain.pixels_B3HW), rtol=1e-5, atol=1e-6)
        output = model.text_tower_output(plain.input_ids_CL, plain.attention_mask_CL)
        torch.testing.assert_close(cached.text_states, output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text_head", [None, CONVFFN], ids=["linear", "convffn"])
def test_bfloat16_is_kept_bit_for_bit(make, text_head):
    trainer = make(text_head=text_head)
    trainer.precision = "bf16"
    model, features = trainer.state.model, frozen(trainer)
    for cached, plain in zip(epoch(trainer, features=features), epoch(trainer), strict=True):
        with autocast(CPU, "bf16"), torch.no_grad():
            image = model.image_tower_output(plain.pixels_B3HW)
            text = model.text_tower_output(plain.input_ids_CL, plain.attention_mask_CL)
        assert cached.image_BW.dtype == image.dtype == torch.bfloat16
        assert cached.text_states.dtype == text.dtype
        # Sums of bfloat16 depend on what else is computed with them; its numbers have 8 bits.
        torch.testing.assert_close(cached.image_BW, image, rtol=0.02, atol=0.02)
        real = plain.attention_mask_CL.bool() if text_head else slice(None)
        torch.testing.assert_close(cached.text_states[real], text[real], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_order_and_captions_are_those_of_the_pictures(make, start):
    trainer = make()
    features = frozen(trainer)
    cached, plain = epoch(trainer, 3, start, features), epoch(trainer, 3, start)
    assert len(cached) == len(plain) == COUNT // BATCH - start
    assert all(same_rows(*pair) for pair in zip(cached, plain, strict=True))


def with_bad(records, *numbers):
    """Some of the pictures cut short."""
    for number in numbers:
        file = Path(records[number].image)
        file.write_bytes(file.read_bytes()[:1500])
    return records


def test_bad_pictures_are_quarantined_and_replaced_alike(make, records):
    bad = {1, 5, 9, 10, 15, 20}
    records = with_bad(records, *bad)
    trainer, plain = make(records=records), make(records=records, cache_features=False)
    features = frozen(trainer)
    assert {entry["where"] for entry in trainer.quarantine.entries()} == {records[number].image for number in bad}
    assert all("truncated" in entry["reason"] for entry in trainer.quarantine.entries())
    for number in range(3):
        for one, other in zip(epoch(trainer, number, features=features), epoch(plain, number), strict=True):
            assert same_rows(one, other) and len(one) == BATCH and not bad & set(one.rows_B.tolist())
    assert features.image.reasons.keys() == bad


def test_reasons_reach_the_quarantine_of_the_next_run(make, records, tmp_path):
    records = with_bad(records, 4)
    frozen(make(records=records, features=str(tmp_path / "shared")))
    trainer = make(records=records, features=str(tmp_path / "shared"), output=tmp_path / "next")
    frozen(trainer)
    assert [entry["where"] for entry in trainer.quarantine.entries()] == [records[4].image]


def test_a_part_of_bad_pictures_alone(make, records):
    """Parts are of 5: the first holds no picture that could be read."""
    trainer = make(records=with_bad(records, 0, 1, 2, 3, 4))
    features = frozen(trainer)
    assert features.image.reasons.keys() == {0, 1, 2, 3, 4}
    assert {row for batch in epoch(trainer, features=features) for row in batch.rows_B.tolist()} <= set(range(5, COUNT))


# When, and what is said


def test_augmentation_stands_in_the_way_of_pictures(make):
    said = []
    features = frozen(make(HEADS_ONLY.model_copy(update={"augment": True})), said)
    assert features.image is None and features.text is not None
    assert "augment: false" in said[0]
    assert "text tower is frozen: its features of 45 captions are computed once" in said[1]


def test_augmentation_that_does_nothing_does_not(make):
    nothing = AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0)
    assert not augments(nothing) and augments(AugmentConfig(crop_scale=(1.0, 1.0)))
    assert augments(AugmentConfig(flip=0.0))
    said = []
    trainer = make(HEADS_ONLY.model_copy(update={"augment": True}), augment=nothing)
    features = frozen(trainer, said)
    assert features.image is not None and "its features of 23 pictures are computed once" in said[0]
    for cached, plain in zip(epoch(trainer, features=features), epoch(trainer), strict=True):
        expected = trainer.state.model.image_tower_output(plain.pixels_B3HW)
        torch.testing.assert_close(cached.image_BW, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [(HEADS_ONLY, {"cache_features": False}), (StageConfig(image_blocks=1, text_blocks=1, augment=False), {})],
    ids=["switched off", "nothing is frozen whole"],
)
def test_nothing_to_keep(make, stage, settings):
    said = []
    trainer = make(stage, **settings)
    features = frozen(trainer, said)
    assert features.image is None and features.text is None and not said
    assert not (trainer.config.output / "features").exists()


def test_no_room_on_the_disk(make, monkeypatch):
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    said = []
    features = frozen(make(), said)
    assert features.image is None and features.text is None
    assert len(said) == 2 and "computed in each step" in said[0] and "0.0 GB left" in said[0]


def test_a_disk_that_fills_up(make):
    trainer, limits = make(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"features: the image tower's features cannot be written") as raised:
            frozen(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "--train.features" in raised.value.hint


# Keeping them


def parts_of(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("[0-9]*.npy")}


def test_a_second_run_computes_nothing(make, tmp_path):
    shared, said = tmp_path / "shared", []
    frozen(make(features=str(shared)))
    before = parts_of(shared)
    again = frozen(make(features=str(shared), output=tmp_path / "other"), said)
    assert parts_of(shared) == before and len(before) == 5 + 9
    assert all("there already" in line for line in said)
    again.clear()
    assert parts_of(shared) == before


def test_those_of_the_run_folder_are_removed(make):
    trainer = make()
    features = frozen(trainer)
    assert len(parts_of(trainer.config.output / "features")) == 5 + 9
    features.clear()
    assert not (trainer.config.output / "features").exists()


def changed_weights(trainer, tower):
    with torch.no_grad():
        next(getattr(trainer.state.model, tower).parameters()).mul_(1.001)


def changed_statistics(trainer, tower):
    buffers = dict(trainer.state.model.image_tower.named_buffers())
    next(buffer for name, buffer in buffers.items() if "running_mean" in name)[0] += 1e-3


def changed_picture(trainer, _):
    Image.new("RGB", (64, 64), "red").save(trainer.train_records.image(3))


CHANGES = {
    "image weights": (changed_weights, "image_tower", (True, False)),
    "text weights": (changed_weights, "text_tower", (False, True)),
    "statistics": (changed_statistics, "", (True, False)),
    "a picture": (changed_picture, "", (True, False)),
    "precision": (lambda trainer, _: setattr(trainer, "precision", "bf16"), "", (True, True)),
    "heads": (changed_weights, "text_head", (False, False)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_different_has_features_of_its_own(make, tmp_path, change):
    first = frozen(make(features=str(tmp_path / "shared")))
    work, tower, expected = CHANGES[change]
    trainer = make(features=str(tmp_path / "shared"))
    work(trainer, tower)
    second = frozen(trainer)
    assert (second.image.folder != first.image.folder, second.text.folder != first.text.folder) == expected


def test_another_caption_or_head_has_features_of_its_own(make, records, tmp_path):
    shared = str(tmp_path / "shared")
    first, tokens = frozen(make(features=shared)), frozen(make(features=shared, text_head=CONVFFN))
    assert first.text.folder != tokens.text.folder and first.image.folder == tokens.image.folder
    trainer = make(features=shared)
    changed = [*records[:-1], ImageText(records[-1].image, ("the deep snow",) * len(records[-1].captions))]
    trainer.train_records = Records.of(changed)
    trainer.loader.tokens = type(trainer.loader.tokens)(trainer.train_records.captions(), trainer.loader.tokenizer)
    second = frozen(trainer)
    assert second.text.folder != first.text.folder and second.image.folder == first.image.folder


def test_a_damaged_part_is_computed_again(make, tmp_path):
    shared = str(tmp_path / "shared")
    first = frozen(make(features=shared))
    rows = np.arange(COUNT)
    expected, before = first.image.rows(rows), parts_of(tmp_path / "shared")
    damaged = first.image._file(2, "npy")
    damaged.write_bytes(damaged.read_bytes()[:-7])
    trainer = make(features=shared, output=tmp_path / "other")
    again = frozen(trainer)
    assert {file for file, at in parts_of(tmp_path / "shared").items() if before[file] != at} == {damaged}
    np.testing.assert_allclose(again.image.rows(rows), expected, rtol=1e-5, atol=1e-6)


def test_what_a_stop_leaves_is_gone_on_from(make):
    """Stopped after 12 of 23 pictures, in the third part: two parts stay and are not computed again."""
    trainer = make()
    model, records = trainer.state.model, trainer.train_records
    store = image_store(
        trainer.config.output / "features", model, weights_checksum(model.image_tower), records, "whole", CPU, "fp32"
    )
    read, pixels = [], training_pixels(model)

    def stopping(done, total):
        assert total == COUNT
        if done >= 12:
            raise KeyboardInterrupt

    def noted(place):
        read.append(place)
        return pixels(place)

    with pytest.raises(KeyboardInterrupt):
        compute_images(store, store.missing(), model, records, pixels, CPU, "fp32", 2, stopping)
    assert store.missing() == [2, 3, 4]
    compute_images(store, store.missing(), model, records, noted, CPU, "fp32", 2)
    assert sorted(read) == sorted(records.image(row) for row in range(10, COUNT))
    features = frozen(trainer)
    assert features.image.folder == store.folder
    batch, plain = epoch(trainer, features=features)[0], epoch(trainer)[0]
    torch.testing.assert_close(batch.image_BW, model.image_tower_output(plain.pixels_B3HW), rtol=1e-5, atol=1e-6)


COMPUTING = """
import sys, time
from pathlib import Path
import torch
from cliplet.data import feature_store
from cliplet.data.records import ImageText, Records
from cliplet.models import DualEncoder
from cliplet.training.tower_features import compute_images, image_store, training_pixels, weights_checksum
feature_store.PART_ROWS = 5
model = DualEncoder.from_pretrained(sys.argv[1])
records = Records.of([ImageText(place, ("a",)) for place in sys.argv[3:]])
device = torch.device("cpu")
store = image_store(Path(sys.argv[2]), model, weights_checksum(model.image_tower), records, "whole", device, "fp32")
pixels = training_pixels(model)

def slow(place):
    if place == records.image(13):
        time.sleep(100)
    return pixels(place)

compute_images(store, store.missing(), model, records, slow, device, "fp32", 1)
"""


def test_killed_while_computing(saved_model, records, tmp_path):
    """At the 14th picture, so that two parts of five are whole; who goes on computes the other three."""
    folder = tmp_path / "features"
    command = [sys.executable, "-c", COMPUTING, str(saved_model), str(folder), *(record.image for record in records)]
    process = subprocess.Popen(command)
    try:
        while len(parts_of(folder)) < 2 and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    before, model, records = parts_of(folder), DualEncoder.from_pretrained(saved_model), Records.of(records)
    store = image_store(folder, model, weights_checksum(model.image_tower), records, "whole", CPU, "fp32")
    assert store.missing() == [2, 3, 4]
    compute_images(store, [2, 3, 4], model, records, training_pixels(model), CPU, "fp32", 2)
    assert store.open() and {file: at for file, at in parts_of(folder).items() if file in before} == before


# Ranks


class InThreads(Ranks):
    """Ranks that are threads of one process."""

    def __init__(self, rank, size, meeting, said):
        super().__init__(rank, size)
        self._meeting, self._said = meeting, said

    def exchange(self, *numbers):
        return [list(one) for one in self._exchanged(numbers)]

    def from_first(self, make):
        return self._exchanged(make() if self.first else None)[0]

    def _exchanged(self, one):
        self._said[self.rank] = one
        self._meeting.wait(60)
        every = list(self._said)
        self._meeting.wait(60)
        return every


def test_two_ranks_share_the_parts(make, monkeypatch, tmp_path):
    """Of five parts one is there already; each computes two of the others, and finds all of them then."""
    stage, shared = HEADS_ONLY.model_copy(update={"text_blocks": 1}), str(tmp_path / "shared")
    alone = frozen(make(stage, features=shared)).image
    expected = alone.rows(np.arange(COUNT))
    for part in range(1, 5):
        alone._file(part, "npy").unlink()
    meeting, said, written = threading.Barrier(2), [None, None], []
    trainers = [make(stage, features=shared, ranks=InThreads(rank, 2, meeting, said)) for rank in range(2)]
    write = feature_store.FeatureStore.write

    def noted(store, part, *rest):
        written.append((threading.current_thread().name, part))
        write(store, part, *rest)

    monkeypatch.setattr(feature_store.FeatureStore, "write", noted)
    found = [None, None]
    work = lambda rank: found.__setitem__(rank, frozen(trainers[rank]))  # noqa: E731
    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert sorted(written) == [("0", 1), ("0", 3), ("1", 2), ("1", 4)]
    batches = [epoch(trainer, features=features) for trainer, features in zip(trainers, found, strict=True)]
    whole = epoch(make(stage, cache_features=False))
    for first, second, both in zip(*batches, whole, strict=True):
        assert np.array_equal(np.stack([first.rows_B, second.rows_B], 1).ravel(), both.rows_B)
        np.testing.assert_allclose(first.image_BW, expected[first.rows_B], rtol=1e-5, atol=1e-6)


# Validation


@pytest.mark.parametrize("text_head", [None, CONVFFN], ids=["linear", "convffn"])
@pytest.mark.parametrize("stage", [HEADS_ONLY, StageConfig(image_blocks=0), StageConfig(text_blocks=0)], ids=str)
def test_validation_from_features(make, stage, text_head):
    """The same features and figures as the model itself gives, whatever is frozen, augmented or not."""
    trainer = make(stage, text_head=text_head)
    model = trainer.state.model
    features = frozen(trainer)
    for _ in range(2):
        expected = evaluate(plain_encoder(model), trainer.val_records, trainer.quarantine)
        found = evaluate(features.encoder(model, "fp32"), trainer.val_records, trainer.quarantine)
        np.testing.assert_allclose(found.image_ND, expected.image_ND, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found.text_MD, expected.text_MD, rtol=0, atol=2e-6)
        assert found.metrics == expected.metrics and found.captions == expected.captions
        assert found.records == expected.records
        changed_weights(trainer, "image_head")  # heads go on training
    assert model.training


def plain_encoder(model):
    return Encoder(TorchEngine(model, "fp32"), model.tokenizer, model.config.preprocess, model.config.embed_dim)


def test_validation_reads_pictures_once(make):
    trainer = make()
    features, model = frozen(trainer), trainer.state.model
    evaluate(features.encoder(model, "fp32"), trainer.val_records, trainer.quarantine)
    for record in trainer.val_records:
        Path(record.image).unlink()
    again = evaluate(features.encoder(model, "fp32"), trainer.val_records, trainer.quarantine)
    assert again.metrics["images"] == 9 and not trainer.quarantine


def test_validation_without_bad_pictures(make, records):
    trainer = make(records=with_bad(records, 2, 6))
    features, model = frozen(trainer), trainer.state.model
    expected = evaluate(plain_encoder(model), trainer.val_records, Quarantine())
    quarantine = Quarantine()
    found = evaluate(features.encoder(model, "fp32"), trainer.val_records, quarantine)
    assert found.metrics == expected.metrics and found.metrics["images"] == 7
    assert [entry["where"] for entry in quarantine.entries()] == [records[2].image, records[6].image]
    np.testing.assert_allclose(found.text_MD, expected.text_MD, rtol=0, atol=2e-6)


def test_weights_that_are_not_the_stages_compute_as_ever(make):
    """The average of a tower that trained before the stage, or the run's best model of an earlier stage."""
    trainer = make()
    features, model = frozen(trainer), trainer.state.model
    evaluate(features.encoder(model, "fp32"), trainer.val_records, trainer.quarantine)
    other = make(seed=1).state.model
    expected = evaluate(plain_encoder(other), trainer.val_records, trainer.quarantine)
    found = evaluate(features.encoder(other, "fp32"), trainer.val_records, trainer.quarantine)
    np.testing.assert_allclose(found.image_ND, expected.image_ND, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.text_MD, expected.text_MD, rtol=0, atol=2e-6)
    changed_weights(trainer, "text_tower")  # one of the two
    expected = evaluate(plain_encoder(model), trainer.val_records, trainer.quarantine)
    found = evaluate(features.encoder(model, "fp32"), trainer.val_records, trainer.quarantine)
    np.testing.assert_allclose(found.text_MD, expected.text_MD, rtol=0, atol=2e-6)
