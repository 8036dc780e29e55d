"""Checkpoints of the five systems, held against plain modules of the same weights."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import transformers

from cliplet.errors import DataError, ModelError
from cliplet.importing import Options, import_any, import_checkpoint
from cliplet.models import DualEncoder
from cliplet.recipes import recipe

TABLE = {1: "student_state", 2: "text_encoder", 3: "model_state_dict", 5: "model_state"}


def tensors_in(content, system, table=None):
    """The table of tensors in what a checkpoint holds: system 4 is one itself, system 2 has several, by name."""
    return content if system == 4 else content[(system == 2 and table) or TABLE[system]]


@pytest.fixture
def changed(tmp_path, opened):
    """Opens an example of which `change` has changed the content, or the table of tensors of that name."""

    def open_changed(example, change, table=None, **options):
        content = example.content()
        change(tensors_in(content, example.system, table))
        torch.save(content, tmp_path / "changed.pt")
        return opened(example, tmp_path / "changed.pt", **options)

    return open_changed


def refused(*arguments, **options):
    """The error that opening raises: message and hint in one."""
    opening, *arguments = arguments
    with pytest.raises(ModelError) as caught:
        opening(*arguments, **options)
    return f"{caught.value.message}\n{caught.value.hint}"


# Features


def test_features_and_scale_are_theirs_also_when_saved_and_opened(example, opened, assert_same_features, tmp_path):
    model = opened(example)
    assert_same_features(model, example)
    model.save_pretrained(tmp_path / "model")
    again = DualEncoder.from_pretrained(tmp_path / "model")
    assert_same_features(again, example)
    assert again.config == model.config


def test_a_text_s_feature_is_the_same_in_any_company(plain_example, opened, texts):
    model = opened(plain_example)
    with torch.no_grad():
        together = model.encode_text(*map(torch.from_numpy, model.tokenizer(texts)))
        for text, feature in zip(texts, together, strict=True):
            alone = model.encode_text(*map(torch.from_numpy, model.tokenizer([text])))
            torch.testing.assert_close(alone[0], feature, rtol=0, atol=1e-5)


def test_a_text_as_long_as_the_context_is_read_as_theirs(plain_example, opened):
    model = opened(plain_example)
    ids, mask = map(torch.from_numpy, model.tokenizer(["red boat snow " * 60]))
    assert ids.shape == (1, model.config.text.context_length) and mask.all()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids, mask), plain_example.model.text(ids, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "option"), [("3", "text_config"), ("4", "text_config"), ("4", "image_config")])
def test_the_comparison_would_tell_another_number_of_heads(
    name, option, make_example, opened, assert_same_features, tmp_path
):
    example = make_example(name)
    config = json.loads(Path(example.options[option]).read_text())
    assert config["num_attention_heads"] == 4
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8}))
    model = opened(example, **{option: str(tmp_path / "config.json")})
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_same_features(model, example)


@pytest.mark.parametrize("name", ["1", "1 vit, other head", "2", "3", "4", "4 resnet", "5"])
def test_what_is_left_of_poolers_and_classifiers_is_ignored(name, make_example, changed, assert_same_features):
    example = make_example(name)
    state = tensors_in(example.content(), example.system, "image_encoder")
    bert = {1: "text.", 3: "text_encoder.", 4: "text_encoder.model."}.get(example.system)
    tower = {1: "vision.", 2: "model.", 4: "vision_encoder.model.", 5: "image_encoder.backbone."}
    tower = tower.get(example.system, "image_encoder.")
    parts = {name.removeprefix(tower) for name in state}
    leftovers = {f"{bert}pooler.dense.{part}": torch.zeros(1) for part in ("weight", "bias")} if bert else {}
    if bert:
        leftovers[f"{bert}embeddings.position_ids"] = torch.arange(40)[None]
    if "embeddings.cls_token" in parts:  # Hugging Face's ViT
        leftovers[f"{tower}pooler.dense.weight"] = torch.zeros(1)
    else:
        kinds = {"conv_stem.weight": "classifier", "layer1.0.conv1.weight": "fc", "class_token": "heads.head"}
        head = next((head for part, head in kinds.items() if part in parts), "head")
        leftovers |= {f"{tower}{head}.weight": torch.zeros(1000, 3), f"{tower}{head}.bias": torch.zeros(1000)}
    assert_same_features(changed(example, lambda state: state.update(leftovers), "image_encoder"), example)


@pytest.mark.parametrize("name", ["1", "3", "4"])
def test_poolers_may_be_missing(name, make_example, changed, assert_same_features):
    def remove(state):
        poolers = [name for name in state if ".pooler." in name]
        assert poolers
        for name in poolers:
            del state[name]

    example = make_example(name)
    assert_same_features(changed(example, remove), example)


# Names of older versions of transformers

TRANSFORMERS_5 = pytest.mark.skipif(transformers.__version__ < "5", reason="older versions do not know newer names")
OLDER = [
    ("layers.", "encoder.layer."),
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
]


def as_older(state, newer=False):
    """Renames the tensors of Hugging Face's ViT as transformers 4 named them; or as transformers 5 does."""
    for name in [name for name in state if name.startswith("vision_encoder.model.")]:
        tensor, new = state.pop(name), name
        for five, four in OLDER:
            if four not in new or newer:  # "layers." would be found again in "encoder.layers."
                new = new.replace(*((four, five) if newer else (five, four)))
        state[new] = tensor


