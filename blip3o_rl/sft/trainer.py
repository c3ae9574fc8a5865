"""transformers' Trainer for everything that this package trains itself: its loop, schedule, checkpoints and resuming.

A model's `forward` returns named losses: `loss` is minimized, all are logged; its `parameter_groups` say what is
trained at which rate. A data set's item is a whole batch that follows from its number alone, noise seeds included. Item
n is the n-th batch of the run over all processes, so a resumed run makes the steps of one that was not interrupted, and
two processes make those of one with twice the accumulation. Several GPUs shard weights, gradients and optimizer by
accelerate's FSDP2 (configured, but not run yet); several CPU processes keep them whole (DDP over gloo).
"""

from __future__ import annotations

import math
import operator
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import WEIGHTS_NAME

from blip3o_rl.checkpoint.staging import refuse_full_disk
from blip3o_rl.errors import UserError
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder

CHECKPOINT_COPIES = 3
"""Of what is trained: weights and optimizer (2)."""


def generator_for(seed: int, number: int) -> torch.Generator:
    """The CPU generator of one step or batch, whatever was generated before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


@dataclass
class Batches(Dataset[Any]):
    """`count` items, each made from its number."""

    count: int
    make: Callable[[int], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def arguments(folder: RunFolder, steps: int, *, min_lr_ratio: float = 0.03, **more: Any) -> TrainingArguments:
    """The Trainer's arguments for a run of `steps` steps in a run folder; `more` are its own."""
    made = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": min_lr_ratio},
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        **({"use_cpu": not torch.cuda.is_available()} | more),
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # one process takes one GPU; the Trainer would take all of them by DataParallel
    if made.device.type == "cpu":
        made.__dict__["_setup_devices"] = torch.device("cpu")  # of several processes it is cpu:0, unknown to torch.load
    return made


class LossTrainer(Trainer):
    """See the module's docstring.

    Args:
        model: `forward(**item)` returns the losses; `parameter_groups()` returns the optimizer's groups.
        batches: `steps x accumulation x processes` items.
        args: see `arguments`.
        folder: run folder.
        show: called with step and metrics after each step, before it is saved, in the first process.
    """

    def __init__(
        self,
        model: Any,
        batches: Dataset[Any],
        args: TrainingArguments,
        folder: RunFolder,
        show: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ):
        self.folder = folder
        self._sums: dict[str, torch.Tensor] = {}
        self._since = time.perf_counter()
        self._show = show
        super().__init__(model, args, operator.itemgetter(0), batches)
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter

            self.add_callback(TensorBoardCallback(SummaryWriter(str(folder.tensorboard))))

    def fit(self) -> None:
        """Trains from the newest complete checkpoint, or from the start, to the last step."""
        newest = checkpoints.latest(self.folder.checkpoints)
        with self.args.main_process_first(local=False):
            if self.is_world_process_zero():
                step = checkpoints.latest_step(self.folder.checkpoints)
                self.folder.truncate_after(step)
                for other, path in checkpoints.all_of(self.folder.checkpoints):
                    if other > step:
                        shutil.rmtree(path)
        self._since = time.perf_counter()
        self.train(resume_from_checkpoint=None if newest is None else str(newest))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        groups = (model or self.model).parameter_groups()
        self.optimizer = kind(groups, weight_decay=self.args.weight_decay, **options)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, **more: Any) -> torch.Tensor:
        losses = model(**inputs)
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach() / self.args.gradient_accumulation_steps
        return losses["loss"]

    def metrics(self) -> dict[str, float]:
        """Further metrics of a step; every process calls it."""
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replaces the Trainer's metrics by all losses, as means over batches and processes."""
        if "loss" not in logs:  # the summary at the end
            return
        means = self.accelerator.reduce(torch.stack([value.float() for value in self._sums.values()]), "mean")
        values = {f"sft/{name}": float(mean) for name, mean in zip(self._sums, means, strict=True)}
        values |= {"sft/grad_norm": logs["grad_norm"], "sft/lr": logs["learning_rate"]}
        self._sums = {}
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"step {self.state.global_step}: the loss or its gradient is not finite ({values}); lower the learning "
                "rates and resume from the last checkpoint"
            )
        now = time.perf_counter()
        values |= self.metrics() | {"timing_s/step": now - self._since}
        self._since = now
        if self.is_world_process_zero():
            self.folder.append_metrics(self.state.global_step, values)
            self._show(self.state.global_step, values)
        super().log(values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            trained = sum(value.nbytes for value in self.model.parameters() if value.requires_grad)
            step = self.state.global_step
            refuse_full_disk(self.folder.checkpoints / f"checkpoint-{step}", CHECKPOINT_COPIES * trained, error)
            raise

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes what is trained, and buffers; frozen weights are in the model that the run began with."""
        parameters = self.model.named_parameters(remove_duplicate=False)
        frozen = {name for name, value in parameters if not value.requires_grad}
        found = self.model.state_dict() if state_dict is None else state_dict
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: value for name, value in found.items() if name not in frozen}, folder / WEIGHTS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.unexpected_keys:  # missing are the frozen weights
            raise UserError(f"{self.folder.checkpoints}: of another model ({load_result.unexpected_keys[0]}, ...)")
