"""The command line: puts the commands of this package together.

Each command imports what it needs inside its function, so that `blip3o-rl --help` answers at once. A problem that the
user can fix is one line on standard error and exit code 2; any other exception keeps its traceback.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import typer
from rich.console import Console

from blip3o_rl.cli import (
    bench,
    convert,
    export,
    mini,
    rewards_check,
    rewards_list,
    rewards_new,
    rewards_score,
    rewards_serve,
    sft,
)
from blip3o_rl.cli import doctor as machine
from blip3o_rl.cli import report as run_report
from blip3o_rl.cli import train as runs
from blip3o_rl.cli.eval import evaluate
from blip3o_rl.cli.generate import generate
from blip3o_rl.cli.output import plain
from blip3o_rl.cli.reconstruct import reconstruct
from blip3o_rl.cli.tokenize import tokenize
from blip3o_rl.errors import UserError

app = typer.Typer(
    name="blip3o-rl",
    help="Reinforcement learning for BLIP3o-NEXT image generation, on verl, vLLM and Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
rewards_app = typer.Typer(help="The rewards that a recipe can name.", no_args_is_help=True)
bench_app = typer.Typer(help="How fast things are on this machine.", no_args_is_help=True)
mini_app = typer.Typer(help="The small model that ships with the package.", no_args_is_help=True)

app.command()(machine.doctor)
app.command()(generate)
app.command()(tokenize)
app.command()(reconstruct)
app.command()(runs.train)
app.command()(runs.submit)
app.command()(sft.sft)
app.command("eval")(evaluate)
app.command()(convert.convert)
app.command()(export.export)
app.command()(run_report.report)
app.add_typer(rewards_app, name="rewards")
rewards_app.command("list")(rewards_list.list_rewards)
rewards_app.command()(rewards_new.new)
rewards_app.command()(rewards_check.check)
rewards_app.command()(rewards_score.score)
rewards_app.command()(rewards_serve.serve)
app.add_typer(bench_app, name="bench")
bench_app.command("rewards")(bench.bench_rewards)
app.add_typer(mini_app, name="mini")
mini_app.command("build")(mini.build)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # a prompt in Chinese must not end a command in a terminal without it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code: 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        code: Any = app(args=arguments, prog_name="blip3o-rl", standalone_mode=False)
    except UserError as error:
        return _refuse(str(error))
    except typer.Abort:
        return runs.INTERRUPTED
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        if not usage():
            return 2
        context = getattr(error, "ctx", None)
        return _refuse(f"{usage().rstrip('.')}; see {context.command_path if context else 'blip3o-rl'} --help")
    return code if isinstance(code, int) else 0


def _refuse(text: str) -> int:
    line = plain(f"error: {' '.join(text.split())}")
    Console(stderr=True, soft_wrap=True).print(line, style="red")
    return 2


if __name__ == "__main__":
    main()
