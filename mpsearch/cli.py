"""The command line: one subcommand a verb, ``--json`` on each."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mpsearch import __version__
from mpsearch.allocation import Infeasible
from mpsearch.commands import command

BAD_INPUT = 2
INFEASIBLE = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 on bad input, 3 when infeasible, 130 when interrupted."""
    arguments = parser().parse_args(argv)
    if arguments.command == "demo":
        arguments = parser().parse_args(_demo_line(arguments))
    try:
        said = command(arguments.command)(arguments)
    except Infeasible as reason:
        told = {} if reason.conflict is None else {"conflict": reason.conflict.document()}
        return _failed(arguments, str(reason), INFEASIBLE, least=reason.least, **told)
    except (ValueError, LookupError, TypeError, OSError, ImportError, RuntimeError) as reason:
        message = reason.args[0] if isinstance(reason, KeyError) and reason.args else reason
        return _failed(arguments, str(message), BAD_INPUT)
    except KeyboardInterrupt:
        kept = (
            "; what was computed is kept in the cache" if getattr(arguments, "cache", None) else ""
        )
        return _failed(arguments, f"interrupted{kept}", INTERRUPTED)
    print(json.dumps(said.document, allow_nan=False) if arguments.json else said.text)
    return 0


def _failed(arguments: argparse.Namespace, message: str, code: int, **more: object) -> int:
    if arguments.json:
        print(json.dumps({"error": message, "exit": code, **more}, allow_nan=False))
    print(f"mpsearch: {message}", file=sys.stderr)
    return code


def _demo_line(arguments: argparse.Namespace) -> list[str]:
    """The demo is a search: this one."""
    folder = Path(arguments.folder)
    files = ["--output", str(folder / "bits.json"), "--report", str(folder / "report.html")]
    options = ["--options", "w2a8,w3a8,w4a8,w6a8,w8a8", "--budget", arguments.budget]
    line = ["search", f"demo:{arguments.network}", *options, *files]
    print("mpsearch", *line, file=sys.stderr)
    return [*line, "--json"] if arguments.json else line


def parser() -> argparse.ArgumentParser:
    """Every command and its flags."""
    whole = argparse.ArgumentParser(
        prog="mpsearch",
        description="Decide which number format each layer of a neural network should have.",
    )
    whole.add_argument("--version", action="version", version=f"mpsearch {__version__}")
    verbs = whole.add_subparsers(dest="command", required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )

    def verb(name: str, help: str) -> argparse.ArgumentParser:  # noqa: A002
        return verbs.add_parser(name, help=help, description=help, parents=[common])

    _demo(verb("demo", "the whole line on a small trained network that comes with the package"))
    _search(verb("search", "find a per-layer allocation within budgets, and run it for real"))
    _sensitivity(verb("sensitivity", "write the table of predicted losses"))
    _cost(verb("cost", "write the table of a hardware cost"))
    _solve(verb("solve", "solve a saved problem (needs no torch)"))
    _frontier(verb("frontier", "the Pareto frontier of a saved problem (needs no torch)"))
    _profile(verb("profile", "measure every layer at every option on this machine"))
    _verify(verb("verify", "quantize for real and put measured figures beside the predicted ones"))
    show = verb("show", "print an allocation, a frontier, a table or a problem")
    show.add_argument("file")
    diff = verb("diff", "what differs between two allocations")
    diff.add_argument("first")
    diff.add_argument("second")
    _export(verb("export", "an allocation in another tool's words"))
    listing = verb("list", "what is there by name")
    listing.add_argument(
        "kind",
        choices=[
            "sensitivity",
            "solvers",
            "hwmodels",
            "formats",
            "backends",
            "devices",
            "exporters",
            "frontiers",
            "networks",
        ],
    )
    return whole


