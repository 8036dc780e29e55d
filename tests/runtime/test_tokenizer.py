"""Texts to ids and masks: padding, cutting, empty texts, strange characters, threads, damaged files."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from cliplet.errors import ModelError
from cliplet.models.tokenizers import SPECIAL, huggingface_tokenizer, train_bpe
from cliplet.runtime.tokenizer import Tokenizer

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "boat", "dog"]
PAD, CLS, SEP, UNK, A, RED, BOAT, DOG = range(8)


def words(special=True, vocabulary=WORDS):
    """A backend whose ids can be told by hand: one a word."""
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return backend


@pytest.fixture(scope="module")
def bpe():
    captions = ["A red boat on the lake", "two dogs run in the deep snow", "a red dog", "the boat in the snow"]
    return train_bpe(captions * 3, 320, 16)


# Shape, padding, cutting


def test_rows_are_padded_to_the_longest():
    ids, mask = Tokenizer(words(), 16)(["a red boat", "dog", "a zebra"])
    np.testing.assert_array_equal(ids, [[CLS, A, RED, BOAT, SEP], [CLS, DOG, SEP, PAD, PAD], [CLS, A, UNK, SEP, PAD]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    assert ids.dtype == mask.dtype == np.int64


def test_a_row_does_not_depend_on_its_neighbours(bpe):
    texts = ["a red boat", "", "two dogs run in the deep snow", "🐕"]
    ids, mask = bpe(texts)
    for row, text in enumerate(texts):
        alone, alone_mask = bpe([text])
        length = alone.shape[1]
        np.testing.assert_array_equal(ids[row, :length], alone[0])
        np.testing.assert_array_equal(mask[row, :length], alone_mask[0])
        assert not mask[row, length:].any() and (ids[row, length:] == bpe.pad_id).all()


@pytest.mark.parametrize("context_length", [3, 4, 5, 9])
def test_a_cut_text_keeps_its_closing_token(context_length):
    ids, mask = Tokenizer(words(), context_length)(["a red boat a red boat a red boat", "dog"])
    assert ids.shape == (2, context_length) and mask[0].all()
    body = [A, RED, BOAT] * 3
    assert ids[0].tolist() == [CLS, *body[: context_length - 2], SEP]
    assert ids[1, :3].tolist() == [CLS, DOG, SEP]


def test_a_text_that_just_fits_is_whole():
    ids, _ = Tokenizer(words(), 5)(["a red boat"])
    assert ids[0].tolist() == [CLS, A, RED, BOAT, SEP]


def test_without_special_tokens():
    ids, mask = Tokenizer(words(special=False), 2)(["a red boat", "dog"])
    np.testing.assert_array_equal(ids, [[A, RED], [DOG, PAD]])
    np.testing.assert_array_equal(mask, [[1, 1], [1, 0]])


@pytest.mark.parametrize("context_length", [0, 1, 2])
def test_a_context_that_holds_special_tokens_alone_is_refused(context_length):
    with pytest.raises(ModelError, match="leaves no room beside 2 special tokens"):
        Tokenizer(words(), context_length)


def test_context_length_holds_whatever_the_text(bpe):
    texts = ["a " * 5000, "x" * 50_000, "🐕" * 3000, "\u0301" * 2000, "\n\n\n" * 500]
    ids, mask = bpe(texts)
    assert ids.shape == (5, 16) and mask.shape == (5, 16)
    assert (ids[:4, -1] == SPECIAL.index("<eos>")).all()


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
@pytest.mark.parametrize("special", [True, False])
def test_an_empty_text_attends_to_something(text, special):
    ids, mask = Tokenizer(words(special), 8)([text])
    assert mask[0].sum() >= 1 and ids.shape == mask.shape
    _, mask = Tokenizer(words(special), 8)([text, "a red boat"])
    assert mask[0].sum() >= 1 and mask[1].sum() == (5 if special else 3)


def test_an_empty_text_of_bpe(bpe):
    ids, mask = bpe([""])
    assert ids.tolist() == [[SPECIAL.index("<bos>"), SPECIAL.index("<eos>")]] and mask.tolist() == [[1, 1]]


def test_no_texts(bpe):
    ids, mask = bpe([])
    assert ids.shape == mask.shape == (0, 1)
    assert bpe.encode([]) == ([], 0)


def test_cut_texts_are_counted():
    tokenizer = Tokenizer(words(), 5)
    texts = ["a red boat", "a red boat a", "dog", "", "a red boat a red boat " * 100]
    encoded, cut = tokenizer.encode(texts)
    assert cut == 2 and list(map(len, encoded)) == [5, 5, 3, 2, 5]
    assert tokenizer.encode(texts[:1])[1] == 0


def test_padded_is_what_a_call_gives():
    tokenizer = Tokenizer(words(), 5)
    texts = ["a red boat", "", "dog"]
    for ours, whole in zip(tokenizer.padded(tokenizer.encode(texts)[0]), tokenizer(texts), strict=True):
        np.testing.assert_array_equal(ours, whole)


# What the file says of padding and truncation is overruled


def test_the_files_own_settings_are_overruled():
    backend = words()
    backend.enable_padding(length=12, direction="left", pad_id=DOG, pad_token="dog")
    backend.enable_truncation(3, direction="left")
    before = backend.to_str()
    ids, mask = Tokenizer(backend, 6)(["a red boat dog a", "dog"])
    np.testing.assert_array_equal(ids, [[CLS, A, RED, BOAT, DOG, SEP], [CLS, DOG, SEP, PAD, PAD, PAD]])
    np.testing.assert_array_equal(mask, [[1] * 6, [1, 1, 1, 0, 0, 0]])
    assert backend.to_str() == before, "the caller's backend was changed"


@pytest.mark.parametrize(("token", "pad_id"), [("[PAD]", 0), ("<pad>", 0), ("<|endoftext|>", 0), ("nothing", 0)])
def test_pad_id_is_the_tokenizers_own(token, pad_id):
    assert Tokenizer(words(False, [token, *WORDS[1:]]), 8).pad_id == pad_id
    assert Tokenizer(words(False, [*WORDS[1:], token]), 8).pad_id == (0 if token == "nothing" else len(WORDS) - 1)


def test_vocab_size_counts_added_tokens():
    backend = words()
    assert Tokenizer(backend, 8).vocab_size == len(WORDS)
    backend.add_tokens(["zebra"])
    tokenizer = Tokenizer(backend, 8)
    assert tokenizer.vocab_size == len(WORDS) + 1
    assert [size for size in range(-1, 20) if tokenizer.ends_at(size)] == [len(WORDS) + 1]
    assert tokenizer(["zebra"])[0].max() == len(WORDS)


def test_a_tokenizer_that_is_given_keeps_its_own_settings(tmp_path):
    backend = words()
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (Tokenizer(backend, 8), Tokenizer.from_file(tmp_path / "tokenizer.json", 8)):
        assert tokenizer(["a red boat dog"])[0].shape[1] > 3
    assert backend.truncation["max_length"] == 3 and backend.padding["length"] == 9


# Training


def test_training_is_deterministic():
    captions = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("boat", "dog", "tree")] * 2
    files = {train_bpe(iter(captions), 400, 16).to_json() for _ in range(4)}
    assert len(files) == 1


def test_training_lower_cases_and_composes(bpe):
    np.testing.assert_array_equal(bpe(["A RED Boat"])[0], bpe(["a red boat"])[0])
    np.testing.assert_array_equal(bpe(["cafe\u0301"])[0], bpe(["caf\u00e9"])[0])


@pytest.mark.parametrize(
    "text", ["a red boat", "café", "犬が走る", "🐕‍🦺 dog", "Ω≈ç√", "\u202eright to left", "a\u0000b", "x" * 9]
)
def test_every_text_comes_back(text):
    """Byte level: nothing is unknown, so decoding gives the normalised text again."""
    tokenizer = train_bpe(["a red boat", "a red dog"], 300, 200)
    ids, mask = tokenizer([text])
    assert mask.all() and SPECIAL.index("<unk>") not in ids
    assert ids.max() < tokenizer.vocab_size
    assert tokenizers.Tokenizer.from_str(tokenizer.to_json()).decode(ids[0].tolist()).strip() == text.lower()


def test_frequent_words_are_single_tokens(bpe):
    assert bpe(["the boat"])[1].sum() == 4  # bos, the, boat, eos


def test_special_tokens_stand_first(bpe):
    entries = json.loads(bpe.to_json())["model"]["vocab"]
    assert [entries[token] for token in SPECIAL] == [0, 1, 2, 3]
    assert bpe.pad_id == 0 and bpe.vocab_size <= 320


def test_half_a_character_is_no_reason_to_stop(bpe):
    """JSON's escapes allow half a surrogate pair, so a query can hold one; it is read as a question mark."""
    texts = [json.loads('"a \\ud83d dog"'), "a ? dog"]
    ids, mask = bpe(texts)
    np.testing.assert_array_equal(ids[0], ids[1])
    assert mask.all()
    assert bpe.encode(texts)[1] == 0


