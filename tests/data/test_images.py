"""The one image reader: every kind of file to uint8 RGB, and one line for those that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o_rl.data.images import read_image, read_text_chunks
from blip3o_rl.errors import UserError


def noisy(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """An image in which every pixel matters, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_all_kinds_of_images_become_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(noisy(8, 6))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.repeat([[0, 255, 128, 255, 0, 255, 255, 0]], 6, 0).astype(np.uint8)))
    weight = np.asarray(alpha)[..., 3:] / 255
    on_white = np.asarray(rgb) * weight + 255 * (1 - weight)
    palette = rgb.quantize(16)
    gray16 = Image.fromarray((np.arange(48).reshape(6, 8) * 1394).astype(np.uint16))
    kinds = {
        "rgb": (rgb, np.asarray(rgb), 0),
        "alpha": (alpha, on_white, 1),
        "palette": (palette, np.asarray(palette.convert("RGB")), 0),
        "gray": (rgb.convert("L"), np.asarray(rgb.convert("L"))[..., None].repeat(3, 2), 0),
        "gray-alpha": (rgb.convert("L").convert("LA"), np.asarray(rgb.convert("L"))[..., None].repeat(3, 2), 0),
        "bits": (rgb.convert("1"), np.asarray(rgb.convert("1").convert("RGB")), 0),
        "gray16": (gray16, np.round(np.asarray(gray16) / 257)[..., None].repeat(3, 2), 0),
    }
    for name, (image, expected, tolerance) in kinds.items():
        image.save(tmp_path / f"{name}.png")
        found = read_image(tmp_path / f"{name}.png")
        assert found.dtype == np.uint8 and found.shape == (6, 8, 3), name
        assert np.abs(found.astype(int) - expected).max() <= tolerance, name


def test_a_transparent_palette_entry_is_seen_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_a_camera_rotation_is_carried_out(tmp_path: Path) -> None:
    image = Image.fromarray(noisy(9, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    expected = image.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(expected))


def test_cmyk_and_a_camera_file_with_a_preview(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "camera.mpo", save_all=True, append_images=[image.resize((4, 4))])
    for name in ("cmyk.jpg", "camera.mpo"):
        found = read_image((tmp_path / name).read_bytes())
        assert found.shape == (16, 16, 3) and np.abs(found.astype(int) - np.asarray(image)).max() < 12


def test_files_that_are_no_single_image_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.fromarray(noisy(8, 8, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:120])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    words = {
        "animated.gif": "3 images in one file",
        "animated.png": "3 images in one file",
        "cut.png": "not readable",
        "text.jpg": "not readable",
        "empty.png": "not readable",
        "float.tiff": "mode F",
        "none.png": "no such file",
        ".": "no such file",
    }
    with pytest.raises(UserError, match="no such file"):
        read_image("~nobody-here/x.png")
    for name, expected in words.items():
        with pytest.raises(UserError, match=expected) as refusal:
            read_image(tmp_path / name)
        assert "\n" not in str(refusal.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="exceeds limit"):
        read_image(tmp_path / "whole.png")


def test_16_bit_gray_with_a_transparent_level_and_from_a_netpbm_file(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [255, 1, 255]
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + levels.astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 1, 255]


def test_an_image_is_memory_of_its_own_and_names_itself(tmp_path: Path) -> None:
    Image.fromarray(noisy(4, 4)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flags.writeable
    with pytest.raises(UserError, match=r"^row 3: not readable as an image"):
        read_image(b"text", "row 3")


def test_text_chunks(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("prompt", "a red cup 杯")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read_text_chunks(tmp_path / "a.png") == {"prompt": "a red cup 杯"}
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg")
    assert read_text_chunks(tmp_path / "a.jpg") == {}
    with pytest.raises(UserError, match="none.png"):
        read_text_chunks(tmp_path / "none.png")
