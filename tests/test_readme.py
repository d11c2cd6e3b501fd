"""The README's commands, with other places and sizes, and the things that it names."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

SMALLER = {
    "--num_filters": ["4", "3", "2"],
    "--patchsize": ["32"],
    "--batchsize": ["2"],
    "--last_step": ["2"],
    "--size": ["32"],
    "--count": ["6"],
    "--preprocess_threads": ["1"],
    "--lambs": ["1"],
}
QUICK = ["--lambs", "0.5", "4", "--quantization_levels", "2", "4"]


def readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def commands(script):
    """The command lines of a script in the README's code blocks, each a list of words after `python`."""
    lines = [line for block in re.findall(r"```\n(.*?)```", readme(), re.S) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"python {script}")]


def adapt(words, places):
    """Replaces places, sizes after flags by small ones, and the run's name by that of the small run."""
    adapted = []
    for word in words:
        if adapted and adapted[-1] in SMALLER:
            flag = adapted[-1]
            adapted += SMALLER[flag]
        elif (
            re.fullmatch(r"\d+", word)
            and len(adapted) > 3
            and adapted[-4] in SMALLER
            and len(SMALLER[adapted[-4]]) == 3
        ):
            continue  # the second and third of three sizes
        else:
            for old, new in places.items():
                word = word.replace(old, new)
            adapted.append(word)
    name = re.compile(r"num_filters=256_256_256(.*)last_step=\d+")
    return [name.sub(r"num_filters=4_3_2\1last_step=2", word) for word in adapted]


def run(words, cwd):
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, words[0]), *words[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return done.stdout


@pytest.fixture(name="places", scope="module")
def fixture_places(tmp_path_factory):
    """Folders with small pictures: a dict from paths in the README to these, and the `folder` of all."""
    folder = tmp_path_factory.mktemp("readme")
    y, x = np.mgrid[:48, :64] / 64
    for part in ("train_data_dir", "test_data"):
        (folder / part).mkdir()
        for i in range(2):
            pixels = np.stack([x, y, (x * (i + 1)) % 1], axis=-1)
            Image.fromarray(np.uint8(255 * pixels)).save(folder / part / f"{i}.png")
            if part == "test_data" and i == 0:
                Image.fromarray(np.uint8(255 * pixels)).save(folder / "photo.png")
    return {
        "/tmp/": f"{folder}/",
        "/train_data_dir": f"{folder}/train_data_dir",
        "/test_data": f"{folder}/test_data",
        "/path_to/": f"{folder}/",
        "folder": str(folder),
    }


@pytest.mark.slow
def test_train_evaluate_compress(places):
    folder = places["folder"]
    replace = {key: value for key, value in places.items() if key != "folder"}
    (train,), (crops,) = commands("bls2017_vae.py"), commands("tools/make_crops.py")
    (evaluate,) = commands("post_process.py")
    run(adapt(train, replace), folder)
    run(adapt(crops, replace), folder)
    table = run([*adapt(evaluate, replace), *QUICK], folder)
    labels = [line.split()[0] for line in table.splitlines()[:7]]
    assert labels == ["quantizer", "VBQ", "VBQ", "k-means", "k-means", "uniform", "uniform"]
    runname = adapt(evaluate, replace)[2]
    assert {
        "ChannelwisePriorCDFQuantizer-max_bits=10-compression_results.npz",
        "KmeansQuantizer-compression_results.npz",
        "UniformQuantizer-compression_results.npz",
        "prior.npz",
        "rate_distortion.png",
        "args.json",
        "record.txt",
    } <= set(os.listdir(os.path.join(folder, "checkpoints", runname)))
    compress, decompress, info = commands("codec.py")
    at = compress.index("--bpp")  # what rates an untrained model has is not known
    for words in (compress[:at], decompress, info):
        run([word.replace("RUNNAME", runname) for word in adapt(words, replace)], folder)
    with Image.open(os.path.join(folder, "decoded.png")) as image:
        assert image.size == (64, 48)


@pytest.mark.slow
def test_train_torch(places):
    pytest.importorskip("torch")
    (words,) = commands("tools/train_torch.py")
    words = adapt(words, {key: value for key, value in places.items() if key != "folder"})
    words.remove("--compile")  # takes a minute, and needs a compiler
    run([*words, "--device", "cpu"], places["folder"])


def test_what_it_names_is_there():
    text = readme()
    names = re.findall(r"\]\(((?!http)[^)#]+)\)", text)
    names += re.findall(r"`((?:vbq|tools|results|tests|benchmarks)/[\w./]*)`", text)
    for name in names:
        assert os.path.exists(os.path.join(ROOT, name)), name
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(ROOT, "tests").glob("*.py"))
    tests = re.findall(r"`(test_\w+)`", text)
    assert tests
    for name in tests:
        assert f"def {name}(" in sources, name
    assert "{{" not in text


def test_its_table_of_modules_is_complete():
    table = readme().partition("## The code")[2].partition("\n\n1. ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {os.path.basename(name) for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)}
    scripts = {path.name for path in Path(ROOT).glob("*.py")}
    assert named == scripts | {path.name for path in Path(ROOT, "vbq").glob("*.py")} - {"__init__.py"}
