"""README and docs: their commands, their numbers, and the things that they name."""

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_sample_image

from tools import make_results
from vbq.bd_rates import bd_rate, increasing
from vbq.command import printable

PAGES = [
    "README.md",
    *sorted(f"docs/{name}" for name in os.listdir(os.path.join(ROOT, "docs")) if ".md" in name),
]
# The commands run as they stand, with other places and sizes.
SMALLER = [
    (r"num_filters 64 64 64", "num_filters 4 3 2"),
    (r"num_filters 256 256 256", "num_filters 4 4 2"),
    (r"num_filters=64_64_64(\S*last_step)=\d+", r"num_filters=4_3_2\1=2"),
    (r"--patchsize \d+", "--patchsize 32"),
    (r"--batchsize \d+", "--batchsize 2"),
    (r"--last_step 336000", "--last_step=3"),  # another run than that of the original's command
    (r"--last_step \d+", "--last_step 2"),
    (r"--size \d+", "--size 32"),
    (r"--count \d+", "--count 6"),
    (r"--joint_steps \d+", "--joint_steps 1"),
    (r"--merge 8", "--merge 2"),
    (r"--compile", "--device cpu"),  # takes a minute, and needs a compiler
    (r"(python post_process.py)", r"\1 --lambs 0.5 4 --quantization_levels 2 4 --seed 0"),
    (r"(python benchmarks/\w+.py).*", r"\1 --help"),  # its own test runs it
    (r"^make ", "make -n "),
    (r"/tmp/", "tmp/"),
    (r"/train_data_dir|/test_data|/path_to|/path/to/kodak", "kodak"),
]


def read(page):
    return Path(ROOT, page).read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page in a language, str each."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.S | re.M)


def smaller(script):
    """A script with small sizes, and with the places of the fixture `folder`."""
    for pattern, replacement in SMALLER:
        script = re.sub(pattern, replacement, script, flags=re.M)
    if not find_spec("torch"):
        script = re.sub(r"^python tools/train_torch.py.*", "", script, flags=re.M)
    return script


def photograph(folder, name, image):
    (folder / name).parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / name)


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
    """A folder that looks like a clone of the project, with photographs in it and a `.venv`."""
    for name in os.listdir(ROOT):
        if not name.startswith(".") and name not in ("demo", "checkpoints"):
            os.symlink(os.path.join(ROOT, name), tmp_path / name)
    (tmp_path / "checkpoints").mkdir()
    for run in make_results.FOLDERS:
        os.symlink(os.path.join(ROOT, "checkpoints", run), tmp_path / "checkpoints" / run)
    china = load_sample_image("china.jpg")
    shutil.copy(files("sklearn.datasets.images") / "flower.jpg", tmp_path / "photo.jpg")
    for name in ("photos/a.jpg", "photos/b.jpg", "more_photos/c.png", "kodak/1.png", "kodak/2.png"):
        photograph(tmp_path, name, china[100:164, 200:280])
    (tmp_path / "tmp").mkdir()
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "python").chmod(0o755)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    return tmp_path


