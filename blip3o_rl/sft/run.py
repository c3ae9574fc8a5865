"""One process of supervised fine-tuning: model, data, training, and the model folder at the end.

    checkpoints/checkpoint-N/   the Trainer's: what is trained, optimizer, schedule, state
    data/                       index of the rows
    logs/bad_pairs_R.jsonl      bad rows that process R met, where and why
    model/                      the model folder of the last step

Weights and optimizer are float32, the computation is bfloat16 where there is a GPU. Image tokenizer and autoencoder are
frozen and whole in every process; a batch is encoded when it is needed, while the next ones are prepared.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from blip3o_rl.checkpoint.convert import keep_origin
from blip3o_rl.checkpoint.staging import staged
from blip3o_rl.config.sft import SFTSettings
from blip3o_rl.errors import UserError
from blip3o_rl.io import append_line, read_lines
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.editing import Reference, prompt_ids
from blip3o_rl.model.token_layout import MAX_REFERENCES, TASKS, Task
from blip3o_rl.report.progress import progress
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import duration
from blip3o_rl.sft.batches import STREAMS, PairBatches
from blip3o_rl.sft.files import find_files
from blip3o_rl.sft.losses import Batch, collate
from blip3o_rl.sft.model import LossConfig, SFTModel, editing_renderer
from blip3o_rl.sft.pairs import FAULT, index
from blip3o_rl.sft.preflight import fields_of, layout_of, uses_of_references
from blip3o_rl.sft.tasks import shares_of
from blip3o_rl.sft.trainer import Batches, LossTrainer, arguments

ENCODE_CHUNK = 4
"""Images that the autoencoder encodes at a time; at 1024 px its activations are the largest of all."""
FSDP: dict[str, Any] = {
    "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer", "SanaTransformerBlock"],
    "state_dict_type": "SHARDED_STATE_DICT",
}


class BadPairs:
    """The bad pairs that this process met, kept in a file; a resumed run meets the same ones and goes on from it."""

    def __init__(self, file: Path, limit: int):
        self._file, self._limit = file, limit
        self._known = {line["where"] for line in read_lines(file)}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, found: Mapping[str, str]) -> None:
        """Reports those that are new.

        Raises:
            UserError: there are more than the limit.
        """
        for where, reason in found.items():
            if where not in self._known:
                self._known.add(where)
                append_line(self._file, {"where": where, "reason": reason})
            if len(self._known) > self._limit:
                raise UserError(
                    f"{where}: {reason}; with it {len(self._known)} pairs are bad and data.max_bad={self._limit} may "
                    "be left out; fix the data or raise the limit"
                )


class SFTTrainer(LossTrainer):
    """Encodes the rows with the frozen parts, and reports the bad ones."""

    def __init__(self, settings: SFTSettings, folder: RunFolder, show: Callable[[int, Mapping[str, float]], None]):
        self.settings = settings
        train = settings.train
        gpu = torch.cuda.is_available()
        sharded = gpu and int(os.environ.get("WORLD_SIZE", 1)) > 1
        args = arguments(
            folder,
            train.steps,
            min_lr_ratio=train.min_lr_ratio,
            warmup_steps=train.warmup_ratio,
            gradient_accumulation_steps=train.gradient_accumulation,
            weight_decay=train.weight_decay,
            adam_beta1=train.betas[0],
            adam_beta2=train.betas[1],
            max_grad_norm=train.max_grad_norm,
            save_steps=settings.run.save_every,
            save_total_limit=settings.run.keep,
            bf16=train.dtype == "bfloat16" or (train.dtype == "auto" and gpu),
            dataloader_num_workers=settings.data.workers,
            **({"fsdp": True, "fsdp_config": dict(FSDP)} if sharded else {}),
        )
        self.base = model_folder.ModelFolder(settings.model.folder, *model_folder.PARTS)
        self.tokenizer, self.layout = self.base.load_tokenizer(), layout_of(settings, self.base)
        self.bad = BadPairs(folder.logs / f"bad_pairs_{args.process_index}.jsonl", settings.data.max_bad)
        with args.main_process_first(local=False):
            rows = self._good_rows(folder, report=args.process_index == 0)
        counts: dict[Task, int] = {task: len(found) for task, found in rows.items()}
        shares = shares_of(settings.data.shares, counts)
        uses = uses_of_references(settings, self.base, [task for task in shares if task != "text_to_image"])
        self.image_tokenizer = self.base.load_image_tokenizer(args.device)
        self.renderer = editing_renderer(self.base.load_renderer(), settings.model.editing, settings.run.seed)
        self.renderer.vae.to(args.device)
        self._latents, self._several = bool(train.diffusion_weight) and any(uses.values()), len(shares) > 1
        per_step = train.gradient_accumulation * args.world_size
        self._rows, self._images = sum(counts[task] for task in shares), train.batch_size * per_step
        make = PairBatches(
            rows=rows,
            shares=shares,
            references=1 if uses.get("noise_injection") else MAX_REFERENCES,
            data=settings.data,
            scales=list(settings.model.scales),
            seed=settings.run.seed,
            batch_size=train.batch_size,
            per_step=per_step,
            tokenizer=self.tokenizer,
            layout=self.layout,
            token_side=self.image_tokenizer.config.image_size,
            target_side=self.renderer.image_size,
        )
        super().__init__(self._model(), Batches(train.steps * per_step, make), args, folder, show)

    def _model(self) -> SFTModel:
        train = self.settings.train
        policy = self.base.load_policy()
        if train.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.renderer.transformer.enable_gradient_checkpointing()
        shared = {field.name for field in dataclasses.fields(LossConfig)}
        return SFTModel(policy, self.renderer, LossConfig(**train.model_dump(include=shared)))

    def _good_rows(self, folder: RunFolder, report: bool) -> dict[Task, Any]:
        """The usable rows per task."""
        data = self.settings.data
        rows = index(find_files(data.files), folder.path / "data", fields_of(data))
        bad: list[int] = []
        good: dict[Task, list[int]] = {task: [] for task in TASKS}
        for number, (fault, task) in enumerate(zip(rows[FAULT], rows["task"], strict=True)):
            (bad if fault else good[task]).append(number)
        if report:
            self.bad.add({row["where"]: row[FAULT] for row in rows.select(bad)})
        if len(bad) == len(rows):
            raise UserError(f"data.files: no usable row in {len(rows)}; see {folder.logs} for the reasons")
        return {task: rows.select(numbers) for task, numbers in good.items() if numbers}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        started = time.perf_counter()
        found, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited = time.perf_counter() - started
        for item in found:
            self.bad.add(item["bad"])
            if len(item["examples"]) < self.settings.train.batch_size:
                raise UserError(f"data.files: no usable row ({len(self.bad)} bad ones); see {self.folder.logs}")
            self._scale, self._task = item["scale"], item["task"]
        return found, count

    def compute_loss(self, model: Any, inputs: Any, **more: Any) -> torch.Tensor:
        batch, seed = self.encode(inputs), self.settings.run.seed * STREAMS
        return super().compute_loss(model, {"batch": batch, "number": inputs["number"], "seed": seed})

    @torch.no_grad()
    def encode(self, item: Mapping[str, Any]) -> Batch:
        """A prepared batch as the model takes it: tokens and latents, on the device."""
        examples, scale = item["examples"], item["scale"]
        indices = self.image_tokenizer.tokenize([example.square for example in examples], scale)
        latents = self._encode_latents([example.pixels for example in examples])
        known: list[Reference | None] = [None] * len(examples)
        if item["task"] != "text_to_image":
            squares = [square for example in examples for square in example.reference_squares]
            counts = [len(example.reference_squares) for example in examples]
            tokens = self.image_tokenizer.tokenize(squares, scale).split(counts)
            firsts = self._encode_latents([x.reference_pixels for x in examples]) if self._latents else latents
            known = [Reference(*both) for both in zip(tokens, firsts, strict=True)]
        prompts = [
            prompt_ids(self.tokenizer, example.text, reference, scale, self.layout, item["task"])
            for example, reference in zip(examples, known, strict=True)
        ]
        given = [reference.latents if reference and self._latents else None for reference in known]
        batch = collate(prompts, indices, latents, self.layout, self.tokenizer.pad_token_id or 0, given)
        return batch.to(self.args.device)

    def _encode_latents(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """[B, c, h, w]; for the policy alone, which needs none, [B, 0]."""
        if not self.settings.train.diffusion_weight:
            return torch.empty(len(pixels), 0, device=self.args.device)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            parts = torch.stack(pixels).split(ENCODE_CHUNK)
            return torch.cat([self.renderer.encode_latents(part) for part in parts])

    def metrics(self) -> dict[str, float]:
        bad = self.accelerator.reduce(torch.tensor(float(len(self.bad)), device=self.args.device), "sum")
        several = {"sft/task": float(TASKS.index(self._task))} if self._several else {}
        return several | {
            "sft/scale": self._scale,
            "sft/images": self._images,
            "sft/epoch": self.state.global_step * self._images / self._rows,
            "sft/bad_pairs": float(bad),
            "timing_s/data": self._waited,
        }

    def write_model(self) -> None:
        """Writes the trained model folder; every process calls it. What was not trained comes from the base."""
        weights = self.accelerator.get_state_dict(self.model)
        if self.is_world_process_zero():
            precision = getattr(torch, self.settings.run.save_dtype)
            policy = self.base.load_policy(precision)
            base = self.base.load_renderer(precision)
            renderer = editing_renderer(base, self.settings.model.editing, self.settings.run.seed)
            policy.config.update({"system_prompts": self.layout.system_prompts.different() or None})
            SFTModel(policy, renderer, LossConfig()).load_state_dict(weights)
            needed = sum(parameter.nbytes for part in (policy, renderer) for parameter in part.parameters())
            with staged(self.folder.path / "model", needed) as partial:
                model_folder.save(
                    partial,
                    policy=policy,
                    tokenizer=self.tokenizer,
                    renderer=renderer,
                    image_tokenizer=self.base.path / "image_tokenizer",
                    source=f"{self.folder.name}: supervised fine-tuning of {self.base.name}",
                )
                keep_origin(self.base.path, partial)
        self.accelerator.wait_for_everyone()


def fine_tune(settings: SFTSettings, folder: RunFolder) -> None:
    """Trains from the newest checkpoint, or from the start, to the last step, and writes the model folder."""
    steps = settings.train.steps
    others = Console(quiet=True, force_terminal=False) if int(os.environ.get("RANK", 0)) else None
    with progress(steps, folder.name, others) as shown:
        shown.phase("loading")
        trainer = SFTTrainer(settings, folder, lambda step, metrics: shown.phase(_line(step, steps, metrics)))
        world = trainer.args.world_size
        shown.phase(f"{world} process{'es' if world > 1 else ''} on {trainer.args.device.type}")
        trainer.fit()
        shown.phase("writing the model folder")
        trainer.write_model()
    trainer.accelerator.end_training()


def _line(step: int, steps: int, values: Mapping[str, float]) -> str:
    seconds = values["timing_s/step"]
    parts = ", ".join(f"{name} {values[f'sft/{name}']:.4f}" for name in ("tokens", "flow") if f"sft/{name}" in values)
    text = f"step {step}/{steps}  loss {values['sft/loss']:.4f} ({parts})  {seconds:.1f} s"
    if values["sft/bad_pairs"]:
        text += f"  bad pairs left out: {values['sft/bad_pairs']:.0f}"
    return text + (f"  left {duration((steps - step) * seconds)}" if step < steps else "")
