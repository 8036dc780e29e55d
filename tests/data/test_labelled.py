"""Whose picture is whose: from folders and tables, and what is said of the rest."""

import json
import os

import pytest
from PIL import Image

from cliplet.data.labelled import read_labelled
from cliplet.data.labelled_copies import contradictions, same_bytes, shared
from cliplet.errors import DataError


def put(folder, *names):
    """Small pictures, each of another colour."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(name.encode()) % 256
        Image.new("RGB", (8, 6), (shade, len(name) * 7 % 256, 40)).save(file)


def found(pictures):
    """(file name, class, split) of each picture."""
    return [
        (image.rpartition("/")[2], pictures.classes[label], split)
        for image, label, split in zip(pictures.images, pictures.label_N, pictures.split_of, strict=True)
    ]


def test_a_folder_for_each_class(tmp_path):
    put(tmp_path, "dog/b.png", "dog/deeper/c.PNG", "cat/a.jpg", "cat/.hidden.png", ".thumbs/x.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    pictures = read_labelled(tmp_path)
    assert pictures.classes == ("cat", "dog")
    assert found(pictures) == [("a.jpg", "cat", ""), ("b.png", "dog", ""), ("c.PNG", "dog", "")]
    assert not pictures.names_splits and pictures.usual_split == "all"
    assert pictures.select("all") is pictures and pictures.problems == () and pictures.notes == ()


def test_folders_of_splits_go_by_their_usual_names(tmp_path):
    put(
        tmp_path, "Training/cat/a.png", "Training/dog/b.png", "validation/dog/c.png", "test/cat/d.png", "test/dog/e.png"
    )
    pictures = read_labelled(tmp_path)
    assert pictures.classes == ("cat", "dog") and pictures.splits == {"train": 2, "val": 1, "test": 2}
    assert found(pictures.select(pictures.usual_split)) == [("d.png", "cat", "test"), ("e.png", "dog", "test")]
    assert [name for name, _, _ in found(pictures.select("train+val"))] == ["a.png", "b.png", "c.png"]
    assert pictures.select("val").classes == ("cat", "dog"), "labels keep their places"
    with pytest.raises(DataError, match=r"no split 'dev'\n.*train \(2\), test \(2\), val \(1\)"):
        pictures.select("dev")


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, "train/a.png", "bus/b.png")
    assert read_labelled(tmp_path).classes == ("bus", "train")


def test_splits_without_classes_are_refused(tmp_path):
    put(tmp_path, "train/a.png", "test/b.png")
    with pytest.raises(DataError, match="test, train hold pictures, and no folders of classes"):
        read_labelled(tmp_path)


def test_strays_are_problems_and_empty_classes_are_said(tmp_path):
    put(tmp_path, "stray.png", "train/cat/a.png", "train/dog/b.png", "train/on_top.png", "other/cat/c.png")
    (tmp_path / "train" / "fish").mkdir()
    pictures = read_labelled(tmp_path)
    assert pictures.classes == ("cat", "dog") and len(pictures.images) == 2
    reasons = {os.path.relpath(one.where, tmp_path): one.reason for one in pictures.problems}
    assert reasons == {
        "stray.png": "lies in no folder of a class",
        "train/on_top.png": "lies in no folder of a class",
        "other/cat/c.png": "lies beside the splits, which are train",
    }
    assert pictures.notes == ("left out, for no pictures lie in them: fish",)


def test_one_class_only_is_refused_and_the_folder_inside_is_offered(tmp_path):
    put(tmp_path, "pets/cat/a.png", "pets/dog/b.png")
    with pytest.raises(DataError, match=r"one class only, 'pets'.*\n.*Perhaps .*pets is the folder"):
        read_labelled(tmp_path)
    assert read_labelled(tmp_path / "pets").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "holds no pictures"),
        (lambda folder: folder / "absent", "no such file or folder"),
        (lambda folder: put(folder, "a.png") or folder / "a.png", "holds no labelled pictures"),
        (lambda folder: put(folder, "a.png") or folder, "no picture lies in a folder of a class"),
    ],
)
def test_what_holds_no_classes_is_refused(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        read_labelled(make(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "image,label,split\na.png,cat,train\nb.png,dog,test\n",
        "\ufeffid\tCategory\tsplit\tfile_name\r\n1\tcat\tTraining\ta.png\r\n2\tdog\ttesting\tb.png\r\n",
        'label;filename;split;note\ncat;a.png;train;"x; y"\ndog;b.png;test;z\n',
        "class_name,class,path,split\ncat,7,a.png,train\ndog,3,b.png,test\n",
    ],
)
def test_columns_of_a_table_are_found_by_name(tmp_path, text):
    put(tmp_path, "images/a.png", "images/b.png")
    (tmp_path / "labels.csv").write_text(text, newline="")
    pictures = read_labelled(tmp_path / "labels.csv")
    assert found(pictures) == [("a.png", "cat", "train"), ("b.png", "dog", "test")]
    assert pictures.images[0] == str(tmp_path / "images" / "a.png")


@pytest.mark.parametrize("text", ["a.png,cat\nb.png,dog\n", "cat,a.png\ndog,b.png\n"])
def test_two_columns_need_no_header(tmp_path, text):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)
    assert found(read_labelled(tmp_path / "labels.csv")) == [("a.png", "cat", ""), ("b.png", "dog", "")]


@pytest.mark.parametrize(
    "text", ["foto,klasse\na.png,cat\nb.png,dog\n", "a.png,cat,x\nb.png,dog,y\n", "image,x\na.png,1\n"]
)
def test_columns_that_are_not_clear_are_refused_by_name(tmp_path, text):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(
        DataError, match="labels.csv:1: no columns of pictures and of classes.*" + text.split("\n")[0][:3]
    ):
        read_labelled(tmp_path / "labels.csv")


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    put(tmp_path, *(f"{n}.png" for n in range(24)))
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{n}.png,{n % 12}\n" for n in range(24)))
    assert read_labelled(tmp_path / "labels.csv").classes == tuple(str(n) for n in range(12))


def test_bad_rows_are_problems_with_their_lines(tmp_path):
    put(tmp_path, "a.png", "b.png")
    text = 'image,label\na.png,cat\n\na.png\nb.png,\n,dog\na.png,cat\nb.png,"dog" x\nb.png,dog\n'
    (tmp_path / "labels.csv").write_text(text)
    pictures = read_labelled(tmp_path / "labels.csv")
    assert [name for name, _, _ in found(pictures)] == ["a.png", "b.png"]
    assert [one.where for one in pictures.problems] == [f"labels.csv:{n}" for n in (8, 4, 5, 6, 7)]
    assert pictures.problems[-1].reason == "names a.png of cat again"


def test_pictures_that_are_nowhere_are_refused_and_a_single_one_is_not(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na.png,cat\nb.png,dog\n")
    with pytest.raises(DataError, match=r"none of its first pictures is there \(a.png in .*\n.*--images"):
        read_labelled(tmp_path / "labels.csv")
    put(tmp_path, "elsewhere/b.png")
    pictures = read_labelled(tmp_path / "labels.csv", tmp_path / "elsewhere")
    assert len(pictures.images) == 2, "whether each is there is found when it is read"


def test_a_table_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"image,label\na.png,caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8 at byte 22"):
        read_labelled(tmp_path / "labels.csv")


def captioned(root, names, form):
    """A file of captions of the pictures, in one of the forms that such files have."""
    sentence = "A dog runs over the snow ."
    texts = {
        "captions.txt": "image,caption\n" + "".join(f"{name},{sentence}\n" for name in names),
        "x.token.txt": "".join(f"{name}#0\t{sentence}\n" for name in names),
        "pairs.tsv": "".join(f"{name}\t{sentence}\n" for name in names),
        "dataset_x.json": json.dumps({"images": [{"filename": n, "sentences": [{"raw": sentence}]} for n in names]}),
        # COCO's: what is first is no caption yet, and longer than what is looked at.
        "coco.json": json.dumps(
            {"info": "x" * 70_000, "annotations": [{"image_id": n, "caption": "A"} for n in names]}
        ),
    }
    (root / form).write_text(texts[form])


CAPTION_FORMS = ("captions.txt", "x.token.txt", "pairs.tsv", "dataset_x.json", "coco.json")


@pytest.mark.parametrize("form", CAPTION_FORMS)
def test_a_data_set_of_captions_is_refused(tmp_path, form):
    put(tmp_path, "images/a.png", "images/b.png", "fullres/a.png")
    captioned(tmp_path, ["a.png", "b.png"], form)
    with pytest.raises(DataError, match=rf"captions, not of classes: {form} holds captions, and fullres is.*\n.*evalu"):
        read_labelled(tmp_path)


def test_a_folder_of_any_name_that_holds_all_that_has_captions_is_refused(tmp_path):
    put(tmp_path, "mine/a.png", "mine/b.png", "mine/c.png", "more/a.png")
    captioned(tmp_path, ["a.png", "b.png", "c.png"], "captions.txt")
    with pytest.raises(DataError, match="captions, and mine is a folder of pictures"):
        read_labelled(tmp_path)


@pytest.mark.parametrize("names", [["cat/a.png", "dog/a.png"], ["a.png"], ["b.png", "c.png"]])
@pytest.mark.parametrize("form", CAPTION_FORMS[:2])
def test_captions_of_pictures_in_several_classes_are_said_and_not_refused(tmp_path, form, names):
    put(tmp_path, "cat/a.png", "cat/b.png", "dog/a.png", "dog/c.png")
    captioned(tmp_path, names, form)
    pictures = read_labelled(tmp_path)
    (note,) = pictures.notes
    assert pictures.classes == ("cat", "dog") and note.startswith(f"{form} holds captions: if {tmp_path} is")


def test_other_files_beside_classes_are_nothing_to_speak_of(tmp_path):
    put(tmp_path, "images/a.png", "img/b.png")
    (tmp_path / "labels.csv").write_text("image,label,comment\nimages/a.png,images,none\n")
    (tmp_path / "classes.txt").write_text("images\nimg\n")
    (tmp_path / "result.json").write_text('{"captions": 5000, "notes": []}')
    (tmp_path / "meta.csv").write_bytes(b"\xff\xfe\0")
    (tmp_path / "empty.tsv").write_text("")
    assert read_labelled(tmp_path).notes == ()


def test_labels_that_are_sentences_are_refused(tmp_path):
    put(tmp_path, "a.png", "b.png")
    file = tmp_path / "pairs.tsv"
    file.write_text("a.png\tA black dog runs over snow .\nb.png\tTwo children play in a pool .\n")
    with pytest.raises(DataError, match=r"pairs.tsv: the classes look like sentences, such as 'A black dog.* 7 words"):
        read_labelled(file)
    file.write_text("".join(f"a{n}.png\ta photo of one {'cat' if n % 2 else 'dog'}\n" for n in range(8)))
    put(tmp_path, "a0.png")
    (note,) = read_labelled(file).notes
    assert "look like sentences" in note, "several pictures share them, so they may be meant"


def test_a_label_for_nearly_every_picture_is_refused_in_a_table_and_said_of_folders(tmp_path):
    put(tmp_path, *(f"{n}.png" for n in range(10)))
    file = tmp_path / "labels.csv"
    file.write_text("image,label\n" + "".join(f"{n}.png,{min(n, 5)}\n" for n in range(10)))
    with pytest.raises(DataError, match=r"6 classes of 10 pictures, such as '0', look like captions"):
        read_labelled(file)
    file.write_text("image,label\n" + "".join(f"{n}.png,{min(n, 4)}\n" for n in range(10)))
    assert read_labelled(file).notes == (), "half as many classes are let be"
    file.write_text("image,label\n" + "".join(f"{n}.png,{n}\n" for n in range(9)))
    assert read_labelled(file).notes == (), "so few pictures tell nothing"
    put(tmp_path / "folders", *(f"class {n}/{n}.png" for n in range(10)))
    (note,) = read_labelled(tmp_path / "folders").notes
    assert note.startswith("10 classes of 10 pictures")


@pytest.mark.parametrize("name", ["American black bear", "Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax"])
def test_long_names_of_classes_are_names(tmp_path, name):
    put(tmp_path, f"{name}/a.png", "bobcat/b.png")
    assert read_labelled(tmp_path).notes == ()


def test_columns_of_captions_are_said(tmp_path):
    captioned(tmp_path, ["a.png"], "captions.txt")
    with pytest.raises(DataError, match=r"no columns of pictures and of classes.*\nIt looks like captions"):
        read_labelled(tmp_path / "captions.txt")


def test_a_picture_in_two_classes_is_said(tmp_path):
    put(tmp_path, "cat/a.png", "dog/b.png", "dog/c.png")
    assert contradictions(read_labelled(tmp_path)) == ""
    (tmp_path / "dog" / "same.png").write_bytes((tmp_path / "cat" / "a.png").read_bytes())
    said = contradictions(read_labelled(tmp_path))
    assert said.startswith("1 picture stands in more than one class")
    assert "cat/a.png of cat, also" in said and "dog/same.png of dog" in said


def test_a_picture_to_train_on_and_to_test_on_is_said(tmp_path):
    put(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")
    pictures = read_labelled(tmp_path)
    assert shared(pictures.select("train"), pictures.select("test")) == ""
    (tmp_path / "test" / "dog" / "copy.png").write_bytes((tmp_path / "train" / "dog" / "b.png").read_bytes())
    pictures = read_labelled(tmp_path)
    said = shared(pictures.select("train"), pictures.select("test"))
    assert said.startswith("1 picture stands to test on and to train on:") and "copy.png is " in said


def test_files_alike_in_size_and_beginning_are_told_apart(tmp_path):
    files = [tmp_path / name for name in "abcd"]
    for file, end in zip(files, (b"1", b"2", b"1", b"33"), strict=True):
        file.write_bytes(bytes(10_000) + end)
    assert same_bytes([*map(str, files), str(tmp_path / "absent"), str(files[1])]) == [[0, 2], [1, 5]]
