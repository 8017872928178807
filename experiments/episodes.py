"""episodes.py -- where few-shot episodes come from.                             [L23, Sec. 5.2]

A source has splits "train", "val" and "test", of disjoint classes (3D Shapes: images), and
    sample(rng, split, way, shot, query) -> index (n,), Y (n, way)
        one-hot labels; the way * shot support samples first, then way * query others
    check(split, way, shot, query)
        ValueError where there are no such episodes, or sample may fail to find one at some step
    images(split, index, xp, device, rng=None) -> x (n, H, W, C) float32 in [0, 1]
        augmented where rng is given (3D Shapes: not)
    image_shape

Labelled images are a dict split -> (images (N, H, W, C) uint8, class names (N,)): glyphs, omniglot
and load_splits make one, and ImageEpisodes draws from it. ShapesEpisodes draws from 3D Shapes.
"""
import hashlib
import io
import unicodedata
import zipfile
from pathlib import Path

import array_api_compat.numpy
import numpy as np
from matplotlib import ft2font, get_data_path
from PIL import Image

import data


class ImageEpisodes:
    """Episodes from labelled images, augmented by shifts of up to `shift` pixels and, where colour
    is set, flips and jitter of brightness, contrast and saturation.       [Lee et al. 2019]
    """

    def __init__(self, splits, shift=2, colour=False):
        self.x = {split: x for split, (x, _) in splits.items()}
        self.members = {split: rows_of_classes(labels) for split, (_, labels) in splits.items()}
        self.shift, self.colour = shift, colour
        self.image_shape = self.x["train"].shape[1:]

    def sample(self, rng, split, way, shot, query):
        members = [rows for rows in self.members[split] if len(rows) >= shot + query]
        if len(members) < way:
            raise ValueError(
                f"--way, --shot, --query: {way} classes with {shot} + {query} images each are "
                f"needed, the {split} split has {len(members)}")
        picked = rng.choice(len(members), way, replace=False)
        rows = [rng.choice(members[c], shot + query, replace=False) for c in picked]
        return support_first(np.stack(rows), shot)

    def check(self, split, way, shot, query):
        self.sample(np.random.default_rng(0), split, way, shot, query)

    def images(self, split, index, xp=array_api_compat.numpy, device=None, rng=None):
        x = self.x[split][index]
        if rng is not None:
            x = shift_images(rng, x, self.shift)
            x = jitter_colours(rng, x) if self.colour else x
        return xp.astype(xp.asarray(x, device=device), xp.float32) / 255


def support_first(index, shot):
    """index (k, shot + query) of each class's samples -> index (n,) and Y (n, k) one-hot, all
    classes' first `shot` samples first."""
    k = len(index)
    labels = np.broadcast_to(np.arange(k)[:, None], index.shape)
    index = np.concatenate([index[:, :shot].ravel(), index[:, shot:].ravel()])
    labels = np.concatenate([labels[:, :shot].ravel(), labels[:, shot:].ravel()])
    return index, np.eye(k)[labels]


def rows_of_classes(labels):
    """The rows of each class, in the order of the class names."""
    return [np.flatnonzero(labels == name) for name in np.unique(labels)]


def shift_images(rng, x, pad):
    """Each image of (N, H, W, C) moved by up to `pad` pixels, its border repeated."""
    N, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    down, right = rng.integers(2 * pad + 1, size=(2, N))
    moved = zip(padded, down, right, strict=True)
    return np.stack([image[a:a + H, b:b + W] for image, a, b in moved])


def jitter_colours(rng, x, strength=0.4):
    """Half of the images mirrored; brightness, contrast and saturation scaled by 0.6 to 1.4 each.

    In this order (MetaOptNet: in a random order, and borders of zeros).
    """
    N = len(x)
    keep = rng.random(N)[:, None, None, None] < 0.5
    x = np.where(keep, x, x[:, :, ::-1]).astype(np.float32)
    factors = rng.uniform(1 - strength, 1 + strength, (3, N, 1, 1, 1)).astype(np.float32)
    brightness, contrast, saturation = factors
    x = np.clip(x * brightness, 0, 255)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = np.clip(mean + contrast * (x - mean), 0, 255)
    grey = x.mean(axis=3, keepdims=True)
    return np.clip(grey + saturation * (x - grey), 0, 255).astype(np.uint8)


