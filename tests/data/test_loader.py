"""Batches in which each picture says which it is by its colour, and each caption by its words."""

import re
import threading
from collections import Counter

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from cliplet.config import AugmentConfig, DataConfig
from cliplet.data.buffers import Buffers
from cliplet.data.loader import TrainLoader, default_workers, drawn_without_repeat
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError
from cliplet.models.tokenizers import train_bpe

COUNT, BATCH, SIZE = 23, 4, 16


def colour(number):
    return (number * 10 + 5, 250 - number * 10, (number * 70) % 256)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """23 pictures, picture n in its own colour and with 1 + n % 4 captions that name it."""
    folder = tmp_path_factory.mktemp("pictures")
    result = []
    for number in range(COUNT):
        file = folder / f"{number}.png"
        Image.new("RGB", (20 + number, 40 - number), colour(number)).save(file)
        captions = tuple(f"picture {number} caption {k}" + " more" * k for k in range(1 + number % 4))
        result.append(ImageText(str(file), captions))
    return result


@pytest.fixture(scope="module")
def tokenizer(records):
    return train_bpe([caption for record in records for caption in record.captions], 300, 32)


@pytest.fixture
def make(records, tokenizer):
    def make(records=records, batch=BATCH, workers=2, seed=0, captions=2, quarantine=None, augment=None, **ranks):
        return TrainLoader(
            records,
            tokenizer,
            batch_size=batch,
            image_size=SIZE,
            data=DataConfig(captions_per_image=captions, workers=workers),
            augment=augment or AugmentConfig(),
            seed=seed,
            quarantine=quarantine if quarantine is not None else Quarantine(),
            **ranks,
        )

    return make


@pytest.fixture
def read(tokenizer):
    """What a batch says: the number of each picture, and (picture, caption) of each caption; checks its form."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    known = {colour(number): number for number in range(COUNT)}

    def read(batch):
        pixels, ids, mask, owners = (
            batch.pixels_B3HW,
            batch.input_ids_CL,
            batch.attention_mask_CL,
            batch.caption_image_C,
        )
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, SIZE, SIZE)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert ids.dtype == mask.dtype == owners.dtype == torch.int64
        assert ids.shape == mask.shape and len(owners) == len(ids)
        assert mask.sum(1).max() == ids.shape[1] and mask.sum(1).min() > 0
        assert owners.tolist() == sorted(owners.tolist())
        assert set(owners.tolist()) == set(range(len(pixels)))
        flat = pixels.flatten(2)
        assert (flat == flat[:, :, :1]).all(), "a picture of more than one colour"
        pictures = [known[tuple(value)] for value in flat[:, :, 0].tolist()]
        texts = [backend.decode(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]
        captions = [
            tuple(map(int, re.fullmatch(r"\s*picture (\d+) caption (\d+)( more)*", t).groups()[:2])) for t in texts
        ]
        return pictures, captions, owners.tolist()

    return read


def equal(first, second):
    fields = ("pixels_B3HW", "input_ids_CL", "attention_mask_CL", "caption_image_C")
    return all(torch.equal(getattr(first, field), getattr(second, field)) for field in fields)


def all_equal(first, second):
    return len(first) == len(second) and all(map(equal, first, second))


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


# What stands in a batch


@pytest.mark.parametrize("captions_per_image", [1, 2, 3, 9])
def test_captions_belong_to_their_pictures(make, read, records, captions_per_image):
    loader = make(captions=captions_per_image)
    all_captions = [(n, k) for n, record in enumerate(records) for k in range(len(record.captions))]
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            pictures, captions, owners = read(batch)
            assert len(pictures) == BATCH
            assert [picture for picture, _ in captions] == [pictures[owner] for owner in owners]
            assert len(set(captions)) == len(captions), "a caption twice"
            for row, picture in enumerate(pictures):
                assert owners.count(row) == min(captions_per_image, len(records[picture].captions))
            assert batch.rows_B.tolist() == pictures
            assert [all_captions[row] for row in batch.caption_rows_C.tolist()] == captions


def test_every_picture_at_most_once_an_epoch(make, read):
    loader = make()
    assert len(loader) == COUNT // BATCH
    left_out = set()
    for epoch in range(8):
        seen = [picture for batch in loader.epoch(epoch) for picture in read(batch)[0]]
        assert len(seen) == len(set(seen)) == len(loader) * BATCH
        left_out |= set(range(COUNT)) - set(seen)
    assert len(left_out) > COUNT % BATCH, "the same pictures sit out each epoch"


def test_all_captions_are_drawn_in_time(make, read, records):
    loader = make(captions=1)
    drawn = {caption for epoch in range(60) for batch in loader.epoch(epoch) for caption in read(batch)[1]}
    assert drawn == {(n, k) for n, record in enumerate(records) for k in range(len(record.captions))}


def test_fewer_pictures_than_the_batch(make, read, records):
    loader = make(records[:3], batch=64)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 1
    assert sorted(read(batches[0])[0]) == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_one_picture_cannot_be_contrasted(make, records, count):
    with pytest.raises(DataError, match="at least two pictures"):
        make(records[:count])


def test_augmentation_is_applied(make, records, tmp_path):
    """A picture dark on the left, with flips always: the light side comes first."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    half = ImageText(str(tmp_path / "half.png"), ("picture 0 caption 0",))
    for flip in (0.0, 1.0):
        augment = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=flip)
        (batch,) = make([half, half], augment=augment).epoch(0)
        left = batch.pixels_B3HW[..., 0].float().mean()
        assert left == (255 if flip else 0)
    (batch,) = make([half, half], augment=augment).epoch(0, augmented=False)
    assert batch.pixels_B3HW[..., 0].float().mean() == 0
    assert torch.equal(batch.pixels_B3HW, batch.pixels_B3HW[:1].expand_as(batch.pixels_B3HW))


