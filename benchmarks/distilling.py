"""What the fusion loss costs: a step of plain fine-tuning against one with fused targets, on the same batch.

    .venv/bin/python benchmarks/distilling.py CHECKPOINT_FOLDER [--batch 2] [--length 256] [--rounds 3]

A step is forward and backward pass; what the optimizer does is the same. "plain" is trl's SFTTrainer, "logits" is
transformers' own loss from whole logits, "fused" is ours at λ = 0.9 with ten tokens a position. The steps take turns,
once with every next token in the loss and once with the last half of them. CPU: seconds of the process, which other
processes hardly disturb; GPU: seconds of the clock, and the peak of the memory. Goal: fused / plain at most 1.15.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

K = 10


def main(folder: Path, *, batch: int, length: int, rounds: int) -> None:
    """Measure, and print medians and ratios."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {name: _trainer(folder, Path(scratch), lm_weight) for name, lm_weight in _WEIGHTS.items()}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = trainers["plain"].model.to(device).train()
        for share in (1.0, 0.5):
            inputs = _batch(batch, length, model.config.get_text_config().vocab_size, share=share)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            seconds: dict[str, list[float]] = {name: [] for name in (*trainers, "logits")}
            peaks = dict.fromkeys(seconds, 0)
            for number in range(rounds + 1):
                for name, taken in seconds.items():
                    found, peak = _step(name, trainers, model, inputs)
                    if number:  # the first round warms up
                        taken.append(found)
                        peaks[name] = max(peaks[name], peak)
            _tell(seconds, peaks, tokens=batch * length, share=share, device=device)


_WEIGHTS = {"plain": 1.0, "fused": 0.9}


def _trainer(folder: Path, scratch: Path, lm_weight: float):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fusion.distill import DistillParams, _arguments
    from fusion.distill_trainer import make_trainer
    from fusion.lessons import Collator

    params = DistillParams(lm_weight=lm_weight, checkpoint_every=0)
    return make_trainer(
        params,
        [],
        None,
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=_arguments(params, scratch),
        train_dataset=Dataset.from_list([{"input_ids": [0, 1], "labels": [-100, 1]}]),
        data_collator=Collator(0, K),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def _batch(batch: int, length: int, vocabulary: int, *, share: float):
    """Return random tokens and targets; the cost of a step does not depend on which."""
    import torch

    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, vocabulary, (batch, length)))
    labels = ids.clone()
    labels[:, : int(length * (1 - share))] = -100
    labels[:, 0] = -100
    probs = draw.dirichlet(np.full(K + 1, 0.3), (batch, length)).astype(np.float32)
    top = np.sort(draw.integers(0, vocabulary - K, (batch, length, K)), axis=-1) + np.arange(K)
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "target_ids": torch.from_numpy(top),
        "target_probs": torch.from_numpy(probs[..., :K].copy()),
        "target_tail": torch.from_numpy(probs[..., K].copy()),
    }


def _step(name: str, trainers, model, inputs) -> tuple[float, int]:
    """Return the seconds of one forward and backward pass, and the peak memory on a GPU."""
    import torch

    gpu = torch.cuda.is_available()
    trainer = trainers.get(name, trainers["plain"])
    given = {key: value for key, value in inputs.items() if name == "fused" or not key.startswith("target_")}
    count = (inputs["labels"][:, 1:] != -100).sum()
    model = trainer.model.to(model.device).train()
    for each in trainers.values():
        each.model.zero_grad(set_to_none=True)
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter if gpu else time.process_time
    begun = clock()
    with trainer.compute_loss_context_manager(), torch.autocast("cuda", torch.bfloat16, enabled=gpu):
        if name == "logits":
            loss = model(**given, use_cache=False).loss
        else:
            loss = trainer.compute_loss(model, given, num_items_in_batch=count)
    loss.backward()
    if gpu:
        torch.cuda.synchronize()
    return clock() - begun, torch.cuda.max_memory_allocated() if gpu else 0


def _tell(seconds, peaks, *, tokens: int, share: float, device: str) -> None:
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"{tokens} tokens a step, {share:.0%} of them in the loss, on {device}")
    for name, taken in seconds.items():
        memory = f"   {peaks[name] / 2**30:6.2f} GiB" if peaks[name] else ""
        print(
            f"  {name:<7}{middle[name]:9.4f} s   {tokens / middle[name]:9.0f} tokens/s   "
            f"{middle[name] / middle['plain']:5.2f} x plain   (of {min(taken):.4f} to {max(taken):.4f}){memory}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(given.folder, batch=given.batch, length=given.length, rounds=given.rounds)