def with_noise(splits, deviation, seed=0):
    """Grey values with Gaussian noise of a deviation in [0, 1], drawn once, cut at black and white.
    """
    rng, noisy = np.random.default_rng(seed), {}
    for split, (x, labels) in splits.items():
        values = x + 255 * deviation * rng.standard_normal(x.shape, dtype=np.float32)
        noisy[split] = np.clip(values, 0, 255).astype(np.uint8), labels
    return noisy


def refuse_shared(splits):
    """The splits, unless two of them share a class, by its name or by any of its images."""
    for what, pick in (("a class", class_names), ("an image", image_hashes)):
        found = [value for x, labels in splits.values() for value in pick(x, labels)]
        if len(set(found)) < len(found):
            raise ValueError(f"two splits share {what}")
    return splits


def without_repeats(splits):
    """The splits without the images that an earlier split has too."""
    seen, out = set(), {}
    for split, (x, labels) in splits.items():
        digests = [hashlib.sha256(image).digest() for image in x]
        new = np.array([digest not in seen for digest in digests])
        out[split] = x[new], labels[new]
        seen |= set(digests)
    return out


def class_names(x, labels):
    """The names of the classes."""
    return set(labels.tolist())


def image_hashes(x, labels):
    """A digest of every image."""
    return {hashlib.sha256(image).digest() for image in x}


# ------------------------------------------------------------------------------ glyphs

STYLES = {
    "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "Serif": ("", "-Bold", "-Italic", "-BoldItalic")}
STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
SPLIT_OF_SCRIPT = {"LATIN": "train", "GREEK": "val", "DIGIT": "val", "CYRILLIC": "test"}


def glyphs(side=28):
    """Letters and digits of 16 fonts that matplotlib ships, split by script: Latin to train, Greek
    and digits to validate, Cyrillic to test.

    A class is a character, its images the fonts; a character that looks like an earlier one in
    some font is left out.
    """
    fonts = load_fonts(0.75 * side)
    common = sorted(set.intersection(*(set(font.get_charmap()) for font in fonts)))
    images = {split: [] for split in ("train", "val", "test")}
    labels = {split: [] for split in images}
    seen = set()
    for script, split in SPLIT_OF_SCRIPT.items():
        for code in (code for code in common if script_of(code) == script):
            drawn = [draw_glyph(font, code, side) for font in fonts]
            outlines = {image.tobytes() for image in drawn}
            if not outlines & seen:
                seen |= outlines
                images[split] += drawn
                labels[split] += [chr(code)] * len(drawn)
    return refuse_shared({
        split: (np.stack(images[split])[..., None], np.array(labels[split])) for split in images})


def load_fonts(size):
    """The 16 fonts at a size in pixels."""
    folder = Path(get_data_path()) / "fonts" / "ttf"
    names = [f"DejaVu{family}{style}" for family, styles in STYLES.items() for style in styles]
    fonts = [ft2font.FT2Font(str(folder / f"{name}.ttf")) for name in (*names, *STIX)]
    for font in fonts:
        font.set_size(size, 72)
    return fonts


def script_of(code):
    """LATIN, GREEK, ... of a letter or digit, "" of any other character."""
    if unicodedata.category(chr(code)) not in ("Lu", "Ll", "Nd"):
        return ""
    return unicodedata.name(chr(code), "").split(" ")[0]


def draw_glyph(font, code, side):
    """A character in white on black, centred in (side, side) uint8."""
    font.set_text(chr(code))
    font.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = np.asarray(font.get_image())
    ink = np.argwhere(bitmap)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0) + 1
    bitmap = bitmap[top:bottom, left:right][:side, :side]
    H, W = bitmap.shape
    row, column = (side - H) // 2, (side - W) // 2
    out = np.zeros((side, side), np.uint8)
    out[row:row + H, column:column + W] = bitmap
    return out