@pytest.mark.parametrize("name", ["4", "4 heads of 64", "4 older"])
@pytest.mark.parametrize("newer", [False, pytest.param(True, marks=TRANSFORMERS_5)])
def test_a_vit_s_tensors_may_have_the_names_of_transformers_4_or_5(
    name, newer, make_example, changed, assert_same_features
):
    example = make_example(name)

    def rename(state):
        as_older(state, newer)
        word = ".layers.1.attention.q_proj.weight" if newer else ".encoder.layer.1.attention.attention.query.weight"
        assert f"vision_encoder.model{word}" in state

    assert_same_features(changed(example, rename), example)


@pytest.mark.parametrize("newer", [False, pytest.param(True, marks=TRANSFORMERS_5)])
@pytest.mark.parametrize(
    ("four", "five", "change", "message"),
    [
        ("encoder.layer.1.intermediate.dense.bias", "layers.1.mlp.fc1.bias", None, "1 missing"),
        ("encoder.layer.1.extra.bias", "layers.1.extra.bias", torch.zeros(2), "1 left over"),
        ("encoder.layer.1.layernorm_after.bias", "layers.1.layernorm_after.bias", torch.zeros(2), "1 of another shape"),
    ],
)
def test_faults_are_told_under_either_names(newer, four, five, change, message, make_example, changed):
    name = f"vision_encoder.model.{five if newer else four}"

    def damage(state):
        as_older(state, newer)
        if change is None:
            del state[name]
        else:
            state[name] = change

    said = refused(changed, make_example("4"), damage)
    assert said.count("missing") + said.count("left over") + said.count("of another shape") == 1
    assert re.search(rf"{message} \(image_tower\.model\.({re.escape(four)}|{re.escape(five)})( is|\))", said)


# The scale


@pytest.mark.parametrize(
    ("system", "log_scale", "expected"),
    [
        (1, 5.0, 100.0),  # kept above its bound, and bounded where it is used
        (1, 6.0, 100.0),
        (1, 4.5, math.exp(4.5)),
        (1, -3.0, math.exp(-2.5)),
        (3, 5.0, math.exp(5.0)),
        (3, -1.0, math.exp(-1.0)),
        (4, 5.0, math.exp(5.0)),
        (5, 5.0, 100.0),
        (5, 4.5, math.exp(4.5)),
    ],
)
def test_the_scale_is_the_one_that_the_system_uses(system, log_scale, expected, make_example, changed):
    name = "temperature" if system == 4 else "logit_scale"
    shape = () if system < 4 else (1,)  # some keep it as a vector
    model = changed(make_example(str(system)), lambda state: state.update({name: torch.full(shape, log_scale)}))
    assert model.logit_scale.item() == pytest.approx(expected, rel=1e-6)


