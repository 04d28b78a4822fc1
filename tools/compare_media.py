"""Files for `compare_versions.py`: videos, images, label files, tables of scores and checkpoints, made without `sama`.

Nothing here needs the package, so that both versions are given the same bytes.
"""

from __future__ import annotations

import csv
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.append(str(TESTS))

from videos import picture, set_display_matrix, write_audio, write_video  # noqa: E402

QUIET = {"x265-params": "log-level=none"}
CODECS = {  # file name: codec and what `write_video` is given beside it
    "h264.mp4": (
        "libx264",
        {"size": (192, 128), "num_frames": 72, "options": {"bf": "3", "g": "12"}},
    ),
    "open-gop.mkv": ("libx264", {"options": {"x264-params": "open-gop=1:keyint=10:bframes=3:log-level=none"}}),
    "hevc.mkv": ("libx265", {"size": (320, 240), "options": {"x265-params": "log-level=none:keyint=15"}}),
    "vp9.webm": ("libvpx-vp9", {"size": (128, 96), "num_frames": 30}),
    "av1.mkv": ("libsvtav1", {"size": (128, 96), "num_frames": 20}),
    "mpeg4.avi": ("mpeg4", {"options": {"bf": "2", "g": "10"}}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p", "num_frames": 12}),
    "variable.mkv": ("libx264", {"times_ms": [40 * n + 7 * (n % 5) + 900 * (n > 20) for n in range(40)]}),
    "odd.webm": ("libvpx-vp9", {"size": (97, 63), "num_frames": 20}),
    "odd.avi": ("mjpeg", {"size": (51, 77), "pix_fmt": "yuvj420p", "num_frames": 6}),
    "ten-bit.mkv": (
        "libx265",
        {"pix_fmt": "yuv420p10le", "num_frames": 16, "options": QUIET},
    ),
    "444.mp4": ("libx264", {"pix_fmt": "yuv444p", "num_frames": 16}),
    "422.mp4": ("libx264", {"pix_fmt": "yuv422p", "num_frames": 16}),
    "rgb.mkv": ("ffv1", {"pix_fmt": "bgr0", "num_frames": 8}),
    "one-frame.mp4": ("libx264", {"num_frames": 1}),
    "tiny.mp4": ("libx264", {"size": (16, 16), "num_frames": 9}),
    "portrait.mp4": ("libx264", {"size": (270, 480), "num_frames": 24}),
    "hd.mp4": ("libx264", {"size": (1280, 720), "num_frames": 40, "options": {"preset": "ultrafast"}}),
    "large.mp4": ("libx264", {"size": (2560, 1440), "num_frames": 5, "options": {"preset": "ultrafast"}}),
    "transport.ts": ("libx264", {"num_frames": 30, "options": {"g": "10"}}),
}


def videos(folder: Path) -> None:
    """Videos of many kinds, broken ones among them."""
    folder.mkdir()
    for name, (codec, settings) in CODECS.items():
        try:
            write_video(folder / name, codec, **settings)
        except Exception as error:  # an encoder that this machine lacks
            print(f"{name} is left out: {error}", file=sys.stderr)
            (folder / name).unlink(missing_ok=True)
    turned = {"turned.mp4": (0, 1, -1, 0), "upside-down.mp4": (-1, 0, 0, -1), "mirrored.mp4": (-1, 0, 0, 1)}
    for name, matrix in turned.items():
        set_display_matrix(write_video(folder / name, "libx264", num_frames=16), *matrix)
    write_audio(folder / "sound.mp4")
    whole = (folder / "open-gop.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "cut.mp4").write_bytes((folder / "h264.mp4").read_bytes()[:3000])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video at all\n" * 50)


def images(folder: Path) -> None:
    """Images of many kinds, broken ones among them."""
    folder.mkdir()
    rgb = Image.fromarray(picture(3, 300, 220))
    deep = (picture(5, 90, 70)[..., 0].astype(np.uint16) << 8) + 77
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "plain.jpg", quality=90)
    rgb.save(folder / "progressive.jpg", progressive=True, subsampling=2, quality=40)
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.save(folder / "plain.png")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(picture(9, 300, 220)[..., 1]))
    alpha.save(folder / "alpha.png")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tiff")
    rgb.save(folder / "lossy.webp", quality=60)
    rgb.save(folder / "still.gif")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(picture(4, 300, 220))])
    rgb.save(folder / "plain.bmp")
    Image.fromarray(picture(1, 1, 1)).save(folder / "one-pixel.png")
    Image.fromarray(picture(2, 700, 9)).save(folder / "wide.png")
    Image.fromarray(picture(2, 3, 2500)).save(folder / "narrow.png")
    Image.fromarray(picture(6, 1500, 1100)).save(folder / "large.jpg")
    (folder / "broken.png").write_bytes((folder / "plain.png").read_bytes()[:5000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image at all\n" * 50)


def rows(path: Path, entries: list[dict]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)


def labels(folder: Path) -> None:
    """Small labelled sets of videos and images, a label file with mistakes, and a table of scores with its labels."""
    folder.mkdir()
    clips, photographs = [], []
    for k in range(10):
        split = {3: "val", 8: "val", 5: "test", 9: "test"}.get(k, "train")
        labelled = {"mos": round(90 - 7.3 * k, 2), "content": f"c{k}", "split": split}
        write_video(folder / f"{k}.mp4", "libx264", size=(64, 48), num_frames=8, options={"crf": str(10 + 4 * k)})
        Image.fromarray(picture(k, 80 + 3 * k, 64)).save(folder / f"{k}.png")
        clips.append({"path": f"{k}.mp4", **labelled})
        photographs.append({"path": f"{k}.png", **labelled})
    rows(folder / "clips.csv", clips)
    rows(folder / "photographs.csv", photographs)
    (folder / "copy.mp4").write_bytes((folder / "1.mp4").read_bytes())
    (folder / "broken.mp4").write_bytes(b"nothing")
    wrong = [{"path": name, "mos": 3, "content": "", "split": "val"} for name in ("copy.mp4", "broken.mp4", "lost.mp4")]
    rows(folder / "mistakes.csv", [*clips, clips[2], *wrong, {**clips[4], "mos": "good"}])
    (folder / "four-columns.txt").write_text("".join(f"{k}.mp4, -1, -1, {60 - k}\n" for k in range(10)))

    rng = np.random.default_rng(7)
    quality = rng.uniform(0, 100, 60)
    marked = [
        {"path": f"v{k}.mp4", "mos": f"{q:.4f}", "content": f"c{k // 3}", "split": "test", "kind": "abc"[k % 3]}
        for k, q in enumerate(quality)
    ]
    rows(folder / "marked.csv", marked)
    noisy = np.tanh((quality - 50) / 40) + rng.normal(0, 0.2, 60)
    scores = [{"path": entry["path"], "status": "ok", "score": float(s)} for entry, s in zip(marked, noisy)]
    scores[11] = {"path": "v11.mp4", "status": "error", "score": "", "reason": "cannot be opened"}
    entries = [{"reason": "", "model": "some model", "settings": "some settings", **entry} for entry in scores]
    rows(folder / "scores.csv", entries[:-1])


def published(kind: str) -> dict[str, torch.Tensor]:
    """Random weights under the published names of the "vqa" or "iqa" model."""
    parameters = json.loads((TESTS / "data" / f"{kind}_model.json").read_text())["parameters"]
    return {name: weight(name, shape) for name, shape in parameters.items()}


def weight(name: str, shape) -> torch.Tensor:
    """Random values that keep a network's activations finite and let every parameter count; they depend on the name."""
    values = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if "logit_scale" in name:
        return 2 + 0.1 * values
    if values.ndim == 1:
        return 0.1 * values + float("norm" in name and name.endswith("weight"))
    return values * (0.5 if "bias_table" in name else values[0].numel() ** -0.5)


def renamed(state: dict, *pairs: tuple[str, str]) -> dict:
    """The state with the beginnings of names changed: the first pair that fits; without a second part it is dropped."""
    out = {}
    for name, value in state.items():
        old, new = next(((old, new) for old, new in pairs if name.startswith(old)), ("", ""))
        if new is not None:
            out[new + name.removeprefix(old)] = value
    return out


def checkpoints(folder: Path) -> None:
    """The checkpoints that people hold, of the published size, under the published file names."""
    from torchvision.models.video import swin3d_t

    folder.mkdir()
    video, image = published("vqa"), published("iqa")
    index = {"fragments_backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(2, 2, dtype=torch.long)}
    torch.save({"state_dict": video | index}, folder / "FAST_VQA_B_1_4.pth")
    results = {"srocc": np.float64(0.8827), "best": np.int64(3), "plain": 0.5, "ok": np.True_}
    content = {"state_dict": video | index, "validation_results": results}
    torch.save(content, folder / "SAMA-baseline_val-ltest_s_dev_v0.0.pth")
    dover = renamed(video, ("fragments_backbone.", "technical_backbone."), ("vqa_head.", "technical_head."))
    torch.save(dover | {"aesthetic_head.fc_hid.weight": torch.ones(2, 2)}, folder / "DOVER.pth")
    k400 = {name: value for name, value in video.items() if "fragment_position" not in name}
    k400 = renamed(k400, ("fragments_backbone.", "backbone."), ("vqa_head.", None))
    content = {"meta": {"epoch": 30}, "state_dict": k400 | {"cls_head.fc_cls.weight": torch.ones(400, 768)}}
    torch.save(content, folder / "swin_tiny_patch244_window877_kinetics400_1k.pth")
    torch.save({"state_dict": image}, folder / "sama-image.pth")
    bare = renamed(image, ("vqa_head.", None), ("backbone.head.", None), ("backbone.", ""))
    torch.save({"model": bare | {"head.weight": torch.ones(1000, 768)}}, folder / "swinv2_tiny_patch4_window8_256.pth")
    moved = [(f"layers.{k}.downsample", f"layers.{k + 1}.downsample") for k in range(3)]
    torch.save(renamed(bare, *moved) | {"head.fc.weight": torch.ones(1000, 768)}, folder / "swinv2-timm.pth")
    torch.manual_seed(0)
    torch.save(swin3d_t().state_dict(), folder / "swin3d_t.pth")
    torch.save({"epoch": 3, "state_dict": {"layer1.weight": torch.zeros(1)}}, folder / "unknown.pth")
    (folder / "page.pth").write_text("<html>Not found</html>")


def make(folder: Path) -> None:
    """All of it."""
    folder.mkdir()
    for part in (videos, images, labels, checkpoints):
        part(folder / part.__name__)
