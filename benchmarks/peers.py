"""Compares this codec with JPEG, WebP, AVIF, JPEG 2000 and CompressAI: rate, quality, time, memory.

    python benchmarks/peers.py --images 'kodak/*.png' --out DIR

All codecs code the same pictures in one run, one after the other, each in a process of its own. Images of
768 x 512 pixels, as Kodak's, lose 8 pixels at each edge first, as in results/. Sizes are those of the files;
quality is that of the decoded 8-bit pixels. A process uses all the cores that it may (`taskset` limits them).

CompressAI is the only requirement that the project lacks: `python -m pip install compressai` (it brings
PyTorch). Its trained weights cannot be had everywhere, so its models have random ones: its times and its
memory are measured, its quality is that of the published curves.
"""

import argparse
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir), os.path.join(HERE, os.pardir, "tools"), HERE]

from make_results import published_curves
from peer_codecs import Pillow
from peer_runs import Peer, curves_of, measure_all
from PIL import Image, features
from shipped import CHECKPOINTS, RUN

from vbq.baselines import JPEG_QUALITIES, are_named_as_kodak
from vbq.bd_rates import QUALITIES, NotComparable, bd_rate
from vbq.command import Parser, UserError, note, number, run_main
from vbq.files import atomic_write, find_images, make_output_folder
from vbq.plots import COLORS, MARKERS, REFERENCE_STYLES