def test_the_dynamic_scale_follows_the_batch(make_example, opened):
    example = make_example("2")
    model = opened(example)
    generator = torch.Generator().manual_seed(3)
    scales = []
    for spread in (0.05, 0.5, 5.0):
        features = [torch.nn.functional.normalize(1 + spread * torch.randn(5, 32, generator=generator)) for _ in "it"]
        with torch.no_grad():
            scales.append(model.temperature(*features).item())
            assert scales[-1] == pytest.approx(example.model.scale(*features).item(), rel=1e-5)
    assert len({round(scale, 5) for scale in scales}) == 3


# What does not fit

T, V = "text_tower.model.", "image_tower.model."
MISSING = [
    # the tensor, and what is said of it
    ("1", "", "logit_scale", r": 1 missing \(temperature\.log_scale\)\n"),
    ("1", "", "v_proj.1.bias", r": 1 missing \(image_head\.2\.bias\)\n"),
    ("1", "", "t_proj.dw.bias", r": 1 missing \(text_head\.convolution\.bias\)\n"),
    ("1", "", "t_proj.pre.weight", r"has no 't_proj\.pre\.weight', which a checkpoint of system 1 has"),
    ("1", "", "text.embeddings.word_embeddings.weight", r"has no 'text\.embeddings\.word_embeddings\.weight', which"),
    ("1", "", "text.encoder.layer.1.output.dense.bias", rf": 1 missing \({T}encoder\.layer\.1\.output\.dense\.bias\)"),
    ("1", "", "vision.conv_stem.weight", r"test_efficientnet: its weights do not fit: 1 missing \(conv_stem\.weight\)"),
    ("2", "image_encoder", "projection.bias", r": 1 missing \(image_head\.1\.bias\)"),
    ("2", "image_encoder", "model.layer2.0.bn2.running_var", r"1 missing \(layer2\.0\.bn2\.running_var\)"),
    ("2", "text_encoder", "layer_norm.bias", r": 1 missing \(text_tower\.final_norm\.bias\)"),
    ("2", "text_encoder", "pos_emb.weight", r"has no 'pos_emb\.weight', which a checkpoint of system 2 has"),
    (
        "2",
        "text_encoder",
        "encoder.net.layers.1.0.fn.proj_k",
        r": 1 missing \(text_tower\.layers\.1\.attention\.proj_k",
    ),
    ("2", "text_encoder", "encoder.net.layers.1.1.norm.bias", r": 1 missing \(text_tower\.layers\.1\.mlp_norm\.bias"),
    ("2", "proj_mlp", "norm.weight", r": 1 missing \(shared_head\.norm\.weight\)"),
    ("2", "dyn_temp", "mlp.2.bias", r": 1 missing \(temperature\.mlp\.2\.bias\)"),
    ("3", "", "image_proj.1.weight", r": 1 missing \(image_head\.1\.weight\)"),
    ("3", "", "text_proj.3.bias", r": 1 missing \(text_head\.4\.bias\)"),
    ("3", "", "image_encoder.blocks.5.attn.qkv.bias", r"test_vit: .* 1 missing \(blocks\.5\.attn\.qkv\.bias\)"),
    ("4", "", "temperature", r": 1 missing \(temperature\.log_scale\)"),
    ("4", "", "vision_encoder.projection.layer_norm.bias", r": 1 missing \(image_head\.norm\.bias\)"),
    ("4", "", "text_encoder.projection.fc.weight", r": 1 missing \(text_head\.fc\.weight\)"),
    ("4", "", "vision_encoder.model.layernorm.bias", rf": 1 missing \({V}layernorm\.bias\)"),
    (
        "4",
        "",
        "text_encoder.model.encoder.layer.0.output.LayerNorm.bias",
        rf": 1 missing \({T}encoder\.layer\.0\.output",
    ),
    (
        "4",
        "",
        "vision_encoder.projection.projection.weight",
        r"has no 'vision_encoder\.projection\.projection\.weight'",
    ),
    ("4 resnet", "", "vision_encoder.model.bn1.bias", r"test_resnet: its weights do not fit: 1 missing \(bn1\.bias\)"),
    ("4 older", "", "text_encoder.projection.weight", r"left over|missing"),
    ("5", "", "logit_scale", r": 1 missing \(temperature\.log_scale\)"),
    ("5", "", "text_encoder.ln_post.weight", r": 1 missing \(text_tower\.final_norm\.weight\)"),
    ("5", "", "text_encoder.transformer.layers.1.norm2.bias", r": 1 missing \(text_tower\.layers\.1\.mlp_norm\.bias\)"),
    ("5", "", "text_encoder.positional_embedding", r"has no 'text_encoder\.positional_embedding', which"),
    ("5", "", "image_encoder.proj.weight", r"has no 'image_encoder\.proj\.weight', which a checkpoint of system 5 has"),
    ("5", "", "image_encoder.backbone.class_token", r"test_vit: its weights do not fit: 1 missing \(cls_token\)"),
]


