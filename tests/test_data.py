# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from qhyvit_onnx.data import Deployable, Feeds, InputSpec, Kind, describe_first, open_feeds
from qhyvit_onnx.data.input_spec import parse_input_shape
from qhyvit_onnx.data.preprocess import Recipe
from qhyvit_onnx.errors import CompileError, ConfigError, DataError

X = InputSpec("x", (None, 3, 8, 8))
PLAIN = Recipe(crop=8)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bytes_(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image_folder(folder, names):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bytes_(10, 12, 3, seed=seed)).save(path)
    return folder


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


class OrtReader:
    """The shape of onnxruntime's CalibrationDataReader."""

    def __init__(self, feeds):
        self.feeds, self.left = feeds, iter(feeds)

    def get_next(self):
        return next(self.left, None)


class RewindingReader(OrtReader):
    def rewind(self):
        self.left = iter(self.feeds)


def values(feeds):
    return [feed["x"] for feed in feeds]


def test_importing_data_loads_no_heavy_library():
    code = (
        "import sys, qhyvit_onnx.data;"
        "print([m for m in ('onnx', 'onnxruntime', 'PIL', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_image_folder_is_walked_twice_with_the_same_arrays(tmp_path):
    image_folder(tmp_path, ["b.jpg", "a.PNG", "deep/er/c.jpeg", ".hidden.jpg"])
    (tmp_path / "notes.txt").write_text("not an image")
    feeds = open_feeds(tmp_path, [X], preprocess="unit")
    first, second = values(feeds), values(feeds)
    assert len(feeds) == len(first) == 3
    np.testing.assert_array_equal(first, second)
    assert first[0].shape == (1, 3, 8, 8)
    assert feeds.origin.kind is Kind.IMAGES
    assert feeds.origin.deployable is Deployable.YES
    assert feeds.origin.recipe.startswith("unit: resize short side 9")
    assert not feeds.origin.notes


def test_the_default_recipe_is_said_aloud(tmp_path):
    feeds = open_feeds(image_folder(tmp_path, ["a.png"]), [X])
    assert "imagenet" in feeds.origin.notes[0]


def test_a_draw_is_seeded_and_known_by_its_hash(tmp_path):
    image_folder(tmp_path, [f"{i}.png" for i in range(9)])
    one, two, other = (open_feeds(tmp_path, [X], samples=4, seed=seed) for seed in (1, 1, 2))
    assert one.origin == two.origin
    assert (one.origin.taken, one.origin.available, len(one)) == (4, 9, 4)
    assert one.origin.sha256 != other.origin.sha256


def test_the_hash_sees_contents_and_names(tmp_path):
    image_folder(tmp_path, ["a.png"])
    before = open_feeds(tmp_path, [X]).origin.sha256
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    renamed = open_feeds(tmp_path, [X]).origin.sha256
    Image.fromarray(bytes_(10, 12, 3, seed=5)).save(tmp_path / "b.png")
    changed = open_feeds(tmp_path, [X]).origin.sha256
    assert len({before, renamed, changed}) == 3


def test_class_folders_become_labels(tmp_path):
    image_folder(tmp_path / "named", ["cat/1.png", "dog/1.png", "cat/2.png"])
    (tmp_path / "named" / "bird").mkdir()
    assert open_feeds(tmp_path / "named", [X]).labels == (1, 1, 2)
    image_folder(tmp_path / "numbers", ["wrapped/2/a.png", "wrapped/10/a.png"])
    assert sorted(open_feeds(tmp_path / "numbers", [X]).labels) == [2, 10]
    assert open_feeds(image_folder(tmp_path / "flat", ["a.png"]), [X]).labels is None


def test_labels_follow_a_draw(tmp_path):
    path = save(tmp_path / "d.npz", x=floats(20, 3, 8, 8), y=np.arange(20))
    feeds = open_feeds(path, [X], samples=5, seed=3)
    whole = floats(20, 3, 8, 8)
    for label, x in zip(feeds.labels, values(feeds), strict=True):
        np.testing.assert_array_equal(x[0], whole[label])


def test_one_image(tmp_path):
    image_folder(tmp_path, ["a.png", "b.png"])
    assert len(open_feeds(tmp_path / "a.png", [X])) == 1


def test_a_loop_of_links_ends(tmp_path):
    image_folder(tmp_path, ["c/a.png"])
    os.symlink(tmp_path, tmp_path / "c" / "up")
    assert len(open_feeds(tmp_path, [X])) == 1


def test_bundled_images_are_for_a_first_look():
    feeds = open_feeds(None, [X], samples=2)
    assert feeds.origin.kind is Kind.BUNDLED
    assert feeds.origin.deployable is Deployable.FIRST_LOOK
    assert "not for deployment" in " ".join(feeds.origin.notes)


def test_random_is_seeded_and_for_a_first_look():
    ids = InputSpec("ids", (1, 4), np.dtype(np.int64))
    one, two = (open_feeds("random", [X, ids], samples=3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(values(one), values(two))
    assert one.origin.deployable is Deployable.FIRST_LOOK
    assert next(iter(one))["ids"].dtype == np.int64


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 1, 3, 8, 8), (3, 8, 8)])
def test_npy_axes(tmp_path, shape):
    np.save(tmp_path / "d.npy", floats(*shape))
    got = values(open_feeds(tmp_path / "d.npy", [X]))
    np.testing.assert_array_equal(np.concatenate(got), floats(*shape).reshape(-1, 3, 8, 8))


