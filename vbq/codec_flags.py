"""The command line of codec.py."""

import argparse
import textwrap

from vbq.command import Parser, number, shard

DEFAULT_LAMB = 1.0
EXAMPLES = {
    "compress": """examples:
  codec.py compress checkpoints RUNNAME photo.png photo.vbq --bpp 0.4
  codec.py compress checkpoints RUNNAME photos 'more/*.jpg' compressed/ --lamb 4""",
    "decompress": """examples:
  codec.py decompress checkpoints RUNNAME photo.vbq photo.png
  codec.py decompress checkpoints RUNNAME compressed decoded/ --format webp""",
    "info": """examples:
  codec.py info photo.vbq
  codec.py info compressed 'more/*.vbq' --json""",
}
BATCH = (
    "In a batch, a bad file is named on stderr, the others are still worked on, and the exit status is 1. "
    "A line for each file and one that sums up go to stdout: files (also the failed ones), failed{measures}. "
    "With --json, the line of a bad file has the keys file and error."
)
MEASURES = ", bytes, bpp (all bits by all pixels)"
PSNR = "psnr (mean of the PSNR of the files in dB)"
VBQ_FILES = "a folder or a glob in quotes stands for its .vbq files"


def parse_args(argv=None):
    """Parses the command line.

    Args:
      argv: list of str, or None for the process's own arguments.

    Returns:
      Namespace with `command`, a key of `EXAMPLES`, and the arguments of that command. `output` and `shard`
      are None for a command without them.
    """
    parser = Parser(
        description="Writes images to files at any rate with one trained model, and reads them back.",
        epilog="\n".join(
            [
                "examples:",
                *(text.splitlines()[1] for text in EXAMPLES.values()),
                "",
                "codec.py COMMAND --help explains the flags of a command.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name, text, measures):
        batch = BATCH.format(measures=measures)
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n\n{textwrap.fill(batch, 80)}",
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(output=None, shard=None)
        return sub

    sub = command("compress", "write images to .vbq files", f"{MEASURES}, {PSNR}")
    add_places(sub, "image files; a folder or a glob in quotes stands for the images in it", "the .vbq file")
    add_compress_flags(sub)
    sub = command("decompress", "write the images in .vbq files to image files", "")
    add_places(sub, f"files that compress wrote; {VBQ_FILES}", "the image file")
    sub.add_argument(
        "--format",
        metavar="ENDING",
        help="ending of the image files, such as png, webp or jpg (default: png; for a single file, that of "
        "its name)",
    )
    sub = command("info", "print the headers of .vbq files", MEASURES)
    sub.add_argument("files", nargs="+", metavar="file", help=f".vbq files; {VBQ_FILES}")
    for sub in commands.choices.values():
        sub.add_argument(
            "--json",
            action="store_true",
            help="print results as lines of JSON; an infinite psnr is null (default: lines of text)",
        )
    return parser.parse_args(argv)


def add_places(parser, files, output):
    """Adds the arguments and flags that compress and decompress share; files, output: str for the help."""
    parser.add_argument("checkpoint_dir", help="directory of runs")
    parser.add_argument("runname", help="name of the run: its directory in checkpoint_dir")
    parser.add_argument("files", nargs="+", metavar="file", help=files)
    parser.add_argument(
        "output",
        help=f"{output} to write; for several files, a folder or a glob, the folder to write to, which is "
        "made if missing. Also for one file, a folder that exists or a name that ends with a slash",
    )
    parser.add_argument(
        "--mixed_precision",
        action="store_true",
        help="compute the transforms in bfloat16, in less than half the time on CPUs with AMX; others take "
        "longer. Whether it is used to compress has no effect on how to decompress (default: float32)",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="in a batch, work on every Nth file from the Ith on (default: on all files)",
    )


def add_compress_flags(parser):
    """Adds the flags of the command compress."""
    group = parser.add_mutually_exclusive_group()
    positive = number(float, above=0)
    group.add_argument(
        "--lamb",
        "--lambda",
        type=positive,
        default=DEFAULT_LAMB,
        help="trade-off, nats of distortion that a bit is worth: the larger, the smaller the file "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--bpp",
        type=positive,
        help="the largest file of at most this many bits per pixel (default: use --lamb)",
    )
    group.add_argument(
        "--psnr",
        type=positive,
        metavar="DB",
        help="the smallest file of at least this PSNR in dB, RGB (default: use --lamb)",
    )
    parser.add_argument(
        "--best_table",
        action="store_true",
        help="with --lamb: use the table of code lengths that suits the image best, as --bpp and --psnr do "
        "(default: that of the nearest lambda)",
    )
    parser.add_argument(
        "--joint_steps",
        type=number(int, at_least=0),
        default=0,
        metavar="K",
        help="refine the quantized latents in K steps with the decoder in the loop: a better picture at "
        "the same size, but slower; at the same lamb the file is somewhat larger (default: %(default)s)",
    )