def _demo(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--network", choices=["language", "digits"], default="language")
    verb.add_argument("--budget", default="size=uniform:w4a8", help="as for search")
    verb.add_argument("--folder", default=".", help="where bits.json and report.html are written")


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("task", help="FILE.py that defines task(), demo:NAME, or hf:DIR_OR_NAME")
    verb.add_argument("--text", help="text to calibrate and judge a Hugging Face model on")


def _choices(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--options", required=True, help="such as w2a8,w4a8,w8a8 or int4g128/fp16")
    verb.add_argument("--pin", action="append", default=[], metavar="REGEX=OPTION")
    verb.add_argument("--skip", action="append", default=[], metavar="REGEX")


def _recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--ranges", choices=["mse", "minmax"], help="how weight ranges are chosen")
    verb.add_argument("--rounding", help="nearest (the default), gptq, decoupleq, ...")
    verb.add_argument(
        "--salience",
        choices=["magnitude", "hessian"],
        help="what a format that keeps some weights at more bits chooses them by",
    )
    verb.add_argument(
        "--corrections",
        help="moments (the default), bias, batchnorm, spread (moments,spread: both) or none",
    )
    verb.add_argument(
        "--preparations", help="none (the default), fold, smooth, rotate, shift, align or clip"
    )
    verb.add_argument(
        "--bos",
        action="append",
        metavar="REGEX",
        help="layers that keep what they write for the first token in floats",
    )
    verb.add_argument("--samples", type=int, help="samples that roundings and corrections look at")


def _work(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--method", default="kl", help="a sensitivity estimator; see: list sensitivity"
    )
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--cache", metavar="DIR", help="keep results there, and go on from them")
    verb.add_argument("--workers", type=int, default=1)
    verb.add_argument(
        "--memory",
        default="4GB",
        help="most that samples are run and kept in (4GB)",
        metavar="SIZE",
    )


def _output(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument("-o", "--output", metavar="FILE", help=f"write {what} there")


def _budgets(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="size=6.7MB, size=25%%, size=4.0bit or size=uniform:w4a8; repeatable",
    )


def _search(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    _choices(verb)
    _recipe(verb)
    _work(verb)
    _budgets(verb)
    verb.add_argument(
        "--model",
        action="append",
        help="a hardware model, such as size or bitops:nncf; repeatable (size, bitops)",
    )
    verb.add_argument("--device", help="a device, whose model prices it; see: list devices")
    verb.add_argument("--batch", type=int, default=1, help="samples the measured model times")
    verb.add_argument("--rounds", type=int, default=30, help="calls of each kernel it times")
    _phase(verb)
    verb.add_argument("--solver", default="auto")
    verb.add_argument("--points", type=int, default=60, help="most points of the frontier")
    verb.add_argument("--measure", type=int, default=3, help="points of the frontier run for real")
    verb.add_argument("--no-verify", action="store_true", help="predict only")
    verb.add_argument("--save-problem", metavar="FILE", help="for another budget without the model")
    verb.add_argument("--report", metavar="FILE", help="write an HTML page")
    verb.add_argument("--picture", metavar="FILE", help="write the frontier as SVG")
    _output(verb, "the allocation")


def _sensitivity(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    _choices(verb)
    _recipe(verb)
    _work(verb)
    _output(verb, "the table (.json or .npz)")


def _cost(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    _choices(verb)
    verb.add_argument(
        "--model",
        action="append",
        help="a hardware model, such as size or mcu:stm32h743; repeatable; see: list hwmodels",
    )
    verb.add_argument("--device", help="a device, whose model prices it; see: list devices")
    _output(verb, "the table (.json or .npz), several as FILE-NAME")


def _profile(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    _choices(verb)
    verb.add_argument("--backend", default="onednn", help="whose kernels run; see: list backends")
    verb.add_argument("--batch", type=int, default=1, help="samples run together")
    verb.add_argument("--rounds", type=int, default=30, help="calls of each kernel")
    _phase(verb)
    verb.add_argument("--cache", metavar="DIR", help="keep results there, and go on from them")
    _output(verb, "the table (.json or .npz)")


def _phase(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--phase",
        choices=("traced", "decode"),
        default="traced",
        help="decode times one token of each sample, as a language model writes (traced: all)",
    )


def _solve(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("problem")
    verb.add_argument("--solver", default="auto", help="see: list solvers; auto says which and why")
    _budgets(verb)
    asked = verb.add_mutually_exclusive_group()
    asked.add_argument(
        "--within",
        metavar="LOSS",
        help="the least --cost whose loss stays within: a number, 5%% above the best allocation's,"
        " or reference+5%%",
    )
    asked.add_argument(
        "--nested",
        metavar="NAME=VALUE,...",
        help="an allocation for each of these budgets in which no layer ever loses bits",
    )
    asked.add_argument("--top", type=int, metavar="K", help="the K best allocations, --apart")
    verb.add_argument("--cost", metavar="NAME", help="the cost that --within makes least")
    verb.add_argument("--apart", type=int, metavar="D", help="layers that --top's differ in (1)")
    _output(verb, "the allocation (several as FILE-1.json, FILE-2.json, ...)")


def _frontier(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("problem")
    verb.add_argument(
        "--cost",
        metavar="NAME[,NAME]",
        help="the cost along the frontier, or two of them; needed where there are several",
    )
    verb.add_argument("--solver", default="auto", help="see: list solvers; auto says which and why")
    verb.add_argument("--points", type=int, default=200, help="most points, or budgets solved")
    _output(verb, "the frontier")


def _verify(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    verb.add_argument("allocation")
    verb.add_argument("--uniform", help="options to measure everywhere too, such as w4a8,w8a8")
    _output(verb, "the verified allocation")


def _export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("allocation")
    verb.add_argument("--to", default="torchao", help="see: list exporters")
    _output(verb, "the tool's document")


if __name__ == "__main__":
    sys.exit(main())
