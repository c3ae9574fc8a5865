"""`blip3o-rl bench render | sample | step | scaling | logprob | startup`: how fast the stages of a step are."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl.cli import options
from blip3o_rl.cli.output import number, output_file, print_table, table
from blip3o_rl.cli.runs import Arguments, recipe_and_overrides
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig

if TYPE_CHECKING:
    from blip3o_rl.benchmarks.measure import Report, Timing

Images = Annotated[int, typer.Option(min=1, help="images per repetition")]
Repetitions = Annotated[int, typer.Option(min=1, help="rounds, each with every procedure once; the median counts")]
Result = Annotated[
    Path | None,
    typer.Option(
        callback=lambda path: path and output_file(path, "bench.json"),
        help="the result, JSON; by default outputs/bench_<stage>.json",
    ),
]
PROMPT = "a photo of a red circle left of a blue square"


def bench_render(
    model: options.Model = "mini",
    scale: options.Scale = 2,
    images: Images = 64,
    batch_size: options.BatchSize = 16,
    steps: options.Steps = DEFAULTS.steps,
    guidance: options.Guidance = DEFAULTS.guidance,
    repetitions: Repetitions = 5,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    out: Result = None,
) -> None:
    """Times rendering: the original's loop, what each saving brings, cheaper settings, and the device's bound."""
    config = GenerationConfig(scale, steps, guidance, batch_size=min(batch_size, images))
    from blip3o_rl.model.folder import GENERATING, ModelFolder

    folder = ModelFolder(model, *GENERATING)
    rows = folder.layout.tokens_per_image(scale) + 1
    from blip3o_rl.benchmarks import bounds, measure, stages

    place = options.Placement.of(dtype, device)
    renderer = folder.load_renderer(place.dtype, place.device)
    report = measure.Report("bench render", _settings(locals()), [], bounds.measure(place.device, place.dtype))
    report.timings = measure.interleaved(stages.rendering(renderer, config, images, rows), repetitions, place.device)
    stages.note_differences(report.timings)
    _finish(report, out)


def bench_sample(
    model: options.Model = "mini",
    scale: options.Scale = 2,
    images: Images = 64,
    repetitions: Repetitions = 3,
    backend: options.ManyBackend = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    out: Result = None,
) -> None:
    """Times sampling with hidden states: the original's two passes, transformers, vLLM with and without states."""
    from blip3o_rl.model.folder import GENERATING, ModelFolder

    folder = ModelFolder(model, *GENERATING)
    steps = folder.layout.tokens_per_image(scale) + 1
    from blip3o_rl.benchmarks import bounds, measure, stages
    from blip3o_rl.model.token_layout import encode_prompt

    place = options.Placement.of(dtype, device, backend, many=True)
    policy, tokenizer = folder.load_policy(place.dtype, place.device), folder.load_tokenizer()
    prompts = [encode_prompt(tokenizer, PROMPT, scale, folder.layout)] * images
    report = measure.Report("bench sample", _settings(locals()), [], bounds.measure(place.device, place.dtype))
    with ExitStack() as stack:
        engine: Any = None
        if place.backend == "vllm":
            from blip3o_rl.rollout.offline import OfflineSampler

            engine = stack.enter_context(OfflineSampler(model, place.dtype, images, graphs=True))
        procedures = stages.sampling(policy, tokenizer.pad_token_id, prompts, GenerationConfig(scale), engine)
        report.timings = measure.interleaved(procedures, repetitions, place.device)
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    for timing in report.timings:  # each token step reads all weights
        share = weights * steps / timing.median / report.bounds.bytes_per_s if report.bounds else None
        timing.notes["share_of_bandwidth"] = share
    _finish(report, out)


def bench_step(
    arguments: Arguments = None,
    repetitions: Repetitions = 3,
    backend: options.ManyBackend = "auto",
    dtype: options.Dtype = "auto",
    out: Result = None,
) -> None:
    """Times the stages of a recipe's training step in this process, without Ray and verl, next to the original's."""
    recipe, overrides = recipe_and_overrides(arguments, "bench step", "recipes/words")
    from blip3o_rl.benchmarks.recipe import read

    found = read(recipe, overrides)
    found.refuse_edits("bench step")
    from blip3o_rl.benchmarks import bounds, measure, step

    settings = found.settings
    place = options.Placement.of(dtype, "cpu" if settings.trainer.device == "cpu" else "auto", backend, many=True)
    report = measure.Report("bench step", _settings(locals()), [], bounds.measure(place.device, place.dtype))
    with ExitStack() as stack:
        pipe = place.load_pipeline(settings.model.folder, stack, found.images)
        policy = pipe.policy or found.folder.load_policy(place.dtype, place.device)
        procedures = step.procedures(pipe, policy, settings, found.rubric, found.rows)
        timings = measure.interleaved(procedures, repetitions, place.device)
    report.timings = [*timings, *step.totals(timings)]
    _finish(report, out)