def bash(script, folder, **environment):
    """Runs a script, which has to succeed; returns what it printed."""
    done = subprocess.run(
        ["bash", "-exc", f"source .venv/bin/activate\n{script}"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{printable(done.stderr[-3000:])}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands(page, folder):
    """All commands of a page, one after another, as a reader would type them."""
    printed = bash("".join(smaller(block) for block in blocks(page, "sh")), folder)
    if page == "README.md":
        check_output(printed)
        run = "num_filters=4_3_2-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
        (folder_of_run,) = (folder / "tmp" / "checkpoints").glob(f"bls2017_vae-{run}*")
        assert {"args.json", "record.txt", "log.csv", "rate_distortion.png", "prior.npz"} <= set(
            os.listdir(folder_of_run)
        )
        with Image.open(folder / "decoded.png") as image:
            assert image.size == (640, 427)
        assert sorted(os.listdir(folder / "decoded")) == ["a.png", "b.png", "c.png"]


def check_output(printed):
    """Checks that the README's commands print what it says, up to the last digits of the numbers."""
    (said,) = blocks("README.md", "text")
    number = re.compile(r"\d+\.?\d*")
    for line in said.splitlines():
        pattern = re.compile(number.sub(lambda _: number.pattern, re.escape(line).replace(r"\.", ".")))
        (found,) = [other for other in printed.splitlines() if pattern.fullmatch(other)]
        for ours, theirs in zip(number.findall(line), number.findall(found)):
            assert float(theirs) == pytest.approx(float(ours), rel=0.02), line


@pytest.mark.slow
def test_batch_scripts(folder):
    """The scripts for a cluster, in the order of the page; those of an array are run twice."""
    for script in blocks("docs/speed.md", "bash"):
        for task in "12" if "--array" in script else "1":
            environment = {
                "RUN": make_results.RUN,
                "SLURM_ARRAY_TASK_ID": task,
                "SLURM_ARRAY_TASK_COUNT": "2",
            }
            bash(smaller(script), folder, **environment)
    assert sorted(os.listdir(folder / "compressed")) == ["a.vbq", "b.vbq"]
    assert "rate_distortion.png" in os.listdir(folder / "results_kodak")


@pytest.mark.slow
def test_notebook_lines(folder):
    """The lines for a notebook run, and find what they say."""
    (lines,) = blocks("README.md", "python")
    (folder / "lines.py").write_text(lines + "\nassert picture.shape == (427, 640, 3)\n")
    bash("MPLBACKEND=agg python lines.py", folder)


# What they name.


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    text, folder = read(page), os.path.dirname(os.path.join(ROOT, page))
    for name in re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", text):
        assert os.path.exists(os.path.join(folder, name)), name
    for name in re.findall(r"`((?:vbq|tools|results|tests|benchmarks|examples)/[\w./]*)`", text):
        assert os.path.exists(os.path.join(ROOT, name)), name
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(ROOT, "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in sources, name


@pytest.mark.parametrize("page", PAGES)
def test_links_within_pages(page):
    for target, heading in re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", read(page)):
        other = os.path.join(os.path.dirname(page), target) if target else page
        headings = re.findall(r"^#+ (.*)", read(other), re.M)
        assert heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page):
    assert not re.findall(r"@@|^[A-Z_]+$|\b(?:TIME|MACHINE|TODO)\b", read(page), re.M)


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 200


def test_every_page_says_first_what_it_answers():
    for page in PAGES[1:]:
        assert read(page).splitlines()[2].startswith("This page answers: "), page


def test_the_table_of_modules_is_complete():
    table = read("docs/design.md").partition("## Modules")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {os.path.basename(name) for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)}
    scripts = {path.name for path in Path(ROOT).glob("*.py")}
    assert named == scripts | {path.name for path in Path(ROOT, "vbq").glob("*.py")} - {"__init__.py"}


# Their numbers.


def rows(page, start):
    """The cells, str, of the rows of the table of a page whose heading starts with a text."""
    lines = read(page).partition(f"\n{start}")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def of_label(label):
    """The curve that a row of the tables at equal rate is about."""
    return make_results.load_curves()[re.split(r":| \(", label)[0]]


@pytest.mark.parametrize(
    "page, start", [("README.md", "| | 0.2 bpp"), ("docs/results.md", "| bits per pixel | 0.2")]
)
def test_tables_at_equal_rate(page, start):
    heading = next(line for line in read(page).splitlines() if line.startswith(start))
    rates = [float(cell.split()[0]) for cell in heading.split("|") if re.match(r" \d", cell)]
    jpeg = make_results.load_curves()["JPEG"]
    for label, *cells in rows(page, start):
        curve = of_label(label)
        rate, psnr = increasing(curve, "PSNR (RGB)")
        for at, cell in zip(rates, cells):
            if cell:
                digits = len(cell.partition(".")[2])
                assert float(cell) == pytest.approx(np.interp(at, rate, psnr), abs=0.6 * 10**-digits)
        if label.startswith("VBQ"):
            delta = bd_rate(jpeg, curve, "PSNR (RGB)")[0]
            digits = len(cells[-1].partition(".")[2].rstrip(" %"))
            assert float(cells[-1].rstrip(" %")) == pytest.approx(delta, abs=0.51 * 10**-digits)


def test_table_of_lambdas():
    curve = make_results.load_curves()["VBQ, gains"]
    heading = next(line for line in read("README.md").splitlines() if line.startswith("| `--lamb` | 0.25"))
    lambs = [float(cell.split()[0]) for cell in heading.strip("|").split("|")[1:]]
    at = np.searchsorted(curve["settings"], lambs)
    np.testing.assert_array_equal(curve["settings"][at], lambs)
    bpp, psnr = rows("README.md", "| `--lamb` | 0.25")
    np.testing.assert_allclose([float(cell) for cell in bpp[1:]], curve["BPP"][at], atol=0.0051)
    np.testing.assert_allclose([float(cell) for cell in psnr[1:]], curve["PSNR (RGB)"][at], atol=0.051)


def test_deltas_are_those_of_the_results():
    table = read("results/bd_rates.md").splitlines()
    lines = [
        line for line in read("docs/results.md").splitlines() if re.search(r"\| (PSNR|MS-SSIM) \|", line)
    ]
    assert len(lines) > 20
    assert not set(lines) - set(table)
