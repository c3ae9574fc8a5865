"""One process of supervised fine-tuning: builds the model, makes the steps, saves, resumes, writes the model folder.

Several processes share the weights, gradients and optimiser by FSDP: `fully_shard` of torch on every block of policy
and diffusion transformer and on the rest, which is what accelerate's FSDP2 does too. It is called directly because
accelerate refuses FSDP on processes without an accelerator, and a sharded run that cannot be tested on a CPU is not
tested. accelerate starts the process group, so `accelerate launch` and torchrun work, too. One process takes the same
path without sharding.

Weights and optimiser are float32, the computation is bfloat16 where there is a GPU. Image tokenizer and autoencoder
are whole on every process and frozen; a batch is encoded when it is needed, while the next one is decoded.

Noise, dropped conditions and the scale of a step follow from seed, step and process; the data from the position that
each checkpoint holds. So a run that was killed and resumed makes the steps of one that was not.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from blip3o_rl.config.sft import Settings
from blip3o_rl.errors import UserError
from blip3o_rl.io import append_line, write_text
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.token_layout import encode_prompt
from blip3o_rl.report.progress import Progress, progress
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import duration
from blip3o_rl.sft import checkpoints as sft_checkpoints
from blip3o_rl.sft.checkpoints import DataState
from blip3o_rl.sft.image_text import BadPair, Pair, RawPair, find_files, prepare
from blip3o_rl.sft.loop import generator_for, lr_factor, plot
from blip3o_rl.sft.losses import Batch, SFTConfig, collate, sft_loss, trainable_parameters
from blip3o_rl.sft.pair_stream import PairStream, Position

ENCODE_CHUNK = 4
"""Pictures that the autoencoder encodes at a time; at 1024 px its activations are the largest of all."""
LOSSES = ("loss", "tokens", "flow")
STREAMS = 2
"""Independent random streams of a run: 0 for the noise and the dropped conditions, 1 for the scales."""


@dataclass(frozen=True)
class Example:
    """A pair with its prompt's token ids at scale 0."""

    pair: Pair
    prompt: list[int]


