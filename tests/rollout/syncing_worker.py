"""Worker extension of the tests: the one that rollouts use, and a weight sync from a file through verl's own code."""

from __future__ import annotations

import safetensors.torch
from vllm.model_executor.model_loader.utils import process_weights_after_loading

from blip3o_rl.rollout.worker_extension import Blip3oWorkerExtension


class SyncingWorker(Blip3oWorkerExtension):
    def sync_weights(self, file: str) -> None:
        weights = list(safetensors.torch.load_file(file).items())
        self._update_weights(weights, peft_config=None, base_sync_done=False)
        for model, model_config in self._iter_all_models_with_config():
            process_weights_after_loading(model, model_config, self.device)

    def captured_requests(self) -> list[str]:
        """Whose states this worker keeps, oldest first."""
        return [] if self._captured is None else list(self._captured.store.by_key)

    def schedules_asynchronously(self) -> bool:
        return bool(self.model_runner.use_async_scheduling)
