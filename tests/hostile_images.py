"""Image files of every kind for tests, well-formed and damaged, with the ICC profiles and 16 bits in them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 12, 17
ADOBE_RGB = (
    (0.60974, 0.31111, 0.01947),
    (0.20528, 0.62567, 0.06087),
    (0.14919, 0.06322, 0.74457),
)  # XYZ, D50
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
NOT_IMAGES = {"BUFR", "GRIB", "HDF5", "WMF"}  # Pillow needs another program to write them


def pixels(channels=3, dtype=np.uint8):
    """Random pixels [HEIGHT, WIDTH, channels]."""
    return np.random.default_rng(channels).integers(
        np.iinfo(dtype).max + 1, size=(HEIGHT, WIDTH, channels), dtype=dtype
    )


def icc_profile(space=b"RGB ", primaries=ADOBE_RGB, gamma=563 / 256, curve=None, name=b"test"):
    """Bytes of a small ICC profile. The tone curve is an exponent or 16-bit values; grey has no primaries."""
    fixed = lambda *values: struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
    white = fixed(0.9642, 1, 0.8249)
    values = [round(gamma * 256)] if curve is None else curve
    curve = b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *values)
    description = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(79)
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + white,
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    for letter, primary in zip((b"r", b"g", b"b") if space == b"RGB " else (), primaries):
        tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + fixed(*primary), letter + b"TRC": curve}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, body in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    size = 132 + len(table) - 4 + len(data)
    head = struct.pack(
        ">I4sI4s4s4s6H4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ", 2020, 1, 1, 0, 0, 0, b"acsp"
    )
    return (head + bytes(28) + white).ljust(128, b"\0") + table + data


def png_chunk(kind, body):
    """Bytes of a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(values, extra=b""):
    """Bytes of a 16-bit PNG of values uint16 [H, W, C], by all filters except Paeth's; `extra`: chunks."""
    height, width, channels = values.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows, above = [], np.zeros(2 * width * channels, np.uint8)
    for i, row in enumerate(values.astype(">u2").reshape(height, -1).view(np.uint8)):
        left = np.concatenate([np.zeros(2 * channels, np.uint8), row[: -2 * channels]])
        average = ((left.astype(int) + above) // 2).astype(np.uint8)
        rows.append(bytes([i % 4]) + (row - (0, left, above, average)[i % 4]).astype(np.uint8).tobytes())
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    image = png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + image + png_chunk(b"IEND", b"")


def tiff(values, order="<", planar=False, extra=(), photometric=None, bits=16, more=()):
    """Bytes of an uncompressed TIFF of values [H, W, C], uint16 unless packed to another number of bits.

    `extra`: what the channels after the colours are; `more`: tuples of tag, type and values.
    """
    height, width, channels = values.shape
    planes = values.transpose(2, 0, 1) if planar else values[None]
    data = planes.astype(order + "u2").tobytes()
    if bits == 12:  # of one channel and an even number of columns
        data = b"".join(((int(a) << 12) | int(b)).to_bytes(3, "big") for a, b in values.reshape(-1, 2))
    size, count = len(data) // len(planes), len(planes)
    photometric = (2 if channels > 2 else 1) if photometric is None else photometric
    tags = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
    ]
    tags += [(273, 4, [8 + i * size for i in range(count)]), (277, 3, [channels]), (278, 3, [height])]
    tags += [(279, 4, [size] * count), (284, 3, [2 if planar else 1])]
    tags += ([(338, 3, list(extra))] if extra else []) + list(more)
    directory, beyond, start = struct.pack(order + "H", len(tags)), b"", 8 + len(data) + 6 + 12 * len(tags)
    for tag, kind, numbers in sorted(tags):
        body = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(body) > 4:
            body, beyond = struct.pack(order + "I", start + len(beyond)), beyond + body
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory + bytes(4) + beyond