@pytest.mark.parametrize(("name", "table", "tensor", "message"), MISSING, ids=[f"{m[0]}-{m[2]}" for m in MISSING])
def test_a_missing_tensor_is_named(name, table, tensor, message, make_example, changed):
    said = refused(changed, make_example(name), lambda state: state.pop(tensor), table)
    assert re.search(message, said)


@pytest.mark.parametrize("number", [3, 5])
def test_what_is_left_over_is_named_and_counted(number, plain_example, changed):
    strange = {f"strange.{i}.weight": torch.zeros(2) for i in range(number)}
    said = refused(changed, plain_example, lambda state: state.update(strange), "proj_mlp")
    prefix = "shared_head." if plain_example.system == 2 else ""
    named = ", ".join(f"{prefix}{name}" for name in list(strange)[:3]) + (", ..." if number > 3 else "")
    assert f": {number} left over ({named})" in said and "missing" not in said


LEFT_OVER = [
    ("1", "", "text.adapter.weight", rf": 1 left over \({T}adapter\.weight\)"),
    ("1", "", "vision.adapter.weight", r"1 left over \(adapter\.weight\)"),
    ("1", "", "v_proj.2.weight", r": 1 left over \(v_proj\.2\.weight\)"),
    ("2", "image_encoder", "model.layer5.weight", r"1 left over \(layer5\.weight\)"),
    (
        "2",
        "text_encoder",
        "encoder.net.layers.0.0.fn.to_v.weight",
        r"1 left over \(text_tower\.layers\.0\.attention\.to_v",
    ),
    ("3", "", "text_proj.4.weight", r": 1 left over \(text_proj\.4\.weight\)"),
    (
        "4",
        "",
        "text_encoder.projection.norm.weight",
        r"text_encoder\.projection\.norm\.weight stands where another|both",
    ),
    ("4", "", "text_encoder.model.adapter.weight", rf": 1 left over \({T}adapter\.weight\)"),
    ("4", "", "vision_encoder.model.adapter.weight", rf": 1 left over \({V}adapter\.weight\)"),
    ("5", "", "image_encoder.backbone.adapter", r": 1 left over \(image_encoder\.backbone\.adapter\)"),
]


@pytest.mark.parametrize(("name", "table", "tensor", "message"), LEFT_OVER, ids=[f"{m[0]}-{m[2]}" for m in LEFT_OVER])
def test_a_tensor_left_over_inside_a_part_is_named(name, table, tensor, message, make_example, changed):
    said = refused(changed, make_example(name), lambda state: state.update({tensor: torch.zeros(2)}), table)
    assert re.search(message, said)


