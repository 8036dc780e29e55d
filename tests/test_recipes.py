"""Every recipe is whole, prints itself, says what it is, has the size that it states, and trains a step."""

import json

import numpy as np
import pytest
import torch

from cliplet.cli import main
from cliplet.config import DistilConfig, RunConfig, differences, from_yaml
from cliplet.errors import ConfigError
from cliplet.recipes import RECIPES, recipe

OWN = ("demo", "scratch", "student", "finetune", "flickr8k", "clip-finetune")
SYSTEMS = tuple(name for name in RECIPES if name not in OWN)
# The shape of MiniLM, which recipes that only fine-tune it do not carry.
MINILM = recipe("vittiny-minilm").model.text.architecture


@pytest.mark.parametrize("name", RECIPES)
def test_printed_recipe_reads_back_equal(name, capsys):
    assert main(["recipes", name]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert from_yaml(printed.out) == recipe(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_fresh_whole_configuration(name):
    config = recipe(name)
    assert isinstance(config, RunConfig)
    assert config.name == name  # the run folder and the model card are named by it
    assert recipe(name) == config
    assert config.model.text.width % config.model.text.heads == 0
    assert RECIPES[name].shows.endswith(".")


def test_recipes_differ():
    configs = [recipe(name) for name in RECIPES]
    for number, config in enumerate(configs):
        for other in configs[number + 1 :]:
            assert any(not line.startswith("name:") for line in differences(config, other))


def test_of_cliplets_own_what_trains_from_scratch_learns_its_batch_norm_and_what_is_pretrained_keeps_it():
    for name in OWN:
        config = recipe(name)
        pretrained = bool(config.model.image.weights or config.train.start_from)
        assert config.model.image.train_batch_norm == (not pretrained)


def test_the_demo_never_flips_its_scenes():
    assert recipe("demo").augment.flip == 0.0


def test_the_list_names_every_recipe_with_its_sizes_and_published_figures(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    flat = " ".join(printed.split())
    for name, one in RECIPES.items():
        model = one().model
        size = f"{one.parameters:.1f} M parameters {model.preprocess.image_size} pixels {model.text.context_length} tok"
        assert f"{name} {size}" in flat
        assert one.shows in flat and one.published in flat
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_the_list_as_json(capsys):
    assert main(["recipes", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["recipes"]}
    assert list(listed) == list(RECIPES)
    assert listed["tinyvit-minilm-convffn"]["parameters_M"] == pytest.approx(34.4, abs=0.2)
    assert "42.3 / 29.3" in listed["tinyvit-minilm-convffn"]["published"]
    assert main(["recipes", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe("demo").model_dump(mode="json")


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(ConfigError) as caught:
        recipe("finetun")
    assert "finetun" in caught.value.message and "Did you mean finetune" in caught.value.hint


def whole(model):
    """The configuration's model with the vocabulary as large as it may become, its weights random."""
    from cliplet.models import DualEncoder
    from cliplet.models.open_clip import OpenClipTextTower
    from cliplet.models.tokenizers import words_tokenizer
    from cliplet.models.vision import OpenClipImageTower

    image, text = model.image.architecture or None, model.text.architecture
    tokenizer = words_tokenizer(["word"], model.text.context_length)
    if model.text.kind == "transformer":
        text = {"vocab_size": model.text.tokenizer.vocab_size}
    elif model.text.kind == "huggingface":
        text = text or MINILM
    else:
        image = OpenClipImageTower.from_name(model.image, model.preprocess.image_size).architecture
        tower, tokenizer = OpenClipTextTower.from_name(model.text)
        text = tower.architecture
    return DualEncoder.skeleton(model, tokenizer, image, text)


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_as_many_as_stated(name):
    with torch.device("meta"):  # shapes without memory
        count = whole(recipe(name).model).count_parameters()
    assert count / 1e6 == pytest.approx(RECIPES[name].parameters, abs=0.051)


def test_the_first_recipe_is_as_large_as_published():
    with torch.device("meta"):
        assert whole(recipe("tinyvit-minilm-convffn").model).count_parameters() / 1e6 == pytest.approx(34.4, abs=0.2)


def published_settings():
    """What the systems' authors say, by hand from their descriptions."""
    yield (
        "tinyvit-minilm-convffn",
        {
            "data.captions_per_image": 2,
            "model.embed_dim": 512,
            "model.image.name": "tiny_vit_11m_224",
            "model.text.context_length": 32,
            "model.text_head.dropout": 0.1,
            "model.temperature.init": 100.0,
            "optim.image_lr": 1e-4,
            "optim.head_lr": 5e-4,
            "optim.weight_decay": 0.01,
            "train.batch_size": 256,
            "train.accumulate": 4,
            "train.epochs": 30,
        },
    )
    yield (
        "resnet34-linformer-sam",
        {
            "model.embed_dim": 256,
            "model.text.layers": 4,
            "model.text.heads": 4,
            "model.text.context_length": 64,
            "model.text.attention.linformer_k": 64,
            "model.text.tokenizer.vocab_size": 50257,
            "model.shared_head.expansion": 4,
            "model.temperature.hidden": 16,
            "optim.sam.rho": 0.05,
            "optim.text_lr": 1e-4,
            "optim.weight_decay": 0.01,
            "train.batch_size": 32,
            "train.epochs": 50,
        },
    )
    yield (
        "vittiny-minilm",
        {
            "model.embed_dim": 256,
            "model.image.pooling": "mean",
            "optim.image_lr": 2e-5,
            "optim.head_lr": 2e-5,
            "optim.weight_decay": 0.01,
            "train.batch_size": 32,
            "train.epochs": 3,
        },
    )
    yield (
        "vits-roberta-setup1",
        {
            "model.text.context_length": 128,
            "optim.head_lr": 3e-4,
            "optim.weight_decay": 5e-4,
            "train.batch_size": 32,
            "train.epochs": 3,
        },
    )
    yield (
        "resnet101-roberta-setup2",
        {
            "optim.image_lr": 5e-5,
            "optim.weight_decay": 1e-4,
            "optim.schedule": "cosine",
            "train.batch_size": 16,
            "train.epochs": 8,
            "train.patience": 3,
        },
    )
    yield (
        "vits-roberta-setup3",
        {
            "optim.head_lr": 3e-4,
            "optim.text_lr": 1e-5,
            "train.batch_size": 24,
            "train.epochs": 6,
            "train.start_from": "runs/vits-roberta-setup2",
        },
    )
    yield (
        "vitb16-scratch-hardneg",
        {
            "model.embed_dim": 256,
            "model.text.width": 512,
            "model.text.heads": 8,
            "model.text.pooling": "first",
            "model.text.norm": "post",
            "loss.hard_negative": 0.1,
            "loss.hard_negatives": 5,
            "loss.margin": 0.1,
            "optim.image_lr": 1e-4,
            "optim.clip_norm": 1.0,
            "train.batch_size": 128,
            "train.epochs": 10,
        },
    )


@pytest.mark.parametrize(("name", "settings"), published_settings(), ids=lambda value: value if value is str else None)
def test_settings_are_the_published_ones(name, settings):
    for key, expected in settings.items():
        value = recipe(name)
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, key


TINY_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def tiny(config):
    """The recipe with every part of its own kind, and every size small."""
    model = config.model
    image, text = model.image, model.text
    if image.kind == "huggingface":
        image = image.model_copy(update={"architecture": {**image.architecture, **TINY_SHAPE, "image_size": 32}})
    else:
        small = (
            "test_vit" if "vit" in image.name else "test_efficientnet" if "efficient" in image.name else "test_resnet"
        )
        image = image.model_copy(update={"name": small})
    text = text.model_copy(
        update={
            "sources": (),
            "architecture": {**(text.architecture or MINILM), **TINY_SHAPE, "vocab_size": 400},
            "width": 32,
            "layers": 2,
            "heads": 4,
            "tokenizer": text.tokenizer.model_copy(update={"vocab_size": 300}),
        }
    )
    return model.model_copy(
        update={
            "embed_dim": 32,
            "image": image.model_copy(update={"weights": ()}),
            "text": text,
            "preprocess": model.preprocess.model_copy(update={"image_size": 32}),
        }
    )


def batch_of(model, captions, size, captions_per_image):
    from cliplet.data.loader import Batch

    images = len(captions) // captions_per_image
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, size, size), dtype=np.uint8)
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    return Batch(torch.from_numpy(pixels), ids, mask, torch.arange(images).repeat_interleave(captions_per_image))


def features(model, batch):
    with torch.no_grad():
        return model.encode_image(batch.pixels_B3HW), model.encode_text(batch.input_ids_CL, batch.attention_mask_CL)


def train_save_and_reopen(config, model, batch, folder):
    """One step in each of the recipe's stages, with its own losses (but teachers') and optimiser; then the model as a
    folder."""
    from cliplet.models import DualEncoder
    from cliplet.training.objective import loss_in_stage
    from cliplet.training.optim import build_optimizer, set_learning_rate
    from cliplet.training.sam import Sam
    from cliplet.training.stages import peak_rates, set_trainable
    from cliplet.training.step import Stepper

    optim = config.optim
    untaught = config.model_copy(update={"distil": DistilConfig(enabled=False)})
    optimizer = build_optimizer(model, optim)
    sam = Sam(model, optim.sam.rho, optim.sam.per_layer) if optim.sam.rho else None
    for stage in config.train.stages:
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        set_trainable(model, stage)
        model.train()
        set_learning_rate(optimizer, peak_rates(stage, optim), 1.0)
        loss = loss_in_stage(untaught, stage)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        result = Stepper(model, optimizer, scaler, sam=sam, clip_norm=optim.clip_norm).step([batch], loss)
        assert torch.isfinite(result.loss) and result.grad_norm > 0
        moved = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
        free = {n for n, p in model.named_parameters() if p.requires_grad}
        assert moved and moved <= free
        assert any(name.startswith("text_tower.") for name in moved) == (stage.text_blocks != 0)
        assert any(name.startswith("image_tower.") for name in moved) == (stage.image_blocks != 0)
    model.eval()
    model.save_pretrained(folder)
    again = DualEncoder.from_pretrained(folder)
    for ours, theirs in zip(features(model, batch), features(again, batch), strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in RECIPES if recipe(name).model.image.kind != "open_clip"])
def test_tiny_trains_saves_opens_and_gives_its_features_again(name, captions, tmp_path):
    from cliplet.models import DualEncoder

    config = recipe(name)
    torch.manual_seed(0)
    model = DualEncoder.build(tiny(config), captions)
    per_image = config.data.captions_per_image
    batch = batch_of(model, [f"{caption} {n}" for n in range(per_image) for caption in captions[:4]], 32, per_image)
    train_save_and_reopen(config, model, batch, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_full_size_trains_saves_opens_and_gives_its_features_again(name, captions, tmp_path):
    config = recipe(name)
    torch.manual_seed(0)
    model = whole(config.model)
    per_image = config.data.captions_per_image
    size = config.model.preprocess.image_size
    batch = batch_of(model, [f"{caption} {n}" for n in range(per_image) for caption in captions[:4]], size, per_image)
    train_save_and_reopen(config, model, batch, tmp_path / "model")


def test_tinyclip_convffn_has_the_published_teacher_and_weights():
    from cliplet.training.objective import loss_in_stage, weights_of

    for name in ("tinyvit-minilm-convffn", "vits-minilm-convffn", "efficientnet-tinybert-convffn"):
        config = recipe(name)
        assert config.distil.teachers == ("open_clip:ViT-B-32/laion2b_s34b_b79k",)
        assert config.loss.feature_distance == "mse" and not config.distil.train_temperature
        # The affinity term is the logit term again, with a weight of its own.
        assert config.distil.affinity_scale is None and config.distil.teacher_scale is None
        first, second = config.train.stages
        assert (first.epochs, first.image_blocks, first.text_blocks) == (3, 0, 0) and first.epochs + second.epochs == 30
        warming, after = (weights_of(loss_in_stage(config, stage)) for stage in (first, second))
        assert warming == {"info_nce": 1.0, "feature": 0.5, "logit": 0.5, "affinity": 1.0}
        assert after == {**warming, "feature": 0.3}