class SFTModule(nn.Module):
    """All that is trained, as one module: FSDP gathers what lies outside the blocks for one forward pass of it.

    Only connector and diffusion transformer of the renderer are sub-modules; the autoencoder is not FSDP's business.
    """

    def __init__(self, policy: Any, renderer: Renderer, config: SFTConfig):
        super().__init__()
        self.policy = policy
        self.connector, self.transformer = renderer.connector, renderer.transformer
        self.config = config
        self._renderer = (renderer,)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`sft_loss` of a batch."""
        return sft_loss(self.policy, self._renderer[0], batch, self.config, generator)


class Worker:
    """Everything that one process holds; `run` is what it is for."""

    def __init__(self, settings: Settings, folder: RunFolder):
        self.settings, self.folder = settings, folder
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.device, self.rank, self.world = self.state.device, self.state.process_index, self.state.num_processes
        dtype = settings.train.dtype
        self.bfloat16 = dtype == "bfloat16" or (dtype == "auto" and self.device.type == "cuda")
        self.base = model_folder.check(settings.model.folder, model_folder.PARTS)
        self.tokenizer = model_folder.load_tokenizer(self.base)
        self.layout = model_folder.load_layout(self.base)
        self.image_tokenizer = model_folder.load_image_tokenizer(self.base, device=self.device)
        self.model, self.optimizer, self.peaks = self._build()
        self._lock = Lock()

    def _build(self) -> tuple[SFTModule, torch.optim.Optimizer, list[float]]:
        train = self.settings.train
        policy = model_folder.load_policy(self.base).train().requires_grad_(True)
        renderer = model_folder.load_renderer(self.base)
        renderer.transformer.train()
        trainable_parameters(renderer, train.trainable)
        renderer.vae.to(self.device)
        if train.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            renderer.transformer.enable_gradient_checkpointing()
        config = SFTConfig(
            steps=train.steps,
            policy_lr=train.policy_lr,
            renderer_lr=train.renderer_lr,
            diffusion_weight=train.diffusion_weight,
            condition_drop=train.condition_drop,
            noise_draws=train.noise_draws,
            trainable=train.trainable,
        )
        model = SFTModule(policy, renderer, config)
        self.renderer = renderer
        if self.world > 1:
            shard(model, self.device, self.bfloat16)
        else:
            model.to(self.device)
        parts = (model.connector, model.transformer)
        groups = [
            {"params": list(model.policy.parameters()), "lr": train.policy_lr},
            {"params": [p for part in parts for p in part.parameters() if p.requires_grad], "lr": train.renderer_lr},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(train.betas[0], train.betas[1]), weight_decay=train.weight_decay)
        return model, optimizer, [train.policy_lr, train.renderer_lr]

    def run(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step, and writes the model folder."""
        train, run = self.settings.train, self.settings.run
        done, data = sft_checkpoints.restore(self.folder, self.model, self.optimizer)
        if self.rank == 0:
            self.folder.truncate_after(done)
        self._write_bad(data.bad)
        stream = self._stream(data)
        with contextlib.ExitStack() as stack:
            stack.callback(stream.close)
            shown: Progress | None = progress(train.steps, self.folder.name) if self.rank == 0 else None
            if shown:
                stack.enter_context(shown)
                shown.phase(f"{self.world} process{'es' if self.world > 1 else ''} on {self.device.type}")
            board = stack.enter_context(_board(self.folder.tensorboard)) if self.rank == 0 else None
            batches = stack.enter_context(contextlib.closing(_ahead(stream, train.batch_size)))
            for step in range(done, train.steps):
                started = time.perf_counter()
                values, position = self._step(step, batches)
                values |= {"sft/bad_pairs": self._sum(len(stream.bad)), "sft/epoch": position.epoch}
                values["timing_s/step"] = time.perf_counter() - started
                if shown and board:
                    self.folder.append_metrics(step + 1, values)
                    for name, value in values.items():
                        board.add_scalar(name, value, step + 1)
                    shown.phase(_line(step + 1, train.steps, values))
                if (step + 1) % run.save_every == 0 or step + 1 == train.steps:
                    data = DataState(position, dict(stream.bad))
                    sft_checkpoints.save(self.folder, step + 1, self.model, self.optimizer, data, run.keep)
                    if shown:
                        plot([_history(line) for line in self.folder.read_metrics()], self.folder.path / "loss.png")
            if shown:
                shown.phase("writing the model folder")
            sft_checkpoints.write_model(self.folder, self.model, self.base, self.tokenizer, run.save_dtype)
        if self.world > 1:
            self.state.destroy_process_group()

    def _step(self, step: int, batches: Iterator[tuple[list[Example], Position]]) -> tuple[dict[str, float], Position]:
        """One optimiser step: its metrics, and the data's position behind it."""
        train, seed = self.settings.train, self.settings.run.seed * STREAMS
        factor = lr_factor(step, train.steps, round(train.warmup * train.steps), train.final_lr)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        scales = self.settings.model.scales
        scale = scales[int(torch.randint(len(scales), (), generator=generator_for(seed + 1, step)))]
        sums, waited = Counter[str](), 0.0
        for micro in range(train.accumulate):
            begun = time.perf_counter()
            examples, position = next(batches)
            waited += time.perf_counter() - begun
            batch = self._encode(examples, scale)
            number = (step * train.accumulate + micro) * self.world + self.rank
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                losses = self.model(batch, generator_for(seed, number))
            (losses["loss"] / train.accumulate).backward()
            sums.update({name: float(losses[name].detach()) / train.accumulate for name in LOSSES})
        norm = nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], train.clip)
        means = reduce(torch.tensor([sums[name] for name in LOSSES], device=self.device), "mean")
        values = {f"sft/{name}": float(mean) for name, mean in zip(LOSSES, means, strict=True)}
        values["sft/grad_norm"] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"step {step + 1}: the loss or its gradient is not finite ({values}); lower train.policy_lr or "
                "train.renderer_lr and resume from the last checkpoint"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        values |= {"sft/lr": self.peaks[0] * factor, "sft/scale": scale, "timing_s/data": waited}
        values["sft/pictures"] = train.batch_size * train.accumulate * self.world
        return values, position

    @torch.no_grad()
    def _encode(self, examples: list[Example], scale: int) -> Batch:
        """Tokens and latents of prepared pairs, on the device."""
        squares = self.image_tokenizer.preprocess([example.pair.square for example in examples])
        indices = self.image_tokenizer.encode(squares, scale).cpu()
        chunks = torch.stack([example.pair.pixels for example in examples]).split(ENCODE_CHUNK)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            latents = torch.cat([self.renderer.encode_latents(chunk) for chunk in chunks])
        prompts = [[*example.prompt[:-1], self.layout.scale_token_id(scale)] for example in examples]
        batch = collate(prompts, indices, latents, self.layout, self.tokenizer.pad_token_id or 0)
        return Batch(*(value.to(self.device) for value in vars(batch).values()))

    def _stream(self, state: DataState) -> PairStream[Example]:
        data = self.settings.data
        longest = data.max_tokens - max(map(self.layout.tokens_per_image, self.settings.model.scales))

        def make(raw: RawPair) -> Example:
            pair = prepare(raw, self.image_tokenizer.config.image_size, self.renderer.image_size, data.crop)
            with self._lock:  # fast tokenizers are not safe in several threads
                prompt = encode_prompt(self.tokenizer, pair.caption, 0, self.layout)
            if len(prompt) > longest:
                raise BadPair(f"prompt of {len(prompt)} tokens, data.max_tokens leaves room for {longest}")
            return Example(pair, prompt)

        return PairStream(
            find_files(data.files),
            make,
            fields=self.settings.fields,
            seed=self.settings.run.seed,
            shuffle=data.shuffle,
            max_bad=data.max_bad,
            rank=self.rank,
            world=self.world,
            threads=data.threads,
            position=state.position,
            bad=state.bad,
            on_bad=lambda where, reason: append_line(self._bad_file, {"where": where, "reason": reason}),
        )

    @property
    def _bad_file(self) -> Path:
        return self.folder.logs / f"bad_pairs_{self.rank}.jsonl"

    def _write_bad(self, bad: dict[str, str]) -> None:
        lines = [json.dumps({"where": where, "reason": reason}) + "\n" for where, reason in bad.items()]
        write_text(self._bad_file, "".join(lines))

    def _sum(self, value: float) -> float:
        return float(reduce(torch.tensor(float(value), device=self.device), "sum"))