def exif(orientation, text_resolution=False):
    """Bytes of EXIF with an orientation and, if so told, a resolution of the wrong type."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    if text_resolution:
        entries += struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + bytes(4)


def in_mode(mode):
    """An image of one of Pillow's modes."""
    rgb = Image.fromarray(pixels())
    if mode == "I;16":
        return Image.fromarray(pixels(1, np.uint16)[..., 0])
    if mode == "I":
        return Image.fromarray(pixels(1, np.uint16)[..., 0].astype(np.int32))
    if mode == "F":
        return Image.fromarray((pixels(1)[..., 0] / 255).astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", rgb.size, rgb.tobytes())
    if mode == "PA":
        return Image.fromarray(pixels(4)).convert("PA")
    return (
        Image.fromarray(pixels(4)).convert("LA" if mode == "LA" else "RGBA")
        if mode in ("LA", "RGBA")
        else rgb.convert(mode)
    )


def saved(image, kind, **options):
    """Bytes of an image in a format, or None if the format does not have such images."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except Exception:  # which modes and options a format has is Pillow's business
        return None
    return file.getvalue()


def formats():
    """The names of the formats that Pillow can write and read here."""
    Image.init()
    return sorted((set(Image.SAVE) & set(Image.OPEN) | {"MPO"}) - NOT_IMAGES)


def well_formed():
    """Yields (name, bytes) of image files of every format, mode, and kind of metadata."""
    palette = Image.fromarray(pixels()).quantize(4)
    frames = [Image.fromarray(np.roll(pixels(), i, axis=0)) for i in range(3)]
    rgb, rgba = frames[0], Image.fromarray(pixels(4))
    bulky = {"exif": exif(6, True), "icc_profile": icc_profile(), "comment": b"c" * 50}
    for kind in formats():
        for mode in MODES:
            yield f"{kind} {mode}", saved(in_mode(mode), kind)
        yield f"{kind} animated", saved(rgb, kind, save_all=True, append_images=frames[1:])
        yield f"{kind} metadata", saved(rgb, kind, **bulky)
        yield f"{kind} alpha, metadata", saved(rgba, kind, **bulky)
        yield f"{kind} damaged profile", saved(rgb, kind, icc_profile=icc_profile()[:300])
        yield f"{kind} key", saved(palette, kind, transparency=1)
    for bits in (1, 2, 4, 8):
        for kind in ("PNG", "TIFF", "GIF", "BMP"):
            yield f"{kind} {bits} bits", saved(palette.quantize(min(2**bits, 4)), kind, bits=bits)
    for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "raw"):
        yield f"TIFF {name}", saved(rgb, "TIFF", compression=name)
    yield "JPEG progressive", saved(rgb, "JPEG", progressive=True, quality=90)
    yield "PNG text", saved(rgb, "PNG", pnginfo=text_chunks())
    for channels in (1, 2, 3, 4):
        yield f"PNG 16 bits, {channels} channels", png16(pixels(channels, np.uint16))
        if channels > 2:
            for order in "<>":
                yield f"TIFF 16 bits, {channels} channels, {order}", tiff(pixels(channels, np.uint16), order)


def text_chunks():
    """Text of all kinds for a PNG file."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("plain", "text")
    info.add_text("deflated", "text" * 20, zip=True)
    info.add_itxt("international", "te\u00dft", zip=True)
    return info


def mutated(data, rng):
    """Damages a file in one of several ways; `rng` is a np.random.Generator."""
    data = bytearray(data)
    way = rng.integers(6)
    at = int(rng.integers(min(len(data), 200) if rng.random() < 0.5 else len(data)))
    if way == 0:
        del data[at:]
    elif way == 1:
        data[at] ^= 1 << rng.integers(8)
    elif way == 2:
        for i in rng.integers(len(data), size=8):
            data[i] = rng.integers(256)
    elif way == 3:
        data[at : at + 4] = rng.choice(
            [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0"]
        )
    elif way == 4:
        del data[at : at + int(rng.integers(1, 20))]
    else:
        data[at:at] = data[at : at + int(rng.integers(1, 20))]
    return bytes(data)