SHAPES = [
    (
        "1",
        "",
        "t_proj.ln.weight",
        (3,),
        r": 1 of another shape \(text_head\.norm\.weight is \(3,\), expected \(16,\)\)",
    ),
    ("1", "", "vision.conv_stem.weight", (1,), r"1 of another shape \(conv_stem\.weight is \(1,\), expected \("),
    (
        "1",
        "",
        "text.encoder.layer.1.output.dense.bias",
        (9,),
        rf"1 of another shape \({T}encoder.layer.1.output.dense.b",
    ),
    ("1", "", "t_proj.dw.weight", (), r"is no checkpoint of system 1: "),
    ("1", "", "t_proj.dw.weight", (32, 1, 4), r"is no checkpoint of system 1: "),  # no middle
    ("1", "", "logit_scale", (2,), r": 1 of another shape \(temperature\.log_scale is \(2,\), expected \(\)\)"),
    ("1", "", "text.embeddings.word_embeddings.weight", (24,), r"is no checkpoint of system 1: "),
    (
        "2",
        "proj_mlp",
        "fc1.bias",
        (4,),
        r": 1 of another shape \(shared_head\.fc1\.bias is \(4,\), expected \(128,\)\)",
    ),
    (
        "2",
        "text_encoder",
        "pos_emb.weight",
        (12, 31),
        r": 1 of another shape \(text_tower\.position_embedding is \(12, 31\)",
    ),
    ("2", "text_encoder", "token_emb.weight", (7,), r"is no checkpoint of system 2: "),
    ("2", "text_encoder", "encoder.net.layers.0.0.fn.to_k.weight", (0, 32), r"is no checkpoint of system 2: "),
    (
        "3",
        "",
        "text_proj.0.weight",
        (24, 31),
        r": 1 of another shape \(text_head\.0\.weight is \(24, 31\), expected \(24, 32",
    ),
    (
        "4",
        "",
        "vision_encoder.model.embeddings.cls_token",
        (1, 1, 9),
        r": 1 of another shape \(image_tower\.model\.embedd",
    ),
    ("4", "", "vision_encoder.model.embeddings.position_embeddings", (5,), r"is no checkpoint of system 4: "),
    (
        "5",
        "",
        "text_encoder.transformer.layers.0.self_attn.in_proj_weight",
        (9, 9),
        r": 1 of another shape \(text_tower\.layers",
    ),
    ("5", "", "text_encoder.positional_embedding", (16, 128), r"is no checkpoint of system 5: "),
    (
        "5",
        "",
        "text_encoder.positional_embedding",
        (2, 16, 128),
        r": 1 of another shape \(text_tower\.position_embedding is",
    ),
]


@pytest.mark.parametrize(
    ("name", "table", "tensor", "shape", "message"), SHAPES, ids=[f"{m[0]}-{m[2]}-{m[3]}" for m in SHAPES]
)
def test_a_tensor_of_another_shape_is_named(name, table, tensor, shape, message, make_example, changed):
    said = refused(changed, make_example(name), lambda state: state.update({tensor: torch.zeros(shape)}), table)
    assert re.search(message, said)


@pytest.mark.parametrize("value", ["high", 3, None, [1.0]])
def test_what_stands_for_a_tensor_and_is_none_is_named(value, plain_example, changed):
    said = refused(changed, plain_example, lambda state: state.update({"strange": value}), "dyn_temp")
    assert f"is no checkpoint of system {plain_example.system}: a {type(value).__name__} stands at 'strange'" in said


@pytest.mark.parametrize("system", [1, 2, 3, 5])
@pytest.mark.parametrize("value", [torch.zeros(2), 7, "words", [torch.zeros(2)], {1: torch.zeros(2)}])
def test_a_table_that_is_none_is_refused(system, value, make_example, tmp_path):
    example = make_example(str(system))
    torch.save({**example.content(), TABLE[system]: value}, tmp_path / "changed.pt")
    said = refused(import_checkpoint, tmp_path / "changed.pt", system, Options(**example.options), print)
    assert f"is no checkpoint of system {system}: a " in said