def shard(model: SFTModule, device: torch.device, bfloat16: bool) -> None:
    """Distributes weights, gradients and optimiser over all processes; gathered block by block, in the dtype used."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in (*model.policy.model.layers, *model.transformer.transformer_blocks):
        fully_shard(block, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)


def _ahead(stream: PairStream[Example], count: int) -> Generator[tuple[list[Example], Position], None, None]:
    """Batches with the position behind each; one is prepared while the one before is trained on."""

    def draw() -> tuple[list[Example], Position]:
        return stream.take(count), stream.position

    with ThreadPoolExecutor(1) as pool:
        coming: Future[tuple[list[Example], Position]] = pool.submit(draw)
        while True:
            ready, coming = coming.result(), pool.submit(draw)
            yield ready


@contextlib.contextmanager
def _board(folder: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    with contextlib.closing(SummaryWriter(str(folder))) as writer:
        yield writer


def _line(step: int, steps: int, values: dict[str, float]) -> str:
    seconds = values["timing_s/step"]
    text = f"step {step}/{steps}  loss {values['sft/loss']:.4f} (tokens {values['sft/tokens']:.4f}, flow "
    text += f"{values['sft/flow']:.4f})  {seconds:.1f} s"
    if values["sft/bad_pairs"]:
        text += f"  bad pairs left out: {values['sft/bad_pairs']:.0f}"
    return text + (f"  left {duration((steps - step) * seconds)}" if step < steps else "")


def _history(line: dict[str, Any]) -> dict[str, float]:
    return {"step": line["step"]} | {name: line[f"sft/{name}"] for name in LOSSES}
