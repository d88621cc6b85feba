from dfpo_jax.tasks.base import Item, Task
from dfpo_jax.tasks.jsonl import JsonlTask
from dfpo_jax.tasks.reasoning_gym import ReasoningGymTask

TASKS = {"jsonl": JsonlTask, "reasoning_gym": ReasoningGymTask}

__all__ = ["TASKS", "Item", "JsonlTask", "ReasoningGymTask", "Task"]
