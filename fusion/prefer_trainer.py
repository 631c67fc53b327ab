"""trl's trainer with a preference loss.

It is SFTTrainer underneath, as for distillation, and not DPOTrainer, whose examples hold two responses, where WRPO
compares three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion.prefer_lessons import response_logprobs, selects_positions
from fusion.preference_losses import PreferenceLoss, ResponseLogprobs, preference_loss, wrpo_alpha
from fusion.sft import Step
from fusion.training_resume import watch

if TYPE_CHECKING:
    from torch import Tensor

    from fusion.prefer import PreferParams

_TOLD = (
    "margin", "accuracy", "chosen_reward", "rejected_reward", "source_reward", "target_reward", "kl",
    "chosen_tokens", "rejected_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreferStep(Step):
    """One update of the weights; means over its examples, before it. Rewards are as in fusion.preference_losses.

    ``accuracy`` is the share of examples whose margin, chosen reward less the rejected, is above 0. ``kl`` is the mean
    over the chosen responses of log π − log π_ref a token, in nats: an estimate of how far the model has moved,
    None where there is no reference (simpo). ``source_reward``, ``target_reward`` and ``alpha`` are wrpo's.
    """

    margin: float
    accuracy: float
    chosen_reward: float
    rejected_reward: float
    chosen_tokens: float
    rejected_tokens: float
    source_reward: float | None = None
    target_reward: float | None = None
    kl: float | None = None
    alpha: float | None = None


def make_prefer_trainer(
    params: PreferParams,
    parts: Sequence[str],
    heard: list[PreferStep],
    on_step: Callable[[PreferStep], None] | None,
    **given: Any,
) -> Any:
    """Return the trainer; ``given`` are SFTTrainer's own arguments, and ``heard`` takes the steps as they are made.

    ``parts`` are the responses of an example, in the order of the batch's rows.
    """
    import torch
    from transformers import PrinterCallback
    from trl import SFTTrainer

    lacking = () if params.kind == "wrpo" else ("source_reward", "target_reward")
    lacking = (*lacking, "kl") if params.kind == "simpo" else lacking

    class PreferTrainer(SFTTrainer):  # type: ignore[misc]
        """Compares responses; tells nobody that it is used, and writes no model card into its checkpoints."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.model_accepts_loss_kwargs = False  # the loss is a mean over examples, whatever their tokens
            self._told: list[Tensor] = []  # of each batch since the last log
            self._selects = selects_positions(self.model)

        def _send_telemetry(self) -> None: ...

        def create_model_card(self, *_: Any, **__: Any) -> None: ...

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = [*(f"{part}_{what}" for part in parts for what in ("ids", "labels")), "reference"]

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,  # noqa: ARG002
            num_items_in_batch: Any = None,  # noqa: ARG002
        ) -> Any:
            found, said = self._compared(model, inputs)
            seen = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += seen // self._tp_size
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            self._told.append(_means(found, said))
            return found.losses.mean()

        def _compared(
            self, model: Any, inputs: Mapping[str, Any]
        ) -> tuple[PreferenceLoss, dict[str, ResponseLogprobs]]:
            sums, tokens = response_logprobs(model, inputs, selects=self._selects)
            reference = inputs.get("reference")
            count = len(sums) // len(parts)
            said = {
                part: ResponseLogprobs(
                    sums[at : at + count],
                    None if reference is None else reference[at : at + count],
                    tokens[at : at + count],
                )
                for part, at in zip(parts, range(0, len(sums), count), strict=True)
            }
            found = preference_loss(
                params.kind,
                said["chosen"],
                said["rejected"],
                source=said.get("source"),
                beta=params.beta,
                gamma=params.gamma,
                alpha=self._alpha(),
                label_smoothing=params.label_smoothing,
            )
            return found, said

        def held_out(self, lessons: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
            """Return loss, accuracy and margin, means over lessons that are shared by the processes."""
            here = self.accelerator
            mine = lessons[here.process_index :: here.num_processes]
            size = self.args.per_device_train_batch_size
            sums = torch.zeros(4, device=here.device, dtype=torch.float64)
            self.model_wrapped.eval()
            for first in range(0, -(-len(lessons) // here.num_processes), size):  # the same in all processes
                some = mine[first : first + size]
                batch = self._prepare_inputs(self.data_collator(some or lessons[:1]))
                with torch.no_grad(), self.compute_loss_context_manager():
                    found, _ = self._compared(self.model_wrapped, batch)
                if some:
                    parts = (
                        found.losses.sum(),
                        (found.margins > 0).sum(),
                        found.margins.sum(),
                        found.losses.new_tensor(len(some)),
                    )
                    sums += torch.stack([part.double() for part in parts])
            loss, accuracy, margin, count = here.reduce(sums, reduction="sum").tolist()
            return loss / count, accuracy / count, margin / count

        def _alpha(self) -> float | None:
            if params.alpha is None:
                return None
            return wrpo_alpha(self.state.global_step, self.state.max_steps, params.alpha)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs and self._told:
                means = self.accelerator.gather(torch.stack(self._told).mean(0)[None]).mean(0).tolist()
                logs |= {name: value for name, value in zip(_TOLD, means, strict=True) if name not in lacking}
                if params.alpha is not None:  # of the step that was made
                    logs["alpha"] = wrpo_alpha(self.state.global_step - 1, self.state.max_steps, params.alpha)
                self._told = []
            super().log(logs, start_time)

    trainer = PreferTrainer(**given)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch(trainer, heard, on_step, _step, keep=2 if params.choose == "best" else 1))
    return trainer


def _means(found: PreferenceLoss, said: Mapping[str, ResponseLogprobs]) -> Tensor:
    """Return the means of _TOLD, NaN where the loss has no such thing."""
    import torch

    chosen, nothing = said["chosen"], found.margins.new_full((1,), torch.nan)
    assert chosen.tokens is not None and said["rejected"].tokens is not None
    moved = nothing
    if chosen.reference is not None:
        moved = (chosen.policy.detach() - chosen.reference) / chosen.tokens.clamp(min=1)
    values = (
        found.margins,
        (found.margins > 0).float(),
        found.chosen_rewards,
        found.rejected_rewards,
        nothing if found.source_rewards is None else found.source_rewards,
        nothing if found.target_rewards is None else found.target_rewards,
        moved,
        chosen.tokens.float(),
        said["rejected"].tokens.float(),
    )
    return torch.stack([value.float().mean() for value in values])


def _step(logs: Mapping[str, Any], step: int, total: int) -> PreferStep:
    told = {name: logs[name] for name in (*_TOLD, "alpha") if name in logs}
    return PreferStep(step, total, logs["loss"], logs["learning_rate"], int(logs["num_tokens"]), **told)
