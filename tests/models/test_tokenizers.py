"""Tokenizers: existing ones from wherever they are, and those trained on the captions, in any script."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from cliplet.config import TextTowerConfig, TokenizerConfig
from cliplet.errors import ModelError
from cliplet.models import DualEncoder
from cliplet.models.tokenizers import SPECIAL, huggingface_tokenizer, make_tokenizer, words_tokenizer

PAD, BOS, EOS, UNK = range(4)


def made(captions=(), context_length=16, say=print, **settings):
    return make_tokenizer(TokenizerConfig(**settings), captions, context_length, say)


def entries(tokenizer):
    return tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab(with_added_tokens=True)


def ids(tokenizer, text):
    rows, mask = tokenizer([text])
    assert mask.all()
    return rows[0].tolist()


# Words


def test_words_by_hand():
    tokenizer = made(["a Dog and a boat", "the boat, and the dog"], kind="words", min_count=1)
    words = ["a", "and", "boat", "boat,", "dog", "the"]  # nothing but spaces parts them, as the alphabet has them
    assert entries(tokenizer) == {token: number for number, token in enumerate([*SPECIAL, *words])}
    assert tokenizer.vocab_size == 10 and tokenizer.pad_id == PAD
    assert ids(tokenizer, "A boat, a dog") == [BOS, 4, 7, 4, 8, EOS]
    assert ids(tokenizer, "  the\tzebra \n dog. ") == [BOS, 9, UNK, UNK, EOS]
    assert ids(tokenizer, "") == [BOS, EOS]
    rows, mask = tokenizer(["dog", "a boat"])
    np.testing.assert_array_equal(rows, [[BOS, 8, EOS, PAD], [BOS, 4, 6, EOS]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 1, 1, 1]])


def test_words_that_are_too_rare_are_left_out():
    captions = ["dog dog dog", "boat Boat", "lake"]
    for count, kept in ((1, {"dog", "boat", "lake"}), (2, {"dog", "boat"}), (3, {"dog"}), (4, set())):
        assert entries(made(captions, kind="words", min_count=count)).keys() - set(SPECIAL) == kept


def test_of_too_many_words_the_most_frequent_stay():
    captions = [" ".join(f"w{number:03}" for number in range(start, 100)) for start in range(100)]  # w099: 100 times
    tokenizer = made(captions, kind="words", vocab_size=64)
    assert tokenizer.vocab_size == 64
    assert entries(tokenizer).keys() - set(SPECIAL) == {f"w{number:03}" for number in range(40, 100)}
    assert entries(tokenizer)["w040"] == 4 and entries(tokenizer)["w099"] == 63


@pytest.mark.parametrize("context_length", [4, 5, 6])
def test_a_cut_text_of_words_keeps_its_end(context_length):
    tokenizer = made(["a b c d"], context_length, kind="words", min_count=1)
    assert ids(tokenizer, "a b c d a b c d") == [BOS, *[4, 5, 6, 7][: context_length - 2], EOS]
    assert tokenizer.encode(["a b c d a b c d", "a b"])[1] == 1


def test_words_are_the_same_whatever_the_order_of_the_captions():
    captions = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("boat", "dog")]
    files = {made(order, kind="words").to_json() for order in (captions, captions[::-1], captions[1:] + captions[:1])}
    assert len(files) == 1


@pytest.mark.parametrize(
    "caption", ["ΟΔΟΣ ΣΑΣ", "İSTANBUL ÇAĞ", "ÉTÉ ẞ", "ПРИВЕТ", "犬が 走る", "a\u00a0b\u2003c", "🐕 ﬁ"]
)
def test_no_word_of_a_caption_is_unknown(caption):
    """Python lower-cases Greek with an eye to the end of a word; the tokenizer does not."""
    tokenizer = made([caption], kind="words", min_count=1)
    row = ids(tokenizer, caption)
    assert UNK not in row and len(row) == 2 + len(caption.split())


def test_special_tokens_in_captions_are_no_words():
    tokenizer = made(["a <pad> <eos> dog"], kind="words", min_count=1)
    assert entries(tokenizer) == {**{token: n for n, token in enumerate(SPECIAL)}, "a": 4, "dog": 5}
    assert words_tokenizer(["b", "<unk>", "a", "b"], 8).vocab_size == 6


def test_words_of_no_captions():
    tokenizer = made([], kind="words")
    assert tokenizer.vocab_size == 4 and ids(tokenizer, "a dog") == [BOS, UNK, UNK, EOS]


# Byte-level BPE


CAPTIONS = ["A Red Boat", "the red boat", "two DOGS and a boat", "the Dogs"] * 3


@pytest.mark.parametrize("kind", ["auto", "bpe"])
def test_bpe_without_capitals(kind):
    tokenizer = made(CAPTIONS, kind=kind, vocab_size=400)
    assert ids(tokenizer, "THE RED BOAT") == ids(tokenizer, "the red boat")
    assert len(ids(tokenizer, "the red boat")) == 5
    assert not any(letter in token for token in entries(tokenizer) for letter in ("Re", "DO", "Bo"))


def test_bpe_with_capitals():
    tokenizer = made(CAPTIONS, kind="bpe", vocab_size=400, lowercase=False)
    rows = [ids(tokenizer, text) for text in ("Red Boat", "red boat", "RED BOAT")]
    assert len({tuple(row) for row in rows}) == 3
    assert len(rows[0]) == len(rows[1]) == 4 < len(rows[2])  # the last was never seen
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert [backend.decode(row).strip() for row in rows] == ["Red Boat", "red boat", "RED BOAT"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_bpe_knows_every_text_and_keeps_its_special_tokens(lowercase):
    tokenizer = made(CAPTIONS, 100, kind="bpe", vocab_size=300, lowercase=lowercase)
    known = entries(tokenizer)
    assert [known[token] for token in SPECIAL] == [PAD, BOS, EOS, UNK] and tokenizer.vocab_size <= 300
    for text in ("犬が走る", "🐕‍🦺", "Ω≈ç√", "xyz"):
        row = ids(tokenizer, text)
        assert UNK not in row and row[0] == BOS and row[-1] == EOS
    assert ids(made(CAPTIONS, 5, kind="bpe", lowercase=lowercase), "xyz " * 9)[-1] == EOS


def test_bpe_leaves_out_what_is_too_rare():
    captions = ["zebra zebra zebra", "boat boat"]
    sizes = [len(ids(made(captions, kind="bpe", vocab_size=400, min_count=count), "zebra")) for count in (3, 4)]
    assert sizes == [3, 2 + len(" zebra")]


# Existing ones


@pytest.fixture
def existing(tmp_path):
    """A folder with a tokenizer.json whose ids can be told by hand."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "boat"]
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    folder = tmp_path / "existing"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def package(existing, monkeypatch):
    """The same in an installed Python package."""
    package = existing.parent / "site" / "tiny_tokenizer_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tokenizer.json").write_bytes((existing / "tokenizer.json").read_bytes())
    monkeypatch.syspath_prepend(str(package.parent))
    return "pkg:tiny_tokenizer_package"


