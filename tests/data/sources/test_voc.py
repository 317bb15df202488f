import io

import numpy as np
import pytest
from PIL import Image

from fpnlab.data.image_io import decode_rgb
from fpnlab.data.load_data import load
from fpnlab.data.sources.voc import Voc

NAMES = ("RBC", "WBC", "Platelets")
GOOD = ("RBC", 11, 6, 30, 25)


def annotation(*objects, size=(40, 50)):
    """XML text: objects as (name, xmin, ymin, xmax, ymax), size as (height, width)."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    described = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(corners, box))
        + "</bndbox></object>"
        for name, *box in objects
    )
    return (
        f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        f"{described}</annotation>"
    )


def jpeg(image=None, **options):
    buffer = io.BytesIO()
    image = image or Image.new("RGB", (50, 40), (200, 100, 50))
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """Writes a data set with images ``a``, ``b`` (train) and ``c`` (test); returns its spec."""

    def write(annotations=None, images=None, lists=None, **fields):
        lists = {"trainval": "a\nb 1\n\n", "test": "c\n"} | (lists or {})
        annotations = dict.fromkeys("abc", annotation(GOOD)) | (annotations or {})
        images = dict.fromkeys("abc", jpeg()) | (images or {})
        for folder, suffix, files in (
            ("ImageSets/Main", "txt", lists),
            ("Annotations", "xml", annotations),
            ("JPEGImages", "jpg", images),
        ):
            (tmp_path / folder).mkdir(parents=True)
            for name, content in files.items():
                if content is not None:
                    data = content.encode() if isinstance(content, str) else content
                    (tmp_path / folder / f"{name}.{suffix}").write_bytes(data)
        fields = {"class_names": NAMES, "image_size": (20, 30), "max_boxes": 4} | fields
        return Voc(root=str(tmp_path), **fields)

    return write


@pytest.fixture(scope="module")
def bccd(data_root):
    return load(Voc(root=str(data_root / "bccd"), class_names=NAMES, image_size=(60, 80)))


def test_bccd_loads_with_its_two_empty_boxes_reported(bccd):
    assert bccd.name == "bccd"
    assert bccd.train.images.shape == (292, 60, 80, 3)
    assert bccd.test.images.shape == (72, 60, 80, 3)
    classes = np.concatenate([split.classes[split.valid] for split in (bccd.train, bccd.test)])
    np.testing.assert_array_equal(np.bincount(classes), [4155 - 2, 372, 361])
    assert sorted(map(str, bccd.problems)) == [
        "Annotations/BloodImage_00338.xml, object 13: box (504, 337, 504, 337) has no area: "
        "left out",
        "Annotations/BloodImage_00343.xml, object 4: box (181, 329, 181, 329) has no area: "
        "left out",
    ]
    assert sum(problem.count for problem in bccd.problems) == 2


def test_bccd_counts_pixels_from_1(bccd):
    boxes = bccd.train.boxes[bccd.train.valid]
    np.testing.assert_array_equal(boxes.min(0)[:2], [0, 0])
    np.testing.assert_array_equal(boxes.max(0)[2:], [80, 60])


def test_lists_annotations_and_images_are_fingerprinted(make, fingerprints):
    spec = make(lists={"test": "c\na\n", "unused": "a\n"})
    names = ["ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt"]
    names += [
        f"{place}.{end}"
        for n in "abc"
        for place, end in ((f"Annotations/{n}", "xml"), (f"JPEGImages/{n}", "jpg"))
    ]
    assert load(spec).files == fingerprints(spec.root, names)


def test_corners_become_edges_and_follow_the_letterbox(make):
    data = load(make())
    # 50 x 40 becomes 25 x 20; VOC's 11..30 is 10 to 30.
    np.testing.assert_allclose(data.train.boxes[:, 0], [[5, 2.5, 15, 12.5]] * 2)
    np.testing.assert_array_equal(data.train.valid, [[True, False, False, False]] * 2)
    np.testing.assert_array_equal(data.train.extent, [[20, 25]] * 2)
    np.testing.assert_array_equal(data.train.images[:, :, 25:], 0)
    np.testing.assert_allclose(data.train.images[0, 10, 10], [200, 100, 50], atol=3)
    assert data.problems == ()


def test_splits_are_typed_arrays_numbered_from_0(make):
    data = load(make())
    np.testing.assert_array_equal(data.train.index, [0, 1])
    np.testing.assert_array_equal(data.test.index, [0])
    types = {name: getattr(data.train, name).dtype for name in ("images", "boxes", "classes")}
    assert types == {"images": np.uint8, "boxes": np.float32, "classes": np.int32}


def test_an_object_has_the_number_of_its_name_in_class_names(make):
    names = ("Platelets", "RBC", "WBC", "RBC")
    objects = [(name, 1 + i, 1, 20 + i, 20) for i, name in enumerate(names)]
    data = load(make({"a": annotation(*objects)}))
    numbers = [NAMES.index(name) for name in names]
    assert data.train.valid[0].all()
    assert data.train.classes[0].tolist() == numbers == [2, 0, 1, 0]
    np.testing.assert_allclose(data.train.boxes[0, :, 0], [0.0, 0.5, 1.0, 1.5])


def test_an_image_without_objects_has_no_boxes(make):
    data = load(make({"a": annotation()}))
    assert not data.train.valid[0].any()
    assert data.train.valid[1].any()


def test_boxes_beyond_the_image_are_clipped_or_left_out_and_counted(make):
    odd = [("RBC", 0, 6, 30, 60), ("WBC", 60, 1, 70, 9), ("WBC", 20, 9, 20, 30), GOOD]
    data = load(make({"a": annotation(*odd)}))
    np.testing.assert_allclose(data.train.boxes[0, :2], [[0, 2.5, 15, 20], [5, 2.5, 15, 12.5]])
    np.testing.assert_array_equal(data.train.valid[0], [True, True, False, False])
    places = [(problem.file, problem.where) for problem in data.problems]
    assert places == [("Annotations/a.xml", f"object {i}") for i in (1, 2, 3)]
    for problem, what in zip(data.problems, ("partly outside", "is outside", "no area")):
        assert what in problem.what


def test_images_in_both_lists_are_counted(make):
    (problem,) = load(make(lists={"test": "c\na\n"})).problems
    assert problem.count == 1
    assert "1 held-out images are also in trainval.txt" in problem.what


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; set root"):
        load(Voc(root=str(tmp_path / "nowhere"), class_names=NAMES))


def test_the_error_of_missing_lists_names_those_that_exist(make):
    spec = make(lists={"trainval": None, "test": None, "val": "a\n"})
    with pytest.raises(FileNotFoundError, match=r"2 errors(.|\n)*trainval.txt: no such list"):
        load(spec)
    with pytest.raises(FileNotFoundError, match="there are: val"):
        load(spec)


def test_an_empty_list_is_an_error(make):
    with pytest.raises(ValueError, match=r"trainval.txt: names no image"):
        load(make(lists={"trainval": "\n \n"}))


def test_the_error_of_missing_files_names_all_of_them(make):
    spec = make(annotations={"a": None}, images={"b": None})
    with pytest.raises(FileNotFoundError, match="2 errors") as caught:
        load(spec)
    assert "Annotations/a.xml: missing" in str(caught.value)
    assert "JPEGImages/b.jpg: missing; add it, or remove b from the list" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"Annotations/a.xml: is not XML"),
        ("<annotation><size>", r"Annotations/a.xml: is not XML"),
        ("<annotation/>", r"a.xml, size/height: is missing(.|\n)*a.xml, size/width: is missing"),
        (annotation(GOOD, size=("wide", 50)), r"a.xml, size/height: is 'wide'; must be a number"),
        (annotation(GOOD, size=(50, 40)), r"a.xml, size: says 40 x 50, but the image .* 50 x 40"),
        (annotation(GOOD, ("RBC", 1, "x", 5, 5)), r"a.xml, object 2, bndbox/ymin: is 'x'"),
        (annotation(("RBC", 1, 1, "nan", 5)), r"a.xml, object 1, bndbox/xmax: is 'nan'"),
        (annotation(("RBC", 1, 1, 9)), r"a.xml, object 1, bndbox/ymax: is missing"),
        (
            annotation(GOOD, ("platelet", 1, 1, 9, 9)),
            r"a.xml, object 2, name: 'platelet' is not in class_names; did you mean 'Platelets'\?",
        ),
        (annotation(("zebra", 1, 1, 9, 9)), r"class_names; known: RBC, WBC, Platelets"),
        (annotation(*[GOOD] * 7), r"a.xml: 7 objects, .* max_boxes = 4; set max_boxes = 7"),
    ],
)
def test_an_invalid_annotation_is_an_error(make, text, says):
    with pytest.raises(ValueError, match=says):
        load(make({"a": text}))


@pytest.mark.parametrize(
    "content", [b"", jpeg()[:400], b"<html>not found</html>"], ids=["empty", "truncated", "html"]
)
def test_an_image_that_does_not_decode_is_an_error(make, content):
    with pytest.raises(ValueError, match=r"JPEGImages/b.jpg: does not decode .*; replace it"):
        load(make(images={"b": content}))


def test_all_errors_are_raised_at_once_and_only_ten_are_shown(make):
    bad = [("zebra", 1, 1, 9, 9)] * 14
    with pytest.raises(ValueError, match="16 errors") as caught:
        load(make({"a": annotation(*bad), "c": None}, images={"b": b""}))
    assert len(str(caught.value).splitlines()) == 12
    assert str(caught.value).endswith("... and 6 more")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"class_names": ()}, "one or more different names"),
        ({"class_names": ("a", "a")}, "one or more different names"),
        ({"image_size": (0, 10)}, "image_size is .*at least 1"),
        ({"image_size": (240, 50_000)}, "image_size is .*at most 8192"),
        ({"max_boxes": 0}, "max_boxes is 0; it must be at least 1"),
    ],
)
def test_voc_rejects_invalid_class_names_and_numbers(fields, says):
    with pytest.raises(ValueError, match=says):
        Voc(**{"root": ".", "class_names": NAMES} | fields)


def test_every_color_mode_becomes_rgb(tmp_path):
    ramp = np.linspace(0, 255, 50).astype(np.uint8) * np.ones((40, 1), np.uint8)
    gray = Image.fromarray(ramp)
    modes = {mode: gray.convert(mode) for mode in ("L", "LA", "RGB", "RGBA", "P", "1")}
    modes["16"] = Image.fromarray(ramp.astype(np.uint16) * 257)
    modes["P"].info["transparency"] = bytes(range(256))
    for name, image in modes.items():
        image.save(tmp_path / f"{name}.png")
        decoded = decode_rgb((tmp_path / f"{name}.png").read_bytes())
        assert decoded.shape == (40, 50, 3)
        assert decoded.dtype == np.uint8
        if name != "1":
            np.testing.assert_allclose(decoded[..., 1], ramp, atol=1)
    cmyk = decode_rgb(jpeg(gray.convert("RGB").convert("CMYK")))
    np.testing.assert_allclose(cmyk[..., 0], ramp, atol=6)


def test_an_exif_orientation_is_not_applied(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = load(make(images={"a": jpeg(exif=exif)}))
    np.testing.assert_array_equal(data.train.extent[0], [20, 25])
