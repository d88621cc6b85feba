"""The configuration of a whole run in miniature; needs no package of the tests."""

from dfpo_jax.training.config import default_config


def tiny(**train_settings):
    config = default_config()
    config.task.parameters = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.task.prompt = "{metadata[expression]}="
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.parameters = {"min_terms": 3, "max_terms": 3, "max_digits": 1}
    config.out_of_domain.held_out_percent = 50
    config.rewards.flip.false_positive = 0.2
    config.model.update(
        vocab_size=24, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32
    )
    config.sampling.max_new_tokens = 3
    config.warm_start.update(steps=2, batch_size=8)
    config.train.update(iterations=4, prompts=4, samples=2, prompt_length=6)
    config.train.update(**train_settings)
    config.evaluation.update(every=2, prompts=16, critic_prompts=4, critic_samples=2)
    config.checkpoint.every = 2
    config.log.tensorboard = False
    config.mesh.update(data=1, fsdp=1)
    return config