def test_float64_big_endian_and_strided_arrays_are_converted(tmp_path):
    array = floats(4, 8, 8, 3).transpose(0, 3, 1, 2).astype(">f8")
    np.save(tmp_path / "d.npy", array)
    x = values(open_feeds(tmp_path / "d.npy", [X]))[0]
    assert x.dtype == np.float32
    assert x.flags.c_contiguous


def test_npz_keys(tmp_path):
    two = [X, InputSpec("m", (None, 2))]
    feeds = open_feeds(save(tmp_path / "a.npz", x=floats(4, 3, 8, 8), m=floats(4, 2)), two)
    assert next(iter(feeds))["m"].shape == (1, 2)
    shared = open_feeds(save(tmp_path / "b.npz", x=floats(4, 3, 8, 8), m=floats(1, 2)), two)
    assert len(list(shared)) == 4
    assert len(open_feeds(save(tmp_path / "c.npz", any=floats(4, 3, 8, 8)), [X])) == 4


def test_a_folder_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", floats(3, 8, 8))
    np.save(tmp_path / "b.npy", floats(3, 3, 8, 8))
    save(tmp_path / "c.npz", x=floats(2, 3, 8, 8))
    feeds = open_feeds(tmp_path, [X])
    assert len(feeds) == len(values(feeds)) == 6
    assert len(values(open_feeds(tmp_path, [X], samples=2))) == 2


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_8_bit_arrays_are_images_when_a_recipe_is_given(tmp_path, axes):
    pixels = bytes_(4, 8, 8, 3)
    np.save(tmp_path / "d.npy", pixels.transpose(axes))
    feeds = open_feeds(tmp_path / "d.npy", [X], preprocess=PLAIN)
    want = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(np.concatenate(values(feeds)), want, atol=1e-6)
    assert "centre crop 8" in feeds.origin.recipe


def test_float_arrays_are_fed_as_they_are_and_that_is_said():
    feeds = open_feeds({"x": floats(2, 3, 8, 8)}, [X], preprocess="imagenet")
    np.testing.assert_array_equal(np.concatenate(values(feeds)), floats(2, 3, 8, 8))
    assert "as they are" in feeds.origin.notes[0]


def test_a_fixed_batch_is_stacked_and_the_rest_dropped():
    spec = InputSpec("x", (4, 3, 8, 8))
    source = {"x": floats(10, 3, 8, 8), "y": np.arange(10)}
    feeds = open_feeds(source, [spec])
    assert [x.shape for x in values(feeds)] == [(4, 3, 8, 8)] * 2
    assert feeds.labels == tuple(range(8))
    assert "2 samples dropped" in feeds.origin.notes[0]
    assert len(open_feeds(source, [X], shapes={"x": (5, 3, 8, 8)})) == 2


def one_by_one(number=5):
    return [{"x": floats(1, 3, 8, 8, seed=seed)} for seed in range(number)]


