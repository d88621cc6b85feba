"""TRL's GRPOTrainer does the work of its command line and prints how long it took.

Settings. What TRL recommends for speed (vLLM, FlashAttention, Liger's kernels, bfloat16) needs a
GPU, so responses come from `generate` of transformers with its default cache and attention
("sdpa"), and PyTorch has a thread for each core. TRL's defaults stay where the work does not say
otherwise: its fused head, which scores response tokens alone, its entropy metric, the loss "dapo",
and AdamW's fused implementation. Off are gradient checkpointing, bfloat16, logs and checkpoints.
With one update per sampling TRL evaluates no old log-probabilities of its own, as dfpo_jax.
"""

import os
import tempfile

import datasets
import torch
import transformers
import trl
from work import CLIP_NORM, LEARNING_RATE, Clock, Work, asked, number_tokenizer, reward


def model(work: Work) -> transformers.LlamaForCausalLM:
    """A random Llama that ends responses with the work's tokens."""
    config = transformers.LlamaConfig(
        vocab_size=work.vocab_size,
        hidden_size=work.d_model,
        num_hidden_layers=work.num_layers,
        num_attention_heads=work.num_heads,
        num_key_value_heads=work.num_kv_heads,
        head_dim=work.head_dim,
        intermediate_size=work.d_ff,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=list(work.end_ids),
    )
    return transformers.LlamaForCausalLM(config).float()


def trainer(work: Work, clock: Clock, directory: str) -> trl.GRPOTrainer:
    """The trainer, which tells the clock of every iteration.

    Args:
      work: the work.
      clock: its clock.
      directory: for what the trainer writes.
    """

    responses, seen = [], [0]

    def share_of_even(completions, completion_ids, **others) -> list[float]:
        responses.append(sum(map(len, completion_ids)))
        return [reward(text) for text in completions]

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **options):
            seen.append(state.num_input_tokens_seen)  # with the responses
            clock.count(seen[-1] - seen[-2] - responses[-1], responses[-1])
            clock.end()

    texts = [text for batch in work.batches() for text in batch]
    config = trl.GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_vllm=False,
        per_device_train_batch_size=work.rows // work.pieces,
        gradient_accumulation_steps=work.pieces,
        num_generations=work.samples,
        max_completion_length=work.response_length,
        temperature=1.0,
        num_iterations=1,
        beta=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP_NORM,
        max_steps=work.total,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return trl.GRPOTrainer(
        model=model(work),
        reward_funcs=share_of_even,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
        processing_class=number_tokenizer(work),
        callbacks=[Ends()],
    )


def main():
    """Train, and answer."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    work, clock = asked()
    with tempfile.TemporaryDirectory() as directory:
        found = trainer(work, clock, directory)
        found.train()
    parameters = sum(x.numel() for x in found.model.parameters())
    clock.answer(parameters, ("trl", "transformers", "torch"))


if __name__ == "__main__":
    main()
