"""`blip3o-rl prompts rewrite`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from blip3o_rl.cli.output import output_file, print_first
from blip3o_rl.cli.runs import interruptible
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow
    from blip3o_rl.data.rewriting import Rewritten
    from blip3o_rl.rewards.preference.chat import ChatSettings


def rewrite(
    prompts: Annotated[Path, typer.Argument(help="prompt file")],
    model: Annotated[str, typer.Option(help="name under which the server serves the language model")],
    url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint, up to and including the version")
    ] = "http://127.0.0.1:8000/v1",
    instruction_file: Annotated[
        Path | None, typer.Option(help="text file with the question, with {prompt} in it, in place of our own")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="environment variable with the key")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="requests at once")] = 16,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="the new file, with its cache next to it; default: in outputs/"),
    ] = None,
) -> None:
    """Rewrites prompts with a language model and keeps the originals; asks once for each prompt, and goes on where a
    killed command stopped. Exits with 1 if a prompt stayed as it was."""
    from blip3o_rl.config.base import validate
    from blip3o_rl.data.prompts import read_prompts
    from blip3o_rl.data.rewriting import INSTRUCTION
    from blip3o_rl.data.text_files import read_text
    from blip3o_rl.io import write_lines
    from blip3o_rl.rewards.preference.chat import ChatSettings

    rows = read_prompts(prompts)
    instruction = INSTRUCTION if instruction_file is None else read_text(instruction_file)
    if "{prompt}" not in instruction:
        raise UserError(f"--instruction-file {instruction_file}: has no {{prompt}} in it; write where the prompt goes")
    asked = {"url": url, "model": model, "api_key_env": api_key_env, "max_requests": concurrency}
    settings = validate(ChatSettings, asked, "")
    target = output_file(out or Path("outputs") / f"{prompts.name.split('.')[0]}-rewritten.jsonl")
    if target.resolve() == prompts.resolve():
        raise UserError(f"--out {target}: is the file that is read; give another name")
    with interruptible("the same command, which asks only for what is missing"):
        found = asyncio.run(_rewrite(rows, settings, instruction, target))
    write_lines(target, found.lines)
    print_first(found.problems)
    done = len(found.lines) - len(found.problems)
    print(f"{done} of {len(found.lines)} prompts rewritten, {found.asked} asked for")
    print(target)
    if found.problems:
        raise typer.Exit(1)


async def _rewrite(rows: Sequence[PromptRow], settings: ChatSettings, instruction: str, out: Path) -> Rewritten:
    from blip3o_rl.data.rewriting import rewrite
    from blip3o_rl.rewards.preference.chat import complete, open_client
    from blip3o_rl.scoring.api import RewardError, Unreachable

    turn = asyncio.Semaphore(settings.max_requests)
    with Console(stderr=True).status("") as status:
        async with open_client(settings) as client:

            async def ask(question: str) -> str:
                async with turn:
                    try:
                        return await complete(client, settings, question)
                    except Unreachable as error:
                        raise UserError(f"{error}; start the server and give the same command again") from error
                    except RewardError as error:
                        raise ValueError(str(error)) from error

            def show(done: int, total: int) -> None:
                status.update(f"{done} of {total} prompts")

            return await rewrite(rows, ask, instruction, settings.model, out, show)