@pytest.mark.parametrize(
    "source",
    [
        one_by_one(),
        (feed for feed in one_by_one()),
        OrtReader(one_by_one()),
        RewindingReader(one_by_one()),
        [{"x": np.concatenate(values(one_by_one()))}],
    ],
    ids=["list", "generator", "reader", "rewinding", "batches"],
)
def test_iterables_are_walked_twice(source):
    feeds = open_feeds(source, [X], samples=4)
    assert len(feeds) == 4
    for _ in range(2):
        np.testing.assert_array_equal(values(feeds), values(one_by_one(4)))


def test_an_endless_generator_is_read_up_to_the_samples():
    endless = ({"x": floats(1, 3, 8, 8)} for _ in iter(int, 1))
    assert len(open_feeds(endless, [X], samples=3)) == 3


def test_free_sizes_may_vary_from_sample_to_sample():
    spec = InputSpec("x", (None, 3, None, None))
    sizes = [{"x": floats(1, 3, side, side)} for side in (4, 6)]
    assert [x.shape[-1] for x in values(open_feeds(sizes, [spec]))] == [4, 6]


def test_describe_first():
    feeds = open_feeds({"x": np.full((1, 3, 8, 8), 255.0)}, [X])
    assert describe_first(feeds) == [("x", (1, 3, 8, 8), 255.0, 255.0, 255.0)]
    with pytest.raises(DataError):
        describe_first(Feeds.of([]))


def cut_png(folder):
    image_folder(folder, ["a.png", "cut.png"])
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def empty_folder(folder):
    (folder / "readme.txt").write_text("no images here")
    return folder


def both_kinds(folder):
    np.save(folder / "a.npy", floats(3, 8, 8))
    return image_folder(folder, ["a.png"])


def pickled(folder):
    np.save(folder / "p.npy", np.array([{}, {}]), allow_pickle=True)
    return folder / "p.npy"


def text_as_npy(folder):
    (folder / "t.npy").write_text("hello")
    return folder / "t.npy"


def bomb(folder):
    archive = zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("x.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    return folder / "bomb.npz"


def with_nan(folder):
    array = floats(4, 3, 8, 8)
    array[2, 0, 0, 0] = np.nan
    np.save(folder / "n.npy", array)
    return folder / "n.npy"


def npy(name, array):
    def make(folder):
        np.save(folder / name, array)
        return folder / name

    return make


def npz(name, **arrays):
    return lambda folder: save(folder / name, **arrays)


def failing():
    yield {"x": floats(1, 3, 8, 8)}
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", ["nowhere", "does not exist"]),
        (empty_folder, ["no images", "1 other files"]),
        (both_kinds, ["1 images and 1 array files"]),
        (cut_png, ["cut.png", "take it out"]),
        (lambda f: (f / "a.csv").write_text("1") and f / "a.csv", ["a.csv", "neither"]),
        (pickled, ["p.npy", "without Python objects"]),
        (text_as_npy, ["t.npy"]),
        (bomb, ["bomb.npz", "300 MiB"]),
        (with_nan, ["n.npy, sample 2", "input x", "NaN"]),
        (npy("r.npy", floats(5, 8)), ["r.npy", "[?, 3, 8, 8]", "[5, 8]"]),
        (npy("d.npy", floats(5, 3, 9, 8)), ["sample 0", "[1, 3, 8, 8]", "[1, 3, 9, 8]"]),
        (npy("u.npy", bytes_(5, 8, 8, 3)), ["u.npy", "input x", "--preprocess"]),
        (npy("u.npy", bytes_(5, 3, 8, 8)), ["float32", "uint8", "--preprocess"]),
        (npy("i.npy", np.ones((5, 3, 8, 8), np.int64)), ["int64", ".astype('float32')"]),
        (npy("h.npy", np.full((1, 3, 8, 8), 1e300)), ["finite float32"]),
        (npy("z.npy", floats(0, 3, 8, 8)), ["z.npy", "no samples"]),
        (npz("k.npz", a=floats(2, 3, 8, 8), b=floats(2, 2)), ["a, b", "inputs are x"]),
        (npz("e.npz", x=floats(2, 3, 8, 8), b=floats(2, 2)), ["gives b", "inputs are x"]),
        (npz("l.npz", x=floats(2, 3, 8, 8), y=np.arange(3)), ["2 integer labels"]),
        (lambda _: iter([]), ["no samples"]),
        (lambda _: failing(), ["item 1", "RuntimeError: the disk is gone"]),
        (lambda _: [floats(1, 3, 8, 8)], ["item 0", "{name: array}"]),
        (lambda _: [{"q": floats(1, 3, 8, 8)}], ["item 0 gives q", "inputs are x"]),
        (lambda _: 7, ["int", "CalibrationDataReader"]),
        (lambda _: OrtReader([]), ["no samples"]),
    ],
)
def test_bad_data_is_a_data_error_that_names_it(tmp_path, make, said):
    with pytest.raises(DataError) as caught:
        list(open_feeds(make(tmp_path), [X]))
    assert caught.value.exit_code == 4
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_missing_and_uneven_inputs():
    two = [X, InputSpec("m", (None, 2))]
    with pytest.raises(DataError, match=r"lacks input m"):
        open_feeds({"x": floats(2, 3, 8, 8)}, two)
    with pytest.raises(DataError, match=r"2 samples of input m and 3"):
        open_feeds({"x": floats(3, 3, 8, 8), "m": floats(2, 2)}, two)


