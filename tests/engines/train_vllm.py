"""Train `tiny` on samples of a colocated vLLM: `cpu.py train_vllm.py OUT JSON` saves batches, losses and weights."""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from trl_runs import tiny, trainer, weights

from minigrpo.integrations.trl import ProcessGRPOTrainer

VLLM = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 128,
    "vllm_importance_sampling_mode": "token_truncate",
}
LORA = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "sampling_per_token_logps")


class Spy(ProcessGRPOTrainer):
    """Keeps what it samples, the weights with which it does, and its losses."""

    seen: list = []
    losses: list = []

    def _generate_and_score_completions(self, inputs):
        before = weights(self)
        batch = super()._generate_and_score_completions(inputs)
        kept = {name: batch[name].clone() for name in KEYS if name in batch}
        self.seen.append(kept | {"rewards": self._rewards.clone(), "weights": before})
        return batch

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        return loss


if __name__ == "__main__":
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    more = {name: options.pop(name) for name in ("objective", "pack") if name in options}
    adapters = LoraConfig(**LORA) if options.pop("lora", False) else None
    checkpoint = options.pop("resume", None)
    made = trainer(Spy, out, model=tiny().float(), peft_config=adapters, more=more, **VLLM | options)
    made.train(resume_from_checkpoint=checkpoint)
    engine = str(type(made.vllm_generation.llm).__module__)
    end = {"batches": made.seen, "losses": made.losses, "weights": weights(made), "engine": engine}
    torch.save(end, out / "end.pt")