def test_a_file_a_folder_and_a_package_hold_the_same_tokenizer(existing, package):
    for source in (existing, existing / "tokenizer.json", package, f"{package}/tokenizer.json"):
        tokenizer = made(kind="huggingface", sources=(str(source),), context_length=5)
        assert ids(tokenizer, "a red zebra boat") == [1, 4, 5, 3, 2]
        assert tokenizer.pad_id == 0 and tokenizer.vocab_size == 7 and tokenizer.context_length == 5


def test_a_folder_without_tokenizer_json_is_opened_by_transformers(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = huggingface_tokenizer(str(tmp_path), 16)
    assert ids(tokenizer, "A dogs cat") == [2, 5, 6, 7, 1, 3] and tokenizer.vocab_size == 8


def test_sources_are_tried_in_order(existing, tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{}")
    sources = ("no-such-org/no-such-model", "pkg:tokenizers/none", str(damaged), str(existing), "never-asked")
    said = []
    tokenizer = made(kind="huggingface", sources=sources, say=said.append)
    assert ids(tokenizer, "a red boat") == [1, 4, 5, 6, 2]
    assert [line.split(" failed")[0] for line in said[:-1]] == [f"tokenizer: {source}" for source in sources[:3]]
    assert said[-1] == f"tokenizer: taken from {sources[3]}"


def test_when_none_works_all_are_listed(tmp_path):
    from transformers import BertConfig, ByT5Tokenizer

    (tmp_path / "empty").mkdir()
    BertConfig().save_pretrained(tmp_path / "bare")
    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    (tmp_path / "damaged.json").write_text("{}")
    reasons = {
        "no-such-org/no-such-model": "its tokenizer could not be loaded",
        "pkg:no_such_package_at_all/x": "no_such_package_at_all is not installed",
        "pkg:tokenizers/none": "none: no such file or folder",
        str(tmp_path / "nothing" / "here"): "its tokenizer could not be loaded",
        str(tmp_path / "empty"): "its tokenizer could not be loaded",
        str(tmp_path / "bare"): "holds no tokenizer",  # transformers makes one of special tokens alone
        str(tmp_path / "bytes"): "its tokenizer has no fast form",
        str(tmp_path / "damaged.json"): "cannot be opened as a tokenizer",
    }
    with pytest.raises(ModelError) as caught:
        made(kind="huggingface", sources=tuple(reasons), say=lambda line: None)
    lines = caught.value.message.splitlines()
    assert lines[0] == "tokenizer: none of its sources could be loaded"
    for source, reason in reasons.items():
        assert any(line.startswith(f"  {source}: ") and reason in line for line in lines), (source, reason)
    assert "Without a network" in caught.value.hint


def test_no_source_at_all_is_told():
    with pytest.raises(ModelError, match="tokenizer: no source is named"):
        made(kind="huggingface")


def test_a_context_that_holds_special_tokens_alone_is_refused(existing):
    with pytest.raises(ModelError, match="leaves no room beside 2 special tokens"):
        made(kind="huggingface", sources=(str(existing),), context_length=2)
    for kind in ("words", "bpe"):
        with pytest.raises(ModelError, match="leaves no room"):
            made(["a dog"], kind=kind, context_length=2)


# All of them end as tokenizer.json


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "words", "min_count": 1},
        {"kind": "bpe", "vocab_size": 300},
        {"kind": "bpe", "vocab_size": 300, "lowercase": False},
        {"kind": "huggingface"},
    ],
    ids=["words", "bpe", "bpe with capitals", "huggingface"],
)
def test_saved_in_the_model_folder_and_the_same_again(settings, tiny_config, captions, existing, tmp_path):
    if settings["kind"] == "huggingface":
        settings = {**settings, "sources": (str(existing),)}
    text = TextTowerConfig(width=16, layers=1, heads=2, context_length=12, tokenizer=TokenizerConfig(**settings))
    model = DualEncoder.build(tiny_config.model_copy(update={"text": text}), captions)
    model.save_pretrained(tmp_path / "model")
    for file in existing.iterdir():  # nothing but the folder is needed
        file.unlink()
    again = DualEncoder.from_pretrained(tmp_path / "model").tokenizer
    texts = [*captions, "A RED Boat", "zebra 犬 🐕", "", "the lake " * 30]
    for before, after in zip(model.tokenizer(texts), again(texts), strict=True):
        np.testing.assert_array_equal(before, after)
    assert again.to_json() == model.tokenizer.to_json()
    assert (again.vocab_size, again.pad_id, again.context_length) == (model.tokenizer.vocab_size, 0, 12)
    file = tmp_path / "model" / "tokenizer.json"
    known = tokenizers.Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)  # plain Hugging Face
    assert known == entries(model.tokenizer) and json.loads(file.read_text(encoding="utf-8"))["model"]