def test_images_feed_one_input_only(tmp_path):
    with pytest.raises(DataError, match=r"has 2: x, m"):
        open_feeds(image_folder(tmp_path, ["a.png"]), [X, InputSpec("m", (1, 2))])
    with pytest.raises(DataError, match=r"cannot read images"):
        open_feeds(tmp_path, [InputSpec("ids", (1, 4), np.dtype(np.int64))])


def test_too_few_samples_for_one_batch():
    with pytest.raises(DataError, match=r"takes 4 samples at a time, found 3"):
        open_feeds({"x": floats(3, 3, 8, 8)}, [InputSpec("x", (4, 3, 8, 8))])


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"z": (1, 3, 8, 8)}, "'z', which is no input"),
        ({"x": (3, 8, 8)}, "has 3 dims, the model wants 4"),
        ({"x": (1, 3, 9, 8)}, "contradicts a fixed dim"),
        ({"x": (0, 3, 8, 8)}, "below 1"),
    ],
)
def test_a_wrong_input_shape(shapes, said):
    with pytest.raises(ConfigError) as caught:
        open_feeds("random", [X], shapes=shapes)
    assert caught.value.exit_code == 2
    assert said in str(caught.value)


def test_free_height_and_width_need_a_shape(tmp_path):
    free = InputSpec("pic", (None, 3, None, None))
    image_folder(tmp_path, ["a.png"])
    for source in (tmp_path, "random"):
        with pytest.raises(ConfigError, match=r"pic.*--input-shape pic:1,3,224,224"):
            open_feeds(source, [free])
    shaped = open_feeds(tmp_path, [free], shapes={"pic": (1, 3, 8, 8)})
    assert next(iter(shaped))["pic"].shape == (1, 3, 8, 8)
    cropped = open_feeds(tmp_path, [free], preprocess=Recipe(crop=6))
    assert next(iter(cropped))["pic"].shape == (1, 3, 6, 6)


def test_options_are_checked_before_data(tmp_path):
    with pytest.raises(ConfigError, match=r"0 samples"):
        open_feeds("random", [X], samples=0)
    with pytest.raises(ConfigError, match=r"nope\.toml"):
        open_feeds(tmp_path, [X], preprocess=str(tmp_path / "nope.toml"))


@pytest.mark.parametrize("text", ["x:1,3,8,8", "x:1x3x8x8"])
def test_parse_input_shape(text):
    assert parse_input_shape(text) == ("x", (1, 3, 8, 8))


def test_parse_input_shape_keeps_colons_of_names():
    assert parse_input_shape("in:0:1,3") == ("in:0", (1, 3))


@pytest.mark.parametrize("text", ["", "x", "x:", ":1,2", "x:1,,2", "x:a"])
def test_parse_input_shape_refuses(text):
    with pytest.raises(CompileError, match=r"write --input-shape"):
        parse_input_shape(text)