@pytest.mark.parametrize("value", [None, "0.1", {"hidden_mult": 2, "kernel": 3}, {"dropout": 1.5}, {"dropout": "much"}])
def test_a_head_that_is_not_described_is_refused(value, make_example, tmp_path):
    example = make_example("1")
    torch.save({**example.content(), "convffn": value}, tmp_path / "changed.pt")
    said = refused(import_checkpoint, tmp_path / "changed.pt", 1, Options(**example.options), print)
    assert "is no checkpoint of system 1" in said or "has no 'dropout'" in said


@pytest.mark.parametrize("theirs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5])
def test_a_file_of_another_system_is_refused(theirs, asked, make_example, opened):
    if theirs == asked:
        assert opened(make_example(str(asked))).config
        return
    options = make_example(str(asked)).options
    said = refused(import_checkpoint, make_example(str(theirs)).file, asked, Options(**options), print)
    assert f"system {asked}" in said and "Is it of another system?" in said


@pytest.mark.parametrize("number", [0, 6, -1, 42])
def test_there_are_five_systems(number, make_example):
    said = refused(import_any, str(make_example("1").file), number, Options())
    assert f"there is no system {number}" in said and "1, 2, 3, 4, 5" in said


def test_what_else_a_file_holds_at_its_top_does_not_matter(make_example, tmp_path, opened, assert_same_features):
    for name in ("1", "2", "3", "5"):
        example = make_example(name)
        torch.save({**example.content(), "scaler": {"scale": 1.0}, "best": 0.5, "ema": None}, tmp_path / "more.pt")
        assert_same_features(opened(example, tmp_path / "more.pt"), example)


# Files


@pytest.mark.parametrize("system", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(system, share, make_example, tmp_path):
    whole = make_example(str(system)).file.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    said = refused(import_any, str(tmp_path / "cut.pt"), system, Options())
    assert "cut.pt: cannot be opened as a checkpoint" in said


@pytest.mark.parametrize("what", ["text", "folder", "nothing", "list", "tensor", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(what, tmp_path):
    file = tmp_path / "x.pt"
    if what == "text":
        file.write_text("student_state: none\n" * 9)
    elif what == "folder":
        file.mkdir()
    elif what == "safetensors":
        file.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    elif what != "nothing":
        torch.save([torch.zeros(2)] if what == "list" else torch.zeros(2), file)
    said = refused(import_any, str(file), 1, Options())
    message = {
        "folder": "is a folder, but a checkpoint is a file",
        "nothing": "no such file",
        "list": "holds a list",
        "tensor": "holds a Tensor",
    }
    assert "x.pt: " + message.get(what, "cannot be opened as a checkpoint") in said


@pytest.mark.parametrize("system", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("zip_file", [True, False])
def test_a_pickle_of_code_never_runs(system, zip_file, make_example, tmp_path, code_that_runs):
    example = make_example(str(system))
    torch.save(
        {"first": code_that_runs(tmp_path / "ran"), **example.content()},
        tmp_path / "code.pt",
        _use_new_zipfile_serialization=zip_file,
    )
    said = refused(import_any, str(tmp_path / "code.pt"), system, Options(**example.options))
    assert not (tmp_path / "ran").exists()
    assert "code.pt: cannot be opened as a checkpoint: posix.mkdir is inside" in said
    assert "weights_only" not in said  # torch's own advice is to let it run
    torch.load(tmp_path / "code.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # or the test would show nothing


def test_files_of_torch_s_older_format_are_read(make_example, tmp_path, opened, assert_same_features):
    example = make_example("3")
    torch.save(example.content(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_features(opened(example, tmp_path / "old.pt"), example)


def test_half_precision_becomes_single_precision(plain_example, changed):
    def halve(state):
        state.update({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()})

    model = changed(plain_example, halve)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_a_source_of_nobody_known_asks_whose_it_is(make_example, tmp_path):
    said = refused(import_any, str(make_example("1").file), None, Options())
    assert "whose is not known" in said and "--system" in said
    assert "no such file or folder" in refused(import_any, str(tmp_path / "nothing"), None, Options())


# Towers that tensors do not tell


def test_an_image_tower_of_another_kind_is_told_with_what_differs(make_example, opened):
    said = refused(opened, make_example("1"), image_tower="")
    names = ("tiny_vit_11m_224", "vit_small_patch16_224", "efficientnet_b0")
    assert all(f"  {name}: its weights do not fit: " in said for name in names) and "--image-tower" in said
    said = refused(opened, make_example("3"), image_tower="resnet10t")
    assert re.search(r"resnet10t: its weights do not fit: \d\d missing \(.*, \.\.\.\); \d\d left over \(", said)
    assert "there is no timm model 'test_vot'" in refused(opened, make_example("3"), image_tower="test_vot")


@pytest.mark.parametrize(("name", "option"), [("1", "text"), ("3", "text"), ("4", "text")])
def test_an_unusual_width_asks_for_the_configuration(name, option, make_example, opened):
    said = refused(opened, make_example(name), **{f"{option}_config": ""})
    assert "have 32 features" in said and f"--{option}-config" in said


def test_an_image_width_without_heads_of_64_asks_for_the_configuration(reference, make_example, changed):
    narrow = reference.vit(width=32).state_dict()
    state = {f"vision_encoder.model.{name}": tensor for name, tensor in narrow.items()}
    said = refused(changed, make_example("4"), lambda tensors: tensors.update(state), image_config="")
    assert "have 32 features" in said and "--image-config" in said


@pytest.mark.parametrize("option", ["text_config", "image_config"])
@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "nobody"}', None])
def test_a_configuration_that_cannot_be_read_is_told(option, text, make_example, opened, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    said = refused(opened, make_example("4"), **{option: str(tmp_path / "config.json")})
    assert f"{option.split('_')[0]} tower: {tmp_path / 'config.json'}: its configuration could not be loaded" in said


def test_a_configuration_may_be_a_folder(make_example, opened, assert_same_features, tmp_path):
    example = make_example("3")
    transformers.AutoConfig.from_pretrained(example.options["text_config"]).save_pretrained(tmp_path)
    assert_same_features(opened(example, text_config=str(tmp_path)), example)


def test_heads_that_do_not_divide_the_width_are_refused(make_example, opened, tmp_path):
    example = make_example("3")
    config = json.loads(Path(example.options["text_config"]).read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    assert "cannot build 'bert'" in refused(opened, example, text_config=str(tmp_path / "config.json"))


# What a checkpoint does not say


@pytest.mark.parametrize(
    ("name", "length", "like"),
    [
        ("1", 32, "tinyvit-minilm-convffn"),
        ("2", 12, "resnet34-linformer-sam"),
        ("3", 32, "vittiny-minilm"),
        ("4", 40, None),  # no more positions than that
        ("4 resnet", 40, "resnet101-roberta-setup2"),
        ("5", 16, "vittiny-minilm"),
    ],
)
def test_the_rest_is_the_system_s_own(name, length, like, make_example, opened):
    model = opened(make_example(name))
    assert model.config.text.context_length == length
    if like is not None:
        assert model.config.preprocess == recipe(like).model.preprocess
    else:
        assert model.config.preprocess.image_size == 32


@pytest.mark.parametrize("system", [1, 2, 3, 4])
def test_a_tokenizer_that_cannot_be_had_is_asked_for(system, make_example, opened):
    said = refused(opened, make_example(str(system)), tokenizer="")  # no test uses a network
    if system in (1, 3):  # whose last source is a Python package that is there, but of another vocabulary
        assert "the tokenizer knows 30,522 tokens and the text tower 24" in said and "--tokenizer" in said
    else:
        assert "tokenizer: none of its sources could be loaded" in said and "--tokenizer" in said


def test_tokenizer_sources_that_failed_are_told(make_example):
    heard = []
    example = make_example("1")
    options = Options(**{**example.options, "tokenizer": ""})
    with pytest.raises(ModelError):
        import_checkpoint(example.file, 1, options, heard.append)
    assert any("microsoft/MiniLM-L6-H384-uncased failed" in line for line in heard)


@pytest.mark.parametrize("system", [1, 2, 3, 4, 5])
def test_a_tokenizer_that_cannot_be_the_model_s_is_refused(system, make_example, opened, write_tokenizer, tmp_path):
    example = make_example(str(system))
    write_tokenizer("bert" if system == 2 else "gpt", tmp_path / "tokenizer.json")
    said = refused(opened, example, tokenizer=str(tmp_path / "tokenizer.json"))
    assert "do not belong together" in said and "--tokenizer" in said
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be opened as a tokenizer" in refused(opened, example, tokenizer=str(tmp_path / "tokenizer.json"))


# The words of system 5


def test_the_words_have_the_numbers_of_the_description(make_example, opened, reference):
    example = make_example("5")
    captions = [entry["caption"] for entry in json.loads(Path(example.options["vocabulary"]).read_text())]
    model, vocabulary = opened(example), reference.vocabulary_of(captions)
    assert model.tokenizer.vocab_size == len(vocabulary)
    for text in [*captions, "A boat, ZOO: zoo", "", "éclair Éclair", "  two\tdogs\n"]:
        ids, mask = model.tokenizer([text])
        assert ids[0].tolist() == reference.ids_of(text, vocabulary) and mask.all()
    ids, mask = model.tokenizer(["boat", "two dogs run"])
    assert ids[0].tolist()[3:] == [vocabulary["<pad>"]] * 2 and mask[0].tolist() == [1, 1, 1, 0, 0]


def with_rows(state, rows):
    state["text_encoder.token_embedding.weight"] = torch.randn(rows, 128)


def test_a_missing_vocabulary_is_asked_for(make_example, opened):
    said = refused(opened, make_example("5"), vocabulary="")
    assert "does not hold its vocabulary" in said and "--vocabulary" in said


@pytest.mark.parametrize("rows", [1, 4, 10, 25, 27, 1000])
def test_words_that_do_not_fill_the_embedding_are_refused(rows, make_example, changed):
    said = refused(changed, make_example("5"), lambda state: with_rows(state, rows))
    assert "has 22 different words" in said and f"vocabulary has {rows:,} entries" in said


def test_words_may_have_had_to_occur_more_than_once(make_example, changed, tmp_path):
    captions = ["b a c", "a B d", "A e b", "a f"]  # a 4, b 3, all others once
    (tmp_path / "words.json").write_text(json.dumps([{"image": "x", "caption": text} for text in captions]))
    numbers = {}
    for rows in (6, 5, 10):
        model = changed(
            make_example("5"), lambda state, rows=rows: with_rows(state, rows), vocabulary=str(tmp_path / "words.json")
        )
        numbers[rows] = model.tokenizer(["a b f"])[0][0].tolist()
    assert numbers == {6: [1, 4, 5, 3, 2], 5: [1, 4, 3, 3, 2], 10: [1, 4, 5, 9, 2]}


@pytest.mark.parametrize("text", ["{", '[{"image": "x"}]', '[{"caption": 3}]', '["words"]', "[3]"])
def test_captions_that_are_none_are_refused(text, make_example, opened, tmp_path):
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(DataError, match=r"captions\.json"):
        opened(make_example("5"), vocabulary=str(tmp_path / "captions.json"))
    with pytest.raises(DataError):
        opened(make_example("5"), vocabulary=str(tmp_path / "nothing.json"))


def test_the_words_may_come_from_any_data_set(make_example, changed, data_set):
    words = {"number", "picture", *map(str, range(12))}
    for entry in json.loads((data_set / "dataset.json").read_text())["images"]:
        words |= {word for sentence in entry["sentences"] for word in sentence["raw"].lower().split()}
    model = changed(
        make_example("5"),
        lambda state: with_rows(state, len(words) + 4),
        vocabulary=str(data_set / "dataset.json"),
    )
    assert model.tokenizer(["picture 7"])[0][0, 1:-1].tolist() == [
        4 + sorted(words).index(word) for word in ("picture", "7")
    ]
