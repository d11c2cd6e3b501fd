"""What codec.py tells of its files: one line each, and one for all of them."""

import math

from vbq.bitstream import VERSION, unpack

_FORMATS = {
    "bytes": "{} bytes",
    "bpp": "{:.4f} bpp",
    "psnr": "PSNR {:.2f} dB",
    "lamb": "lambda {:.6g}",
    "lamb_index": "coded with lambda number {} of the fit",
    "version": "version {}",
    "fingerprint": "fit {}",
}


def describe(path, data):
    """Returns the size of a .vbq file and the fields of its header, a dict.

    Args:
      path: str, its name.
      data: bytes.

    Raises:
      UserError: it is not a .vbq file, or it is damaged.
    """
    header, _ = unpack(data)
    return {
        "file": path,
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height),
        "width": header.width,
        "height": header.height,
        "lamb": header.lamb,
        "lamb_index": header.lamb_index,
        "fingerprint": header.fingerprint.hex(),
        "version": VERSION,
    }


def tell(result):
    """Returns the result of one file, a dict, as one line of text."""
    values = {key: math.inf if result[key] is None else result[key] for key in _FORMATS if key in result}
    return ", ".join(
        [
            f"{result['file']}: {result['width']} x {result['height']} pixels",
            *(_FORMATS[key].format(value) for key, value in values.items()),
        ]
    )


class Summary:
    """The sums over the files of a batch."""

    def __init__(self, keys):
        """Starts at zero; keys: tuple of str, those of "bytes", "bpp" and "psnr" that the results have."""
        self.files = self.failed = self._bytes = self._pixels = 0
        self._keys, self._psnr = keys, 0.0

    def add(self, result):
        """Counts the result of one file, a dict, which has the key "error" if the file is bad."""
        self.files += 1
        if "error" in result:
            self.failed += 1
            return
        self._bytes += result.get("bytes", 0)
        self._pixels += result["width"] * result["height"]
        if "psnr" in self._keys:
            self._psnr += math.inf if result["psnr"] is None else result["psnr"]

    def as_dict(self):
        """Returns a dict.

        `files` and `failed` are numbers of files, `bytes` is the sum, `bpp` all bits by all pixels, and
        `psnr` the mean of the files' PSNR in dB. The latter two are None without files; so is an infinite
        `psnr`.
        """
        done = self.files - self.failed
        psnr = self._psnr / done if done else math.inf
        values = {
            "bytes": self._bytes,
            "bpp": 8 * self._bytes / self._pixels if done else None,
            "psnr": psnr if psnr < math.inf else None,
        }
        return {"files": self.files, "failed": self.failed, **{key: values[key] for key in self._keys}}

    def tell(self):
        """Returns the same as one line of text."""
        found = self.as_dict()
        parts = [f"{self.files} file{'s' * (self.files != 1)}", f"{self.failed} failed"]
        if self.files > self.failed:
            values = {key: math.inf if found[key] is None else found[key] for key in self._keys}
            parts += [_FORMATS[key].format(value) for key, value in values.items()]
        return ", ".join(parts).replace("PSNR", "mean PSNR")