def bench_scaling(
    model: options.Model = "mini",
    scale: options.Scale = 2,
    images: Annotated[list[int] | None, typer.Option(min=1, help="may be repeated; by default 16, 64, 256")] = None,
    batch_size: options.BatchSize = 16,
    steps: options.Steps = 8,
    guidance: options.Guidance = DEFAULTS.guidance,
    repetitions: Repetitions = 3,
    backend: options.ManyBackend = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    out: Result = None,
) -> None:
    """Times sampling and rendering of several numbers of images, and of the fewest at every scale, with a plot."""
    config, images = GenerationConfig(scale, steps, guidance, batch_size=batch_size), images or [16, 64, 256]
    from blip3o_rl.model.folder import GENERATING, ModelFolder

    layout = ModelFolder(model, *GENERATING).layout
    tokens = {each: layout.tokens_per_image(each) for each in range(3)}
    from blip3o_rl.benchmarks import bounds, measure, scaling

    place, wanted = options.Placement.of(dtype, device, backend, many=True), scaling.sizes(images, min(images), scale)
    report = measure.Report("bench scaling", _settings(locals()), [], bounds.measure(place.device, place.dtype))
    with ExitStack() as stack:
        pipe = place.load_pipeline(model, stack, max(images))
        report.timings = measure.interleaved(
            scaling.procedures(pipe, PROMPT, wanted, config), repetitions, place.device
        )
    scaling.plot(report.timings, wanted, tokens, _finish(report, out).with_suffix(".png"))


def bench_logprob(
    vocabulary: Annotated[int, typer.Option(min=1, help="token ids in all")] = 217_210,
    image_tokens: Annotated[int, typer.Option(min=1, help="of them image tokens")] = 65_536,
    hidden: Annotated[int, typer.Option(min=1, help="width of the hidden states")] = 2048,
    tokens: Annotated[int, typer.Option(min=1, help="tokens per image")] = 729,
    images: Images = 1,
    repetitions: Repetitions = 3,
    device: options.Device = "auto",
    out: Result = None,
) -> None:
    """Times log-probabilities from hidden states, and counts their memory; the sizes are the published model's."""
    from blip3o_rl.benchmarks import bounds, measure, stages

    place = options.Placement.of("auto", device)
    report = measure.Report("bench logprob", _settings(locals()), [], bounds.measure(place.device, place.dtype))
    heads = stages.heads(vocabulary, image_tokens, hidden, tokens, images, place.device)
    report.timings = measure.interleaved([procedure for procedure, _ in heads], repetitions, place.device)
    for timing, (_, peak) in zip(report.timings, heads, strict=True):
        timing.notes["peak_gib"] = peak() / 2**30
    _finish(report, out)


def bench_startup(repetitions: Repetitions = 3, out: Result = None) -> None:
    """Times what a command and each process of a run import before they do anything, in fresh interpreters."""
    from blip3o_rl.benchmarks import measure, startup

    report = measure.Report("bench startup", _settings(locals()), [], None)
    report.timings = startup.measure(repetitions)
    rows = table("", "s", "CPU s", "MiB", "modules", "")
    for timing in report.timings:
        notes = timing.notes
        sizes = f"{notes['cpu_s']:.2f}", f"{notes['peak_mib']:.0f}", str(notes["modules"])
        rows.add_row(f"{timing.stage}: {timing.name}", f"{timing.median:.2f}", *sizes, " ".join(notes["heavy"]))
    _write(report, rows, out)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The plain values among a command's arguments."""
    return {
        name: value for name, value in given.items() if isinstance(value, str | int | float | list) and name != "out"
    }


def _finish(report: Report, out: Path | None) -> Path:
    """Prints the table, and returns the file that holds the numbers."""
    known = dict.fromkeys(name for timing in report.timings for name in timing.notes)
    rows = table(
        "", "s", "from - to", "images/s", "times", "TFLOP", "of matmul", *(name.replace("_", " ") for name in known)
    )
    for timing in report.timings:
        rows.add_row(*_cells(report, timing), *(number(timing.notes.get(name)) for name in known))
    file = _write(report, rows, out)
    if bound := report.bounds:
        rates = f"{bound.flops_per_s / 1e12:.3g} TFLOP/s, {bound.bytes_per_s / 1e9:.3g} GB/s"
        print(f"bounds, measured now: {rates} ({bound.device}, {bound.dtype})")
    return file


def _cells(report: Report, timing: Timing) -> tuple[str, ...]:
    share = timing.share(report.bounds)
    return (
        f"{timing.stage}: {timing.name}",
        number(timing.median),
        f"{min(timing.seconds):.3g} - {max(timing.seconds):.3g}",
        f"{timing.images / timing.median:.3g}",
        f"{report.ratio(timing):.2f}",
        "-" if timing.flops is None else f"{timing.flops / 1e12:.4g}",
        "-" if share is None else f"{share:.0%}",
    )


def _write(report: Report, rows: Any, out: Path | None) -> Path:
    from blip3o_rl.io import free_path, write_json

    print_table(rows)
    found = report.to_json()
    cores, load = found["machine"]["cores"], report.load[0]
    if load > cores / 2:
        print(f"the machine was busy (load {load:.1f} on {cores} cores when it began): trust ratios, not seconds")
    target = free_path(out or Path("outputs") / f"{report.command.replace(' ', '_')}.json")
    write_json(target, found)
    print(target)
    return target
