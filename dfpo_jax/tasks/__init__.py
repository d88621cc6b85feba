from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.tasks.noise import RewardNoise
from dfpo_jax.tasks.reasoning_gym import ReasoningGymTask

TASKS = {"reasoning_gym": ReasoningGymTask}

__all__ = ["TASKS", "Item", "ReasoningGymTask", "RewardNoise", "Task"]
