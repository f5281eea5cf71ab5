# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qhyvit_onnx.data.image_input import image_input
from qhyvit_onnx.data.images import read_rgb
from qhyvit_onnx.data.input_spec import InputSpec
from qhyvit_onnx.data.preprocess import PRESETS, Color, Layout, Recipe, load_recipe
from qhyvit_onnx.errors import ConfigError, DataError

GOLDEN = Path(__file__).parent / "golden" / "preprocess" / "timm.npz"
TWO_STEPS = (
    5e-7  # values reach 2.7, where float32 steps are 2.4e-7; timm rounds after each operation
)


def pixels(height=20, width=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("index", range(4))
def test_presets_equal_timm(preset, index):
    # timm.data.create_transform((3, 15, 15), is_training=False), images of four aspect ratios
    with np.load(GOLDEN) as golden:
        image, want = golden[f"image_{index}"], golden[f"{preset}_{index}"]
    got = load_recipe(preset, (15, 15)).apply(image)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TWO_STEPS)


def test_an_input_that_is_not_square_gets_its_exact_size():
    recipe = load_recipe("unit", (48, 320))
    assert recipe.apply(pixels(100, 333)).shape == (1, 3, 48, 320)
    assert recipe.size == (48, 320)


def test_a_preset_without_size_changes_no_pixel():
    got = load_recipe("unit").apply(pixels())
    np.testing.assert_allclose(got[0].transpose(1, 2, 0) * 255, pixels(), atol=1e-4)


def test_colour_layout_and_gray():
    image = pixels()
    rgb = Recipe().apply(image)
    np.testing.assert_array_equal(Recipe(color=Color.BGR).apply(image), rgb[:, ::-1])
    nhwc = Recipe(layout=Layout.NHWC).apply(image)
    np.testing.assert_array_equal(nhwc, rgb.transpose(0, 2, 3, 1))
    gray = Recipe(color=Color.GRAY, mean=(0.3, 0.5, 0.7), std=(0.5, 0.5, 0.5)).apply(image)
    luma = np.asarray(Image.fromarray(image).convert("L")) / 255
    np.testing.assert_allclose(gray[0, 0], (luma - 0.5) / 0.5, atol=1e-6)


def test_a_toml_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'resize = 0\ncrop = 0\ninterpolation = "bicubic"\ncolor = "rgb"\n'
        "scale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
        'layout = "nchw"\n'
    )
    assert load_recipe(path) == PRESETS["imagenet"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("resize = 1.5", "resize"),
        ('resize = "256"', "resize"),
        ("resize = true", "resize"),
        ("resise = 256", "resise"),
        ("mean = [0.0, 0.0]", "mean"),
        ('color = "cmyk"', "color"),
        ("std = [0, 1, 1]", "std"),
        ("scale = nan", "scale"),
        ("resize = -1", "resize"),
        ("resize = 100\ncrop = 200", "crop"),
        ("size = [48, 320]\ncrop = 48", "size"),
        ("resize 256", "line 1"),
        ("when = 2020-01-01", "when"),
    ],
)
def test_a_bad_toml_file_names_file_and_key(tmp_path, text, named):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml") as caught:
        load_recipe(str(path))
    assert named in str(caught.value)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match=r"'imagnet'.*imagenet, unit, symmetric"):
        load_recipe("imagnet")


def test_a_crop_larger_than_the_image():
    with pytest.raises(DataError, match=r"20x30, too small for a crop of 32"):
        Recipe(crop=32).apply(pixels())


def test_describe_is_one_line():
    text = load_recipe("imagenet", (224, 224)).describe()
    assert "\n" not in text
    assert text.startswith("resize short side 256, centre crop 224, bicubic, rgb")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    source = Image.fromarray(pixels(8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    else:
        image = source.convert("L").convert(mode) if mode == "LA" else source.convert(mode)
    path = tmp_path / ("i.tif" if mode in ("CMYK", "YCbCr", "LA") else "i.png")
    image.save(path)
    got = read_rgb(path)
    assert got.mode == "RGB"
    if mode == "I;16":
        np.testing.assert_array_equal(np.asarray(got)[..., 0], np.asarray(source.convert("L")))


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels(8, 16)).save(tmp_path / "i.png", exif=exif)
    assert read_rgb(tmp_path / "i.png").size == (8, 16)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "i.gif", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "i.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "bomb", "float"])
def test_a_bad_image_names_the_file(tmp_path, monkeypatch, damage):
    path = tmp_path / ("bad.tif" if damage == "float" else "bad.png")
    Image.fromarray(pixels(64, 64)).save(path)
    content = path.read_bytes()
    if damage == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    else:
        path.write_bytes({"empty": b"", "text": b"no image", "cut": content[:5000]}[damage])
    with pytest.raises(DataError, match=r"bad\."):
        read_rgb(path)


@pytest.mark.parametrize(
    ("shape", "layout", "color"),
    [
        ((None, 3, 32, 32), Layout.NCHW, Color.RGB),
        ((1, 32, 32, 3), Layout.NHWC, Color.RGB),
        ((1, 1, 32, 32), Layout.NCHW, Color.GRAY),
        ((None, None, 32, 32), Layout.NCHW, Color.RGB),
    ],
)
def test_presets_take_axes_and_channels_from_the_input(shape, layout, color):
    target = image_input(InputSpec("x", shape), None)
    assert (target.recipe.layout, target.recipe.color) == (layout, color)
    out = target.read(pixels(), "array")
    assert all(want in (None, got) for want, got in zip(shape[1:], out.shape[1:], strict=True))


def test_an_8_bit_input_reads_raw_pixels():
    spec = InputSpec("x", (1, 20, 20, 3), np.dtype(np.uint8))
    out = image_input(spec, Recipe(crop=20, layout=Layout.NHWC, mean=(1, 1, 1))).read(pixels(), "a")
    np.testing.assert_array_equal(out[0], pixels()[:, 5:25])
    assert out.dtype == np.uint8


@pytest.mark.parametrize(
    ("spec", "recipe", "message"),
    [
        (InputSpec("x", (1, 3, None, 32)), None, "--input-shape x:1,3,224,32"),
        (InputSpec("x", (None, None, None, 3)), "unit", "--input-shape x:1,224,224,3"),
        (InputSpec("x", (1, 3, None, None)), Recipe(resize=32), "--input-shape"),
        (InputSpec("x", (1, 3, 64, 64)), Recipe(crop=32), "makes 32x32 images, input x wants"),
        (InputSpec("x", (1, 32, 32, 3)), Recipe(crop=32), "layout nchw"),
        (InputSpec("x", (1, 4, 32, 32)), None, "1 or 3 channels"),
        (InputSpec("x", (1, 3, 32, 32)), Recipe(crop=32, color=Color.GRAY), "gray"),
    ],
)
def test_a_recipe_that_does_not_fit_the_input(spec, recipe, message):
    with pytest.raises(ConfigError) as caught:
        image_input(spec, recipe)
    assert message in str(caught.value)


def test_an_image_of_another_size_without_resize_says_so():
    target = image_input(InputSpec("x", (1, 3, 32, 32)), Recipe())
    with pytest.raises(DataError, match=r"p\.png is 20x30.*x wants \[32, 32\].*set resize"):
        target.read(pixels(), "p.png")
