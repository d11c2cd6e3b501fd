"""The command line of codec.py."""

import re

import pytest

from vbq.codec_flags import EXAMPLES, parse_args

PLACE = ["checkpoints", "run"]


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        parse_args([*argv, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_flag_is_explained_with_its_default(command, capsys):
    text = help_of(capsys, command)
    assert text.count(f"  codec.py {command} ") == 2  # examples
    flags = re.split(r"\n  (?=-)", text.partition("options:")[2].partition("examples:")[0])[2:]
    assert len(flags) >= 1
    for flag in flags:
        assert re.search(r"\w \(default: .+\)", " ".join(flag.split())), flag


def test_the_help_of_the_program_has_examples(capsys):
    text = help_of(capsys)
    assert all(f"  codec.py {command} " in text for command in EXAMPLES)


def test_lambda_is_lamb():
    for flag in ("--lamb", "--lambda"):
        args = parse_args(["compress", *PLACE, "x.png", "x.vbq", flag, "3"])
        assert args.lamb == 3 and args.files == ["x.png"] and args.output == "x.vbq"


def test_the_last_name_is_the_output():
    args = parse_args(["compress", *PLACE, "--bpp", "1", "a", "b", "c", "out", "--shard", "2/3"])
    assert args.files == ["a", "b", "c"] and args.output == "out" and args.shard == (2, 3)
    args = parse_args(["info", "a", "b"])
    assert args.files == ["a", "b"] and args.output is None and args.shard is None


@pytest.mark.parametrize("flags", [["--shard", "3/2"], ["--lambda", "1", "--bpp", "1"], ["--lambda", "0"]])
def test_wrong_usage(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["compress", *PLACE, "a", "b", "out", *flags])
    assert caught.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