def test_augmented_views_may_be_smaller_than_whole_pictures(make):
    loader = make(augmented_size=SIZE // 2)
    augmented, whole = next(loader.epoch(0)), next(loader.epoch(0, augmented=False))
    assert augmented.pixels_B3HW.shape[2:] == (SIZE // 2, SIZE // 2) and whole.pixels_B3HW.shape[2:] == (SIZE, SIZE)
    taught = next(loader.epoch(0, teacher_sizes=(SIZE,)))
    assert taught.teacher_pixels[SIZE].shape[2:] == (SIZE, SIZE)
    assert np.array_equal(taught.pixels_B3HW, augmented.pixels_B3HW)


def test_augmentation_that_does_nothing_is_none(make):
    loader = make(augment=AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.5, 2.0), flip=0.0))
    assert all_equal(list(loader.epoch(0)), list(loader.epoch(0, augmented=False)))


def test_without_augmentation_order_and_captions_stay(make):
    for plain, augmented in zip(make().epoch(1, augmented=False), make().epoch(1), strict=True):
        assert np.array_equal(plain.rows_B, augmented.rows_B)
        assert np.array_equal(plain.caption_rows_C, augmented.caption_rows_C)


def test_to_keeps_values(make):
    batch = next(make().epoch(0))
    assert equal(batch.to(torch.device("cpu")), batch)


def test_drawing_without_repeat():
    """Hand-worked: of 0..3, 0.6 of four is the third; of the three left, 0.99 is the last; of two, 0 the first."""
    chosen, groups = drawn_without_repeat(np.array([4, 1, 3]), np.array([[0.6, 0.99, 0.0], [0.7, 0.2, 0.9], [0.0] * 3]))
    assert chosen.tolist() == [2, 3, 0, 0, 0, 1, 2]
    assert groups.tolist() == [0, 0, 0, 1, 2, 2, 2]
    draws = np.random.default_rng(0).random((6000, 2))
    pairs = Counter(map(tuple, drawn_without_repeat(np.full(6000, 3), draws)[0].reshape(-1, 2).tolist()))
    assert len(pairs) == 6 and all(abs(count - 1000) < 4 * 29 for count in pairs.values())  # 4 standard deviations


def test_drawing_is_taking_one_after_another():
    """The same as popping from lists, whatever the numbers of things and of draws."""
    random = np.random.default_rng(1)
    counts, draws = random.integers(1, 9, 500), random.random((500, 5))
    expected = []
    for group, count in enumerate(counts.tolist()):
        left = list(range(count))
        expected += [(group, left.pop(int(draw * len(left)))) for draw in draws[group, :count].tolist()]
    chosen, groups = drawn_without_repeat(counts, draws)
    assert list(zip(groups.tolist(), chosen.tolist(), strict=True)) == expected


def test_memory_is_used_again_only_when_nobody_holds_it():
    buffers = Buffers((2, 3))
    first, second = buffers.take(), buffers.take()
    assert first.data_ptr() != second.data_ptr()
    place, part = first.data_ptr(), first[1].permute(0)
    del first
    assert buffers.take().data_ptr() != place  # a part of it is still held
    del part
    assert place in (buffers.take().data_ptr(), buffers.take().data_ptr())