# Threads and files


def test_many_threads_get_the_same(bpe):
    random = np.random.default_rng(0)
    lists = [[" ".join(random.choice(WORDS[4:], random.integers(0, 30))) for _ in range(8)] for _ in range(40)]
    expected = [bpe(texts) for texts in lists]
    encoded = [bpe.encode(texts) for texts in lists]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for (ids, mask), (ids0, mask0) in zip(pool.map(bpe, lists), expected, strict=True):
                np.testing.assert_array_equal(ids, ids0)
                np.testing.assert_array_equal(mask, mask0)
            assert list(pool.map(bpe.encode, lists)) == encoded


def test_saved_and_opened_again(bpe, tmp_path):
    texts = ["a red boat", "🐕 犬", "", "a " * 40]
    bpe.save(tmp_path / "tokenizer.json")
    for again in (
        Tokenizer.from_file(tmp_path / "tokenizer.json", 16),
        Tokenizer.from_json(bpe.to_json(), 16),
        huggingface_tokenizer(str(tmp_path), 16),
    ):
        for ours, theirs in zip(bpe(texts), again(texts), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert (again.pad_id, again.vocab_size) == (bpe.pad_id, bpe.vocab_size)
    assert Tokenizer.from_file(tmp_path / "tokenizer.json", 7)(texts)[0].shape == (4, 7)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"{}", b"[]", b"null", b'{"model": {"type": "Nothing"}}', b"\xff\xfe\x00", b"\0" * 100],
)
def test_garbage_is_a_model_error(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be opened as a tokenizer"):
        Tokenizer.from_file(file, 16)
    with pytest.raises(ModelError, match="cannot be opened as a tokenizer"):
        Tokenizer.from_json(content.decode("utf-8", "replace"), 16)


def test_a_cut_file_and_a_missing_one_are_a_model_error(bpe, tmp_path):
    text = bpe.to_json()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    for name in ("half.json", "gone.json"):
        with pytest.raises(ModelError, match=name):
            Tokenizer.from_file(tmp_path / name, 16)
    with pytest.raises(ModelError):
        Tokenizer.from_file(tmp_path, 16)