# ------------------------------------------------------------------------------ Omniglot


def omniglot(paths, side=28, seed=0):
    """Omniglot's zips as distributed, merged by alphabet and split by alphabet, 5 : 1 : 2.

    Training characters turned by 90, 180 and 270 degrees are classes of their own.
    ValueError names a zip of another form.       [Lake et al. 2015; Santoro et al. 2016]
    """
    alphabets = {}
    for path in paths:
        read_omniglot(path, alphabets, side)
    names = np.random.default_rng(seed).permutation(sorted(alphabets))
    count = len(names)
    if count < 3:
        files = ", ".join(map(str, paths))
        raise ValueError(f"{files}: at least 3 alphabets are needed to split by, found {count}")
    train = min(max(1, round(count * 5 / 8)), count - 2)
    val = train + max(1, round(count / 8))
    parts = {"train": names[:train], "val": names[train:val], "test": names[val:]}
    splits = {split: labelled(alphabets, own) for split, own in parts.items()}
    splits["train"] = with_rotations(*splits["train"])
    return refuse_shared(without_repeats(splits))


def read_omniglot(path, alphabets, side):
    """Adds the images of a zip to alphabets, a dict alphabet -> character -> drawer -> image.

    What macOS adds to zips, __MACOSX/ and ._NAME, is left out.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for name in sorted(file.namelist()):
                parts = name.split("/")
                hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
                if name.endswith(".png") and not hidden:
                    alphabet, character, drawer = parts[-3:]
                    drawers = alphabets.setdefault(alphabet, {}).setdefault(character, {})
                    drawers[drawer] = read_drawing(file.read(name), side)
    except Exception as error:                                      # of zips and PNGs, many
        raise ValueError(
            f"{path}: expected a zip of ALPHABET/CHARACTER/DRAWER.png as Omniglot's ({error!r})"
        ) from None


def read_drawing(content, side):
    """An image, white on black, (side, side) uint8; PNG only: for others Pillow runs helpers."""
    picture = Image.open(io.BytesIO(content), formats=["PNG"])
    if max(picture.size) > 1000:
        raise ValueError(f"an image of {picture.size} pixels")
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return 255 - np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX))


def labelled(alphabets, names):
    """Images (N, side, side, 1) and class names ALPHABET/CHARACTER (N,) of some alphabets."""
    images, labels = [], []
    for alphabet in names:
        for character, drawers in alphabets[alphabet].items():
            images += drawers.values()
            labels += [f"{alphabet}/{character}"] * len(drawers)
    return np.stack(images)[..., None], np.array(labels)


def with_rotations(x, labels):
    """Images turned four times, each turn a class of its own."""
    turned = [np.rot90(x, k, axes=(1, 2)) for k in range(4)]
    names = [np.char.add(labels, f"/{90 * k}") for k in range(4)]
    return np.concatenate(turned), np.concatenate(names)


# ------------------------------------------------------------------------------ files of images


def load_split(path):
    """data (N, H, W, 3) uint8 and labels (N,), as text, of an npz file; ValueError names one of
    another form."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, labels = file["data"], file["labels"]
            names = labels.astype(str)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:                                      # zips fail in many ways
        raise ValueError(f"{path}: not an npz file with data and labels ({error!r})") from None
    images = x.ndim == 4 and x.shape[3] == 3 and x.dtype == np.uint8 and 0 not in x.shape
    if not images or labels.shape != x.shape[:1] or labels.dtype.kind not in "iuSU":
        raise ValueError(
            f"{path}: expected data (N, H, W, 3) uint8 and labels (N,), integers or text, "
            f"found {x.shape} {x.dtype} and {labels.shape} {labels.dtype}")
    return x, names


PATTERNS = {"train": ("*_phase_train.npz", "*train.npz"), "val": ("*val.npz",),
            "test": ("*test.npz",)}


