"""trl's SFTTrainer with one more term in the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion.losses import clm_and_fusion_loss
from fusion.sft import Step
from fusion.training_resume import watch

if TYPE_CHECKING:
    from torch import Tensor

    from fusion.distill import DistillParams


@dataclass(frozen=True, slots=True)
class DistillStep(Step):
    """One update of the weights, and both terms of its ``loss`` = λ · clm + (1 − λ) · fusion, in nats a token.

    ``fusion`` is None where λ is 1 and it was not computed.
    """

    clm: float
    fusion: float | None


def make_trainer(
    params: DistillParams, heard: list[DistillStep], on_step: Callable[[DistillStep], None] | None, **given: Any
) -> Any:
    """Return the trainer; ``given`` are SFTTrainer's own arguments, and ``heard`` takes the steps as they are made.

    With λ = 1 the loss is trl's own, and so is every bit of the result.
    """
    import torch
    from transformers import PrinterCallback
    from trl import SFTTrainer

    class DistillTrainer(SFTTrainer):  # type: ignore[misc]
        """Adds the fusion loss; tells nobody that it is used, and writes no model card into its checkpoints."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._terms: Any = None  # sums of both losses since the last log: (2,)
            base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            self._selects = "logits_to_keep" in inspect.signature(type(base).forward).parameters

        def _send_telemetry(self) -> None: ...

        def create_model_card(self, *_: Any, **__: Any) -> None: ...

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["input_ids", "labels", "ids", "probs", "tail"]

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if params.lm_weight == 1:
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                self._remember(loss, loss, num_items_in_batch)
                return loss
            target = [inputs.pop(f"target_{name}") for name in ("ids", "probs", "tail")]
            following = inputs.pop("labels")[:, 1:]  # position t speaks of token t + 1
            keep = (following != -100).any(0).nonzero().squeeze(-1)
            if self._selects:  # the head runs only where something is to be learnt
                inputs["logits_to_keep"] = keep
            if self.aux_loss_enabled:
                inputs["output_router_logits"] = True
            outputs = model(**inputs, use_cache=False)
            clm, fusion = clm_and_fusion_loss(
                outputs.logits if self._selects else outputs.logits[:, keep],
                following[:, keep],
                *(part[:, keep] for part in target),
                kind=params.loss,
                tail_policy=params.tail_policy,
                temperature=params.temperature,
                count=num_items_in_batch,
            )
            loss = params.lm_weight * clm + (1 - params.lm_weight) * fusion
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                scale = self.accelerator.num_processes // self.get_tp_size()  # DDP takes the mean over processes
                loss, clm, fusion = loss * scale, clm * scale, fusion * scale
            if self.aux_loss_enabled:
                parts = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
                loss = loss + self.router_aux_loss_coef * outputs.aux_loss / parts
            seen = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += seen // self._tp_size
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            self._remember(clm, fusion, num_items_in_batch)
            return loss

        def _remember(self, clm: Tensor, fusion: Tensor, count: Any) -> None:
            terms = torch.stack([clm.detach(), fusion.detach()])
            terms = terms if count is not None else terms / self.current_gradient_accumulation_steps
            self._terms = terms if self._terms is None else self._terms + terms

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                clm, fusion = self.accelerator.gather(self._terms[None]).mean(0).tolist()
                logs |= {"clm": clm} if params.lm_weight == 1 else {"clm": clm, "fusion": fusion}
                self._terms = None
            super().log(logs, start_time)

    trainer = DistillTrainer(**given)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch(trainer, heard, on_step, _step))
    return trainer


def _step(logs: Mapping[str, Any], step: int, total: int) -> DistillStep:
    return DistillStep(
        step, total, logs["loss"], logs["learning_rate"], int(logs["num_tokens"]), logs["clm"], logs.get("fusion")
    )
