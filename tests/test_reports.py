"""The lines that codec.py prints: sums of a batch."""

from vbq.reports import Summary, tell


def result(**changes):
    return {"file": "x.vbq", "bytes": 100, "width": 10, "height": 20, "psnr": 30.0, **changes}


def test_bits_are_summed_and_psnr_is_averaged():
    summary = Summary(("bytes", "bpp", "psnr"))
    for one in (result(), result(bytes=50, width=2, psnr=40.0), {"file": "bad.png", "error": "bad"}):
        summary.add(one)
    expected = {"files": 3, "failed": 1, "bytes": 150, "bpp": 8 * 150 / 240, "psnr": 35.0}
    assert summary.as_dict() == expected
    assert summary.tell() == "3 files, 1 failed, 150 bytes, 5.0000 bpp, mean PSNR 35.00 dB"


def test_without_a_file_there_is_no_mean():
    summary = Summary(("bytes", "bpp", "psnr"))
    assert summary.as_dict() == {"files": 0, "failed": 0, "bytes": 0, "bpp": None, "psnr": None}
    summary.add({"file": "bad.png", "error": "bad"})
    assert summary.tell() == "1 file, 1 failed"


def test_a_picture_without_loss_makes_the_mean_infinite():
    summary = Summary(("bytes", "bpp", "psnr"))
    summary.add(result())
    summary.add(result(psnr=None))
    assert summary.as_dict()["psnr"] is None and "mean PSNR inf dB" in summary.tell()
    assert tell(result(psnr=None)) == "x.vbq: 10 x 20 pixels, 100 bytes, PSNR inf dB"


def test_pictures_have_no_bytes():
    summary = Summary(())
    summary.add({"file": "x.png", "width": 10, "height": 20})
    assert summary.as_dict() == {"files": 1, "failed": 0} and summary.tell() == "1 file, 0 failed"