NAMES = {"JPEG": "JPEG", "WEBP": "WebP", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}  # by Pillow's
SETTINGS = {
    "JPEG": JPEG_QUALITIES,
    "WEBP": (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "AVIF": (10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "JPEG2000": (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3),  # bits per pixel
}
LAMBS = (0.0625, 0.25, 0.5, 1, 2, 4, 8, 32)
MODELS = ("bmshj2018_factorized", "bmshj2018_hyperprior")
PUBLISHED = "{} (CompressAI)"  # the labels of the published curves
MOST_BPP = 2.5  # that the figure shows
HEADING = (
    "codec",
    *(f"BD-rate ({name})" for name in QUALITIES.values()),
    "encode, s",
    "decode, s",
    "threads",
    "peak memory, MB",
    "to install, MB",
    "pictures",
    "what",
)


# What is compared.


def peers_of(args, pictures):
    """Lists the codecs that the arguments ask for; what cannot run is left out with one line on stderr."""
    run = {"checkpoint_dir": os.path.abspath(args.checkpoint_dir), "runname": args.runname}
    peers = []
    for mixed in (False, True) if args.mixed_precision else (False,):
        label, options = "VBQ, mixed precision" if mixed else "VBQ", run | {"mixed_precision": mixed}
        peers.append(Peer(label, "Vbq", options, args.lambs, pictures, required=True))
        if args.joint_steps and args.joint_images:
            label, joint = f"{label}, {args.joint_steps} joint steps", {"joint_steps": args.joint_steps}
            few = min(args.joint_images, pictures)
            peers.append(Peer(label, "Vbq", options | joint, args.lambs, few, required=True))
    for format_, settings in SETTINGS.items():
        if features.check(Pillow.formats[format_][0]):
            is_anchor = format_ == "JPEG"
            options = {"format_": format_}
            peers.append(Peer(NAMES[format_], "Pillow", options, settings, pictures, required=is_anchor))
        else:
            note(f"note: {NAMES[format_]} is left out: this Pillow ({Image.__version__}) lacks it")
    if args.compressai_qualities:
        why = why_no_compressai(args.compressai_python)
        if why:
            note(
                f"note: CompressAI is left out: {why}; install it with `python -m pip install compressai`, "
                "or name a Python that has it with --compressai_python"
            )
        else:
            peers += compressai_peers(args, min(args.compressai_images, pictures))
    return peers


def compressai_peers(args, pictures):
    """The models of CompressAI, each at each quality."""
    return [
        Peer(
            f"{model.replace('_', '-')}, quality {quality}",
            "CompressAI",
            {"architecture": model, "quality": quality},
            (quality,),
            pictures,
            python=args.compressai_python,
        )
        for model in MODELS
        for quality in args.compressai_qualities
    ]


def why_no_compressai(python):
    """Returns why a Python cannot import CompressAI, one line of text; or None if it can.

    Raises:
      UserError: there is no such program.
    """
    try:
        found = subprocess.run(
            [python, "-c", "import compressai.zoo, PIL"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"--compressai_python {python}: cannot be started: {error.strerror}") from error
    if found.returncode:
        return (found.stderr.strip().splitlines() or [f"{python} ended with status {found.returncode}"])[-1]
    return None


# The table.


def table(outcomes):
    """The table, in Markdown; outcomes: list of Outcome."""
    rows = [HEADING, ["---"] * len(HEADING)]
    for peer, result, arrays in outcomes:
        rates = measured_rates(peer, outcomes) if arrays else published_rates(peer)
        medians = (statistics.median(one[key] for one in result["records"]) for key in ("encode", "decode"))
        megabytes = (f"{result[key] / 1e6:.0f}" for key in ("peak", "installed"))
        cells = *(f"{seconds:.2g}" for seconds in medians), str(result["threads"]), *megabytes
        what = f"{settings_of(peer)}; {result['version']}"
        rows.append([peer.label, *rates, *cells, str(peer.pictures), what])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def settings_of(peer):
    """Says at which settings a codec was run."""
    if peer.codec == "CompressAI":
        return "random weights"
    name = {"VBQ": "lambda", "JPEG 2000": "bits per pixel"}.get(peer.label.partition(",")[0], "quality")
    return f"{name} {' '.join(f'{setting:g}' for setting in peer.settings)}"


def measured_rates(peer, outcomes):
    """The cells of the BD-rates against JPEG, over the pictures of this codec."""
    if peer.label == "JPEG":
        return ["0 (the anchor)"] * len(QUALITIES)
    curves = curves_of(outcomes, peer.pictures)
    return [rate_cell(curves["JPEG"], curves[peer.label], key) for key in QUALITIES]


def published_rates(peer):
    """The cells of the BD-rates of a model's published curve, against the JPEG curve published beside it."""
    curves = {label: {"BPP": bpp, "PSNR (RGB)": psnr} for label, (bpp, psnr) in published_curves().items()}
    anchor, test = (curves[published_label(name)] for name in ("jpeg", peer.options["architecture"]))
    rate = rate_cell(anchor, test, "PSNR (RGB)")
    return [f"{rate} (published)", "not published"]


def published_label(model):
    """The label of a curve that CompressAI has published."""
    return PUBLISHED.format(model.replace("_", "-"))


def rate_cell(anchor, test, key):
    """The BD-rate of a curve as text, or why there is none."""
    try:
        return f"{bd_rate(anchor, test, key)[0]:+.1f} %"
    except NotComparable as error:
        return str(error)


def report(outcomes):
    """The table, and what has to be known to read it, in Markdown."""
    peers = [one.peer for one in outcomes]
    notes = [
        "BD-rate: the bits at equal quality, less than 0 if fewer than JPEG's on the same pictures.",
        "Pictures: how many, from the first on. Times: medians over pictures and settings, model loaded.",
        "Peak memory: of the process, Python and model included. To install: the packages with all that they "
        "require, as they are on this disk.",
    ]
    if any(peer.codec == "CompressAI" for peer in peers):
        notes.append(
            "CompressAI: times and memory on the CPU with random weights. The BD-rates are those of the "
            "published curves (24 Kodak images, 768 x 512), against the JPEG published beside them."
        )
    return "\n".join([table(outcomes), "", *(f"- {text}" for text in notes)])


# The figure.


def draw(path, outcomes, kodak):
    """Draws PSNR and MS-SSIM against bits per pixel.

    The first row has the curves of the codecs that coded all pictures. If joint steps were taken on fewer of
    them, a second row has all curves over these. Those with mixed precision are left out: they would hide the
    ones without.

    Args:
      path: str, a PNG file.
      outcomes: list of Outcome.
      kodak: bool, whether the pictures are the 24 of Kodak, so that the published curves can stand beside.
    """
    from matplotlib.figure import Figure  # here, because the import is slow

    outcomes = [one for one in outcomes if not one.peer.options.get("mixed_precision")]
    measured = [one.peer for one in outcomes if one.arrays]
    styles = {peer.label: {"color": c, "marker": m} for peer, c, m in zip(measured, COLORS, MARKERS)}
    counts = sorted({peer.pictures for peer in measured}, reverse=True)
    figure = Figure(figsize=(13, 6 * len(counts)), layout="constrained")
    for row, pictures in zip(figure.subplots(len(counts), 2, squeeze=False), counts):
        for axes, (key, name) in zip(row, QUALITIES.items()):
            for label, one in curves_of(outcomes, pictures).items():
                axes.plot(one["BPP"], one[key], label=label, markersize=4, **styles[label])
            axes.set(xlabel="bits per pixel", ylabel=f"{name} (RGB), dB", xlim=(0, MOST_BPP))
            axes.set_title(f"means over {pictures} picture{'s' * (pictures > 1)}")
        if kodak and pictures == counts[0]:
            draw_published(row[0])
        for axes in row:
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8, loc="lower right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def draw_published(axes):
    """Draws the published curves of the models of CompressAI."""
    curves = published_curves()
    dashed = (style for style in REFERENCE_STYLES if style[1] != "-")
    for label, (color, dashes) in zip(map(published_label, MODELS), dashed):
        axes.plot(*curves[label], color=color, linestyle=dashes, label=f"{label}, published, 768 x 512")


# The program.


def parse_args(argv=None):
    """Parses the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="image files: a glob in quotes, a folder or a file (no default)")
    add("--out", metavar="DIR", help="write peers.md and peers.png there, too; made if missing (default: no)")
    add("--checkpoint_dir", default=CHECKPOINTS, help="directory of runs (default: that of the project)")
    add("--runname", default=RUN, help="name of the run (default: that of the better model that ships)")
    positive, count = number(float, above=0), number(int, at_least=0)
    add(
        "--lambs",
        type=positive,
        nargs="+",
        default=LAMBS,
        metavar="LAMB",
        help=f"the settings of VBQ (default: {' '.join(f'{lamb:g}' for lamb in LAMBS)})",
    )
    add(
        "--joint_steps",
        type=count,
        default=20,
        metavar="K",
        help="the number of joint steps of a second row of VBQ; 0 leaves it out (default: %(default)s)",
    )
    add(
        "--joint_images",
        type=count,
        default=6,
        metavar="N",
        help="on how many of the images, because joint steps are slow (default: the first %(default)s)",
    )
    add(
        "--mixed_precision",
        action="store_true",
        help="measure VBQ a second time, with the flag of codec.py of this name (default: no)",
    )
    add(
        "--compressai_qualities",
        type=number(int, at_least=1, at_most=8),
        nargs="*",
        default=(4, 6),
        metavar="Q",
        help=f"of {' and '.join(MODELS)}; none leaves them out (default: 4 6)",
    )
    add(
        "--compressai_images",
        type=number(int, at_least=1),
        default=4,
        metavar="N",
        help="on how many of the images, because only times are measured (default: the first %(default)s)",
    )
    add(
        "--compressai_python",
        default=sys.executable,
        metavar="PATH",
        help="the Python that has CompressAI, NumPy and Pillow (default: the one that runs this)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Compares the codecs; returns the exit status."""
    args = parse_args(argv)
    if args.out:
        make_output_folder(args.out)
    paths = find_images(args.images)
    peers = peers_of(args, len(paths))
    outcomes = measure_all(peers, paths)
    text = report(outcomes)
    print(text)
    if args.out:
        with atomic_write(os.path.join(args.out, "peers.md")) as path, open(path, "w", encoding="utf-8") as f:
            f.write(text + "\n")
        draw(os.path.join(args.out, "peers.png"), outcomes, are_named_as_kodak(paths))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