def load_splits(folder):
    """The three splits of a folder of npz files, such as MetaOptNet's miniImageNet, tieredImageNet,
    CIFAR-FS and FC100 become (docs/few-shot-and-sharing.md)."""
    splits = {}
    for split, patterns in PATTERNS.items():
        files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
        files = [path for path in files if not path.name.startswith(".")]       # macOS's ._NAME
        if split != "train":  # miniImageNet has parts of the training classes under such names
            files = [path for path in files if "_train_phase_" not in path.name]
        if not files:
            raise ValueError(f"{folder}: no {split} split, expected a file like "
                             f"{' or '.join(patterns)}{of_pickles(folder)}")
        if len(set(files)) > 1:
            raise ValueError(f"{folder}: found several files of the {split} split, "
                             f"{', '.join(sorted({path.name for path in files}))}; expected one")
        x, labels = load_split(files[0])
        splits[split] = x, np.char.add(f"{split}/", labels)         # each counts from 0
    sides = {split: x.shape[1:3] for split, (x, _) in splits.items()}
    if len(set(sides.values())) > 1:
        raise ValueError(f"{folder}: splits have images of different sizes, {sides}")
    apart = without_repeats(splits)
    for split, (x, _) in splits.items():
        if len(apart[split][0]) < 0.99 * len(x):
            raise ValueError(f"{folder}: images of the {split} split are those of another, too")
    return apart


def of_pickles(folder):
    """What to do with pickles, where a folder has some: they are not read, for they run code."""
    if not any(path.suffix in (".pickle", ".pkl") for path in Path(folder).glob("*")):
        return ""
    return ("; of each pickle that you trust: content = pickle.load(open(PATH, 'rb'), "
            "encoding='latin1'); numpy.savez(PATH.removesuffix('.pickle'), data=content['data'], "
            "labels=content['labels'])")


# ------------------------------------------------------------------------------ 3D Shapes


class ShapesEpisodes:
    """Episodes of 3D Shapes whose classes are sparse linear functions of the standardised factors
    z, what [L23] assumes of its tasks: argmax_l W_l.z, W_l Gaussian on one to three factors.

    Training, validation and test have 70, 10 and 20 % of the images.
    """

    def __init__(self, shapes, seed=0):
        self.shapes, self.image_shape = shapes, (data.SIDE, data.SIDE, 3)
        self.z, _ = data.latents(shapes, alpha=0.0, rho=0.0)
        N = len(shapes)
        order = np.random.default_rng(seed).permutation(N)
        train, val, test = np.split(order, [7 * N // 10, 8 * N // 10])
        self.members = {"train": train, "val": val, "test": test}

    def sample(self, rng, split, way, shot, query):
        for _ in range(20_000):                                     # 0.3 ms each
            classes = self.draw(rng, split, way, shot + query)
            if classes:
                rows = [rng.permutation(members)[:shot + query] for members in classes]
                return support_first(np.stack(rows), shot)
        self.refuse(way, shot, query)

    def draw(self, rng, split, way, size):
        """The rows of each class of some images; None where a class has fewer than `size`."""
        on = rng.choice(6, rng.integers(1, 4), replace=False)
        drawn = rng.choice(self.members[split], 6 * way * size)
        W = rng.standard_normal((len(on), way))                     # column l is W_l
        label = (self.z[drawn][:, on] @ W).argmax(axis=1)
        classes = [np.unique(drawn[label == c]) for c in range(way)]
        return classes if min(map(len, classes)) >= size else None

    def check(self, split, way, shot, query):
        rng = np.random.default_rng(0)
        found = sum(self.draw(rng, split, way, shot + query) is not None for _ in range(500))
        if found < 3:                                               # sample may fail, at some step
            self.refuse(way, shot, query)

    def refuse(self, way, shot, query):
        raise ValueError(
            f"--way, --shot, --query: {way} linear classes with {shot} + {query} images each are "
            "found in fewer than 3 of 500 draws; 2 or 3 ways are easy")

    def images(self, split, index, xp=array_api_compat.numpy, device=None, rng=None):
        return self.shapes.images(index, xp, device)
