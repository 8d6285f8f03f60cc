"""Pictures: PNG, JPEG and BMP by Pillow, TIFF by tifffile, and numpy files."""

import zipfile

import numpy as np

from ._source import Source

#: Modes of Pillow whose values are of 16 bits.
WIDE = {"I;16", "I;16B", "I;16L", "I;16N"}
#: Tag of EXIF that says how a camera was held; values above 4 exchange height and width.
ORIENTATION = 0x0112
GREY = {"1", "L", "LA", "La", "I", "F"} | WIDE
ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


class Picture(Source):
    """File that Pillow reads; the orientation that a camera wrote into it (EXIF) is applied."""

    def open(self):
        from PIL import Image

        with open(self.path, "rb") as file:
            head = file.read(26)
        if head[:4] == b"\x89PNG" and head[24] == 16 and head[25] != 0:
            raise ValueError("Pillow would keep 8 of the 16 bits of this PNG of colours or alpha; give TIFF")
        with Image.open(self.path) as image:
            width, height = image.size
            # Asked of a PNG without it, getexif would decode the image.
            orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
            self.is_turned = orientation != 1
            self.size = (width, height) if orientation > 4 else (height, width)
            self.n_images = 1
            grey = image.mode in GREY or image.mode == "P" and has_grey_palette(image)
            self.channels = 1 if grey else 3
            self.has_alpha = image.mode in ALPHA or "transparency" in image.info
            wide = image.mode in WIDE or image.mode == "I" and image.format == "PNG"
            kind = "uint16" if wide else {"I": "int32", "F": "float32"}.get(image.mode, "uint8")
        self.dtype = np.dtype(kind)
        self.unit = kind

    def values(self, index):
        from PIL import Image, ImageOps

        with Image.open(self.path) as image:
            return self.pixels(ImageOps.exif_transpose(image) if self.is_turned else image)

    def pixels(self, image):
        if self.dtype != np.uint8:
            return np.asarray(image).astype(self.dtype)
        if "transparency" in image.info and image.mode == "P":
            image = image.convert("RGBA")  # else Pillow warns
        return np.asarray(image.convert("L" if self.channels == 1 else "RGB"))


def has_grey_palette(image):
    colours = np.reshape(image.getpalette("RGB"), (-1, 3))
    return bool((colours == colours[:, :1]).all())


class Tiff(Source):
    """TIFF, each of whose pages is an image."""

    def open(self):
        import tifffile

        with tifffile.TiffFile(self.path) as file:
            # A reduced page is a preview of another.
            kinds = [series for series in file.series if not series.keyframe.is_reduced]
            if len(kinds) != 1 or kinds[0] is not file.series[0]:
                raise ValueError(
                    f"pages must be of one size and type, got {[of.shape for of in file.series]}; save "
                    "them in files of their own"
                )
            pages = kinds[0].pages
            page, self.n_images = pages[0].aspage(), len(pages)
            if kinds[0].size != page.size * len(pages):
                raise ValueError(
                    f"{kinds[0].size // page.size} images are in {len(pages)} page; save a page for each"
                )
            photometric = page.photometric.name
            self.size = page.imagelength, page.imagewidth
            colours = page.samplesperpixel - len(page.extrasamples)
            self.dtype = np.dtype(page.dtype).newbyteorder("=")
        self.has_alpha = page.samplesperpixel > colours
        self.channels = 1 if colours == 1 and photometric != "PALETTE" else 3
        if self.channels == 3 and colours not in (1, 3) or page.imagedepth != 1:
            raise ValueError(f"images must have 1 or 3 channels, got {colours}, {photometric}")
        self.is_low_white = photometric == "MINISWHITE"
        if self.is_low_white and self.dtype.kind == "f":
            raise ValueError("floats of a TIFF whose white is low have no fixed end to be turned round")
        if self.dtype.kind == "b" or photometric == "PALETTE":
            self.dtype = np.dtype(np.uint8)
        elif self.dtype == np.float64:
            self.dtype = np.dtype(np.float32)
        self.unit = str(self.dtype)

    def values(self, index):
        import tifffile

        with tifffile.TiffFile(self.path) as file:
            page = file.series[0].pages[index].aspage()
            if page.photometric.name == "YCBCR" or not is_decoded(page):
                return self.values_by_pillow(index)
            values = page.asarray()
            if page.photometric.name == "PALETTE":
                return np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)[values]
            if page.samplesperpixel > 1:
                values = np.moveaxis(values, 0, -1) if page.planarconfig.name == "SEPARATE" else values
                values = values[..., 0] if self.channels == 1 else values[..., :3]
        if values.dtype.kind == "b":
            values = values * np.uint8(255)
        values = values.astype(self.dtype, copy=False)
        return np.iinfo(self.dtype).max - values if self.is_low_white else values

    def values_by_pillow(self, index):
        """Pixels under a compression for which tifffile wants another package, LZW and JPEG among them."""
        from PIL import Image

        with Image.open(self.path) as image:
            image.seek(index)
            if self.dtype == np.uint8:
                # Pillow turns a low white round by itself, in 8 bits.
                return np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
            if self.channels == 3:
                raise ValueError("tifffile needs the package imagecodecs for this compression")
            values = np.asarray(image).astype(self.dtype)
        return np.iinfo(self.dtype).max - values if self.is_low_white else values


def is_decoded(page):
    """Whether tifffile decodes the page by itself."""
    import tifffile

    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError:
        return False
    return page.bitspersample in (1, 8, 16, 32, 64)


class Numpy(Source):
    """Array in a .npy or .npz file: one image (H, W) or (H, W, 3), or a stack (n, H, W) or (n, H, W, 3)."""

    def open(self):
        self.is_whole = self.path.suffix.lower() == ".npz"
        if self.is_whole:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
                if len(names) != 1:
                    raise ValueError(f"the file must hold one array, got {names}")
                with archive.open(names[0]) as file:
                    shape, dtype = read_header(file)
        else:
            with open(self.path, "rb") as file:
                shape, dtype = read_header(file)
        if dtype.kind not in "biuf":
            raise ValueError(f"images must be real numbers, got dtype {dtype}")
        colours = len(shape) > 2 and shape[-1] == 3
        self.channels = 3 if colours else 1
        *stack, height, width = shape[:-1] if colours else shape
        if len(stack) > 1:
            raise ValueError(f"arrays must be (H, W), (H, W, 3), (n, H, W) or (n, H, W, 3), got {shape}")
        self.is_stack, self.size = bool(stack), (height, width)
        self.n_images = stack[0] if stack else 1
        self.dtype = {"b": np.dtype(np.uint8)}.get(dtype.kind, dtype.newbyteorder("="))
        if self.dtype == np.float64:
            self.dtype = np.dtype(np.float32)
        self.unit = str(dtype.newbyteorder("="))

    def images(self, indices):
        loaded = np.load(self.path, mmap_mode="r")
        if self.is_whole:
            with loaded:
                (loaded,) = loaded.values()
        for index in indices:
            yield np.array(loaded[index] if self.is_stack else loaded, dtype=self.dtype)

    def values(self, index):
        return next(self.images([index]))


def read_header(file):
    """Shape and dtype of the array of a .npy file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
