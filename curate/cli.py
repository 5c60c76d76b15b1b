"""The command line, `curate COMMAND`: each command imports what it needs when it is called."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from curate import __version__
from curate.errors import CurateError, one_line
from curate.options import add_common, add_config_options, budget, tau, tau_or_none
from curate.privacy import public_text

EXPORTS = "imagefolder, webdataset, parquet, hf, csv, atlas, fiftyone"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 only when the stage did all it should; 2 for wrong usage, 1 for the rest."""
    options = parsed(_parser(), arguments)
    return guarded(options, options.command)


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """argparse takes no key=value after an option; here they may stand anywhere."""
    options, rest = parser.parse_known_args(arguments)
    wrong = [one for one in rest if one.startswith("-") or "=" not in one]
    if wrong or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
    if rest:
        options.overrides += rest
    return options


class _Public(logging.Formatter):
    """Lines without the secrets of their URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record))


def guarded(options: argparse.Namespace, command: Command) -> int:
    """Run a command; a failure is one line on stderr, a traceback only with --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Public("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "huggingface_hub", "timm", "botocore", "aiobotocore", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not options.verbose:
        warnings.simplefilter("ignore")
    try:
        command(options)
    except CurateError as error:
        if options.debug:
            raise
        print(f"curate: {public_text(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("curate: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(
            f"curate: {type(error).__name__}: {one_line(error)} (--debug shows where)",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="curate", description="Select the coreset worth pretraining on, from any open set."
    )
    parser.add_argument("--version", action="version", version=f"curate {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for name, (about, command) in ON_CONFIG.items():
        parser_of_name = commands.add_parser(name, help=about)
        parser_of_name.add_argument("config", metavar="CONFIG", help="YAML, on any filesystem")
        add_config_options(parser_of_name, name)
        parser_of_name.set_defaults(command=command)

    recut = _of_run(commands, "recut", "other limits on a run that is done", _recut_command)
    recut.add_argument("--tau", type=tau_or_none, help="0…1, or none")
    recut.add_argument("--budget", type=budget, help="images, or a fraction as in 0.05")
    recut.add_argument("--reference-round", type=int, metavar="T")

    about = "the coreset, with its images, for other tools"
    export = _of_run(commands, "export", about, _export_command)
    export.add_argument("--format", required=True, help=EXPORTS)
    export.add_argument("--to", required=True, metavar="FOLDER", help="on any filesystem")
    export.add_argument("--manifest", metavar="FILE", help="another one, as of recut")
    about = "the encoder that a run has pretrained, for other tools"
    encoder = _of_run(commands, "export-encoder", about, _export_encoder_command)
    encoder.add_argument("--format", required=True, help="timm, onnx")
    encoder.add_argument("--to", required=True, metavar="FOLDER", help="on any filesystem")
    _of_run(commands, "report", "pages that show a run that is done", _report_command)

    watch = commands.add_parser("watch", help="how far a run is, from anywhere")
    watch.add_argument("run", metavar="RUN", help="the run's output")
    watch.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds (5)")
    watch.add_argument("--once", action="store_true", help="look once, and end")
    watch.add_argument("--debug", action="store_true", help="tracebacks")
    watch.set_defaults(command=_watch_command, verbose=False)

    store = commands.add_parser("store", help="embeddings that several runs share")
    of_store = store.add_subparsers(required=True, metavar="WHAT")
    prune = of_store.add_parser("prune", help="list what no run names any more, or remove it")
    prune.add_argument("store", metavar="STORE", help="what `store` is in the configs")
    prune.add_argument("--remove", action="store_true")
    add_common(prune)
    prune.set_defaults(command=_prune_command)

    _add_select(commands)
    return parser


def _add_select(commands: Any) -> None:
    select = commands.add_parser("select", help="the same selection, on embeddings of your own")
    select.add_argument("--embeddings", required=True, nargs="+", metavar="PATTERN")
    by = select.add_mutually_exclusive_group(required=True)
    by.add_argument("--centroids", metavar="FILE", help=".npy (K, D), unit rows")
    by.add_argument("--target", nargs="+", metavar="PATTERN", help="the target's embeddings")
    select.add_argument("--output", required=True, metavar="FILE", help="the manifest, .parquet")
    select.add_argument("--tau", type=tau, default=0.95, help="0…1, or none (default 0.95)")
    select.add_argument("--reference-round", type=int, default=1, metavar="T")
    select.add_argument("--budget", type=budget, help="images, or a fraction as in 0.05")
    for name, kind in {"method": str, "ratio": str, "gate": float, "clusters": int}.items():
        select.add_argument(f"--{name}", type=kind, help=f"coreset.{name}, with --target")
    select.add_argument("--seed", type=int, help="coreset.seed, with --target")
    select.add_argument("--where", metavar="EXPRESSION", help="coreset.where, of their columns")
    select.add_argument("--keep", nargs="+", metavar="COLUMN", help="coreset.keep")
    add_common(select)
    select.set_defaults(command=_select_command)


def _of_run(
    commands: Any, name: str, about: str, command: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.add_argument("run", metavar="RUN", help="the run's output")
    add_common(parser)
    parser.set_defaults(command=command)
    return parser


def _run_command(options: argparse.Namespace) -> None:
    # The config first: a wrong key is told at once, not after seconds of imports
    from curate.settings.load import load_runs

    runs = load_runs(options.config, options.overrides)
    from curate import cluster

    cluster.connect(options.address, verbose=options.verbose)  # workers start during the imports
    from curate.pipeline import run_all
    from curate.runfiles.files import RunFiles

    summaries = run_all(runs, fresh=options.fresh, accept_changes=options.accept_changes)
    for settings, summary in zip(runs, summaries, strict=True):
        if len(runs) > 1:
            print(f"\n{settings.output}")
        print(summary.table(RunFiles(settings.output)))


def _plan_command(options: argparse.Namespace) -> None:
    from curate.settings.load import load_runs

    runs = load_runs(options.config, options.overrides)
    from curate import cluster

    cluster.connect(options.address, verbose=options.verbose)
    from curate.forecast import forecast

    print("\n\n".join(forecast(settings).table() for settings in runs))


def _pretrain_command(options: argparse.Namespace) -> None:
    from curate.settings.load import load

    settings = load(options.config, options.overrides)
    from curate import cluster
    from curate.pretraining.stage import pretrain

    cluster.connect(options.address, verbose=options.verbose)
    print(pretrain(settings, fresh=options.fresh).table())


def _evaluate_command(options: argparse.Namespace) -> None:
    from curate.settings.load import load

    settings = load(options.config, options.overrides)
    from curate import cluster
    from curate.evaluate.stage import evaluate
    from curate.runfiles.summary import evaluation_table

    cluster.connect(options.address, verbose=options.verbose)
    print(evaluation_table([asdict(result) for result in evaluate(settings)]))


def _compare_command(options: argparse.Namespace) -> None:
    from curate.settings.load import load_comparison

    settings = load_comparison(options.config, options.overrides)
    from curate import cluster
    from curate.comparison.stage import compare

    cluster.connect(options.address, verbose=options.verbose)
    table = compare(settings, fresh=options.fresh, accept_changes=options.accept_changes)
    print(table.markdown())


Command = Callable[[argparse.Namespace], None]
ON_CONFIG: dict[str, tuple[str, Command]] = {
    "run": ("from sources to a coreset manifest", _run_command),
    "plan": ("what a run would read, and about what it takes; embeds nothing", _plan_command),
    "pretrain": ("train on target, coreset or open set", _pretrain_command),
    "evaluate": ("what an encoder is worth on labelled images", _evaluate_command),
    "compare": ("arms at equal steps: does the coreset pay?", _compare_command),
}


def _recut_command(options: argparse.Namespace) -> None:
    from curate import cluster
    from curate.coreset.recut import Limits, recut
    from curate.settings.base import absolute

    cluster.connect(options.address, verbose=options.verbose)
    limits = Limits(options.tau, options.budget, options.reference_round)
    print(recut(absolute(options.run), limits))


def _export_command(options: argparse.Namespace) -> None:
    from curate import cluster
    from curate.export.stage import export
    from curate.settings.base import absolute

    cluster.connect(options.address, verbose=options.verbose)
    places = [absolute(place) for place in (options.run, options.to)]
    print(export(places[0], options.format, places[1], options.manifest))


def _export_encoder_command(options: argparse.Namespace) -> None:
    from curate.export.encoder import export_encoder
    from curate.settings.base import absolute

    print(export_encoder(absolute(options.run), options.format, absolute(options.to)))


def _report_command(options: argparse.Namespace) -> None:
    from curate import cluster
    from curate.report.build import build
    from curate.settings.base import absolute

    cluster.connect(options.address, verbose=options.verbose)
    built = build(absolute(options.run))
    print(
        f"report: {built.uri} ({built.pages} pages, {built.thumbnails:,} images, "
        f"{built.unreadable:,} not readable any more; {built.seconds:.0f} s)"
    )


def _watch_command(options: argparse.Namespace) -> None:
    from curate.runfiles.watch import watch

    watch(options.run, options.every, once=options.once)


def _prune_command(options: argparse.Namespace) -> None:
    from curate import cluster
    from curate.runfiles.store import prune
    from curate.settings.base import absolute

    cluster.connect(options.address, verbose=options.verbose)
    folder = absolute(options.store)
    print(prune(folder, remove=options.remove).line(folder, options.remove))


def _select_command(options: argparse.Namespace) -> None:
    from curate import cluster
    from curate.coreset.own_embeddings import ALWAYS, OF_TARGET, select_files
    from curate.settings import CoresetSettings
    from curate.settings.load import validated

    given = {name: getattr(options, name) for name in OF_TARGET}
    keys = {name: value for name, value in given.items() if value is not None}
    if keys and not options.target:
        raise CurateError(f"select: --{', --'.join(keys)}: only with --target")
    keys |= {name: getattr(options, name) for name in (*ALWAYS, "keep")}
    coreset = validated(CoresetSettings, keys, "select")
    cluster.connect(options.address, verbose=options.verbose)
    print(
        select_files(options.embeddings, options.output, coreset, options.centroids, options.target)
    )


if __name__ == "__main__":
    sys.exit(main())
