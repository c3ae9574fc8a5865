"""The command line: registers the commands of this package.

Each command imports what it needs inside its function, so that `blip3o-rl --help` answers at once. A problem that the
user can fix is one line on standard error and exit code 2; any other exception keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import typer
from rich.console import Console

from blip3o_rl import allocator
from blip3o_rl.cli import (
    bench,
    bench_learn,
    bench_stages,
    convert,
    doctor,
    eval,
    export,
    generate,
    jobs,
    mini,
    plan,
    prompts_import,
    prompts_import_edits,
    prompts_make,
    prompts_pairs,
    prompts_preview,
    prompts_rewrite,
    reconstruct,
    report,
    rewards_check,
    rewards_list,
    rewards_new,
    rewards_score,
    rewards_serve,
    sft,
    submit,
    tokenize,
    train,
    tune,
)
from blip3o_rl.cli.output import plain
from blip3o_rl.errors import UserError
from blip3o_rl.terminal import INTERRUPTED

app = typer.Typer(
    name="blip3o-rl",
    help="Reinforcement learning for BLIP3o-NEXT image generation, on verl, vLLM and Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    ("", "doctor", doctor.doctor),
    ("", "generate", generate.generate),
    ("", "tokenize", tokenize.tokenize),
    ("", "reconstruct", reconstruct.reconstruct),
    ("", "plan", plan.plan),
    ("", "train", train.train),
    ("", "submit", submit.submit),
    ("jobs", "list", jobs.list_jobs),
    ("jobs", "status", jobs.status),
    ("jobs", "logs", jobs.logs),
    ("jobs", "stop", jobs.stop),
    ("", "sft", sft.sft),
    ("", "eval", eval.evaluate),
    ("", "convert", convert.convert),
    ("", "export", export.export),
    ("", "report", report.report),
    ("rewards", "list", rewards_list.list_rewards),
    ("rewards", "new", rewards_new.new),
    ("rewards", "check", rewards_check.check),
    ("rewards", "score", rewards_score.score),
    ("rewards", "serve", rewards_serve.serve),
    ("prompts", "make", prompts_make.make),
    ("prompts", "import", prompts_import.import_prompts),
    ("prompts", "import-edits", prompts_import_edits.import_edits),
    ("prompts", "rewrite", prompts_rewrite.rewrite),
    ("prompts", "preview", prompts_preview.preview),
    ("prompts", "pairs", prompts_pairs.pairs),
    ("bench", "rewards", bench.bench_rewards),
    ("bench", "render", bench_stages.bench_render),
    ("bench", "sample", bench_stages.bench_sample),
    ("bench", "logprob", bench_stages.bench_logprob),
    ("bench", "step", bench_stages.bench_step),
    ("bench", "scaling", bench_stages.bench_scaling),
    ("bench", "startup", bench_stages.bench_startup),
    ("bench", "learn", bench_learn.bench_learn),
    ("bench", "gpu", bench.bench_gpu),
    ("tune", "render", tune.tune_render),
    ("mini", "build", mini.build),
)
"""Group, name, function; in the order of the help."""
GROUPS = {
    "jobs": "The jobs of a Ray cluster, as `submit` starts them.",
    "rewards": "The rewards that a recipe can name.",
    "prompts": "Prompt files: of the built-in sources, from elsewhere, rewritten; briefs and edits, looked at.",
    "bench": "How fast things are on this machine.",
    "tune": "What may be cheaper in training without another result.",
    "mini": "The small model that ships with the package.",
}


NO_ROOM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of a file system that the user can fix: no permission, no room, no folder, too long a name."""


groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
for group, name, function in COMMANDS:
    (groups[group] if group else app).command(name)(function)
for name, commands in groups.items():
    app.add_typer(commands, name=name)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # a prompt in Chinese must not end a command in a terminal without it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    allocator.keep_freed_memory()
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code: 2 for what the user can fix, 130 after Ctrl-C."""
    try:
        code: Any = app(args=arguments, prog_name="blip3o-rl", standalone_mode=False)
    except UserError as error:
        return _refuse(str(error))
    except typer.Abort:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return _refuse(f"{error.filename or 'a file'}: {error.strerror}; write to another place, or make room there")
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, for bad usage
            raise
        context = getattr(error, "ctx", None)
        text = error.format_message().rstrip(".")
        return _refuse(f"{text}; see {context.command_path if context else 'blip3o-rl'} --help") if text else 2
    return code if isinstance(code, int) else 0


def _refuse(text: str) -> int:
    line = plain(f"error: {' '.join(text.split())}")
    Console(stderr=True, soft_wrap=True).print(line, style="red")
    return 2


if __name__ == "__main__":
    main()