# Order and seeds


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(make, workers):
    assert all_equal(list(make(workers=workers).epoch(3)), list(make(workers=3).epoch(3)))


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_resumed_is_the_tail_of_the_uninterrupted(make, start):
    whole = list(make().epoch(2))
    assert all_equal(list(make().epoch(2, start)), whole[start:])


def test_epochs_and_seeds_differ(make, read):
    orders = [
        tuple(picture for batch in make(seed=seed).epoch(epoch) for picture in read(batch)[0])
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_views_of_a_picture_differ_between_epochs(make, records, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    twice = [ImageText(str(tmp_path / "noise.png"), ("picture 0 caption 0",))] * 2
    augment = AugmentConfig(crop_scale=(0.3, 0.9))
    loader = make(twice, augment=augment)
    views = torch.cat([batch.pixels_B3HW for epoch in range(3) for batch in loader.epoch(epoch)])
    assert len({view.numpy().tobytes() for view in views}) == 6  # and of two rows with the same picture


# Bad pictures


@pytest.fixture
def with_bad(records, tmp_path):
    """The records with some of the pictures cut short, missing or empty."""

    def with_bad(*numbers):
        result = list(records)
        for place, number in enumerate(numbers):
            file = tmp_path / f"bad{number}.png"
            if place % 3 == 0:  # truncated
                pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file)
                file.write_bytes(file.read_bytes()[:1500])
            elif place % 3 == 2:
                file.write_bytes(b"")
            result[number] = ImageText(str(file), records[number].captions)
        return result

    return with_bad


def test_a_truncated_picture_shifts_nothing(make, read, with_bad, tmp_path):
    """The batches without it are as ever; in its own, another takes its very place; it is written down once."""
    records, file = with_bad(11), tmp_path / "quarantine.jsonl"
    loader, touched = make(records, quarantine=Quarantine(file)), 0
    for epoch in range(4):
        for batch, clean in zip(loader.epoch(epoch), make().epoch(epoch), strict=True):
            pictures, captions, owners = read(batch)
            expected = read(clean)[0]
            assert len(pictures) == len(set(pictures)) == BATCH
            assert [picture for picture, _ in captions] == [pictures[owner] for owner in owners]
            if 11 not in expected:
                assert equal(batch, clean)
                continue
            touched += 1
            place = expected.index(11)
            assert pictures[place] != 11
            assert pictures[:place] + pictures[place + 1 :] == expected[:place] + expected[place + 1 :]
    assert touched >= 2
    lines = file.read_text().splitlines()
    assert len(lines) == 1 and "bad11.png" in lines[0] and "truncated" in lines[0]


def test_bad_pictures_and_resumption(make, read, with_bad):
    """The same substitutes in a resumed run, whatever the threads, whether or not the bad ones were known before."""
    records = with_bad(1, 5, 9, 10, 15, 20)
    known = Quarantine()
    whole = list(make(records, quarantine=known).epoch(1))
    assert len(known) >= 5
    for start in range(len(whole)):
        assert all_equal(list(make(records, workers=5).epoch(1, start)), whole[start:])
    assert all_equal(list(make(records, quarantine=known).epoch(1)), whole)
    for batch in whole:
        pictures = read(batch)[0]
        assert len(pictures) == len(set(pictures)) == BATCH
        assert not set(pictures) & {1, 5, 9, 10, 15, 20}


def test_the_last_good_picture_is_found(make, read, with_bad):
    """Of 23 pictures, 22 in a batch: for a bad one in it there is one substitute, and it is always found."""
    records = with_bad(4)
    for epoch in range(25):
        (batch,) = make(records, batch=COUNT - 1).epoch(epoch)
        assert sorted(read(batch)[0]) == [number for number in range(COUNT) if number != 4]


def test_where_no_substitute_is_left_the_batch_is_smaller(make, read, with_bad):
    (batch,) = make(with_bad(2, 3, 4)[:6], batch=6).epoch(0)
    pictures, captions, owners = read(batch)
    assert sorted(pictures) == [0, 1, 5]
    assert [picture for picture, _ in captions] == [pictures[owner] for owner in owners]


def test_all_pictures_bad(make, with_bad):
    loader = make(with_bad(*range(COUNT)))
    with pytest.raises(DataError, match="not two could be read") as raised:
        next(loader.epoch(0))
    assert "cliplet inspect" in raised.value.hint
    assert not loader_threads()


def test_one_good_picture_is_not_enough(make, with_bad):
    with pytest.raises(DataError, match="not two could be read"):
        list(make(with_bad(*range(1, COUNT))).epoch(0))


# Threads


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_leaving_early_leaves_no_threads(make, taken):
    batches = make(workers=4).epoch(0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not loader_threads()


def test_an_error_in_the_loop_leaves_no_threads(make):
    def train():
        for _ in make(workers=4).epoch(0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not loader_threads()


def test_a_finished_epoch_leaves_no_threads(make):
    list(make().epoch(0))
    assert not loader_threads()


def test_threads_work_ahead_but_not_through_the_whole_epoch(make, records, monkeypatch):
    import cliplet.data.loader as module

    opened, read = [], module.read_bytes
    monkeypatch.setattr(module, "read_bytes", lambda *a, **k: opened.append(a) or read(*a, **k))
    batches = make(batch=2).epoch(0)
    next(batches)
    batches.close()
    assert 2 <= len(opened) <= 2 * (module.BATCHES_AHEAD + 1) < COUNT


@pytest.mark.parametrize(("batch", "begun"), [(100, 3), (200, 2), (400, 1), (900, 1)])
def test_large_batches_are_not_made_far_ahead(make, records, monkeypatch, batch, begun):
    import cliplet.data.loader as module

    many = [records[number % COUNT] for number in range(4 * batch)]
    loader, taken = make(many, batch=batch), []
    monkeypatch.setattr(module.Buffers, "take", lambda self: taken.append(1) or torch.zeros(self._shape).byte())
    monkeypatch.setattr(module.TrainLoader, "_sample", lambda *a: True)
    batches = loader.epoch(0)
    next(batches)
    batches.close()
    assert len(taken) == begun + 1


def test_default_workers_are_few(make):
    assert 1 <= default_workers() <= 8
    assert make(workers=None).workers == default_workers()


# Many ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_see_what_one_alone_sees(make, ranks):
    """Picture by picture, view by view: row i of a batch is row i // ranks of rank i % ranks."""
    whole = list(make().epoch(1))
    parts = [list(make(rank=rank, ranks=ranks).epoch(1)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        mixed = torch.stack([part[step].pixels_B3HW for part in parts], 1).flatten(0, 1)
        assert torch.equal(mixed, batch.pixels_B3HW)


def test_ranks_share_out_every_picture_once(make, read):
    for epoch in range(3):
        seen = [read(batch)[0] for rank in range(2) for batch in make(batch=6, rank=rank, ranks=2).epoch(epoch)]
        assert len(seen) == 2 * (COUNT // 6) and {len(pictures) for pictures in seen} == {3}
        together = [picture for pictures in seen for picture in pictures]
        assert len(together) == len(set(together))


def test_ranks_resume_alike(make):
    for rank in range(2):
        whole = list(make(rank=rank, ranks=2).epoch(2))
        assert all_equal(list(make(rank=rank, ranks=2, workers=5).epoch(2, 3)), whole[3:])


def test_bad_pictures_leave_ranks_in_step_and_without_overlap(make, read, with_bad):
    """Each rank replaces its own bad pictures by others that no rank has in this step, and makes as many steps."""
    records = with_bad(1, 5, 9, 10, 15, 20)
    for epoch in range(6):
        parts = [list(make(records, rank=rank, ranks=2).epoch(epoch)) for rank in range(2)]
        assert len(parts[0]) == len(parts[1]) == COUNT // BATCH
        for batches in zip(*parts, strict=True):
            pictures = [picture for batch in batches for picture in read(batch)[0]]
            assert len(pictures) == len(set(pictures)) == BATCH
            assert not set(pictures) & {1, 5, 9, 10, 15, 20}


def test_a_batch_that_cannot_be_shared_evenly(make):
    with pytest.raises(DataError, match="a batch of 4 of 23 pictures cannot be shared by 3 ranks"):
        make(rank=0, ranks=3)


# Times


def test_times_are_of_every_picture(make, records):
    loader = make()
    list(loader.epoch(0))
    assert loader.times.pictures == len(loader) * BATCH
    assert all(seconds > 0 for seconds in loader.times.seconds.values())
    width, height = loader.times.mean_size()
    assert 20 <= width <= 20 + COUNT and 40 - COUNT <= height <= 40


def test_a_picture_that_vanishes_is_quarantined(make, read, records, tmp_path):
    gone = [ImageText(str(tmp_path / "gone.png"), ("picture 0 caption 0",)), *records[1:]]
    quarantine = Quarantine()
    for epoch in range(3):
        for batch in make(gone, quarantine=quarantine).epoch(epoch):
            assert 0 not in read(batch)[0]
    assert [entry["reason"] for entry in quarantine.entries()] == ["no such file"]
