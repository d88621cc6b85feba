"""A made-up first policy for tests of links that need one."""

import numpy as np

from dfpo_jax.rewards.interface import Initial, Scored
from dfpo_jax.tasks.base import Item, Task


class Echo(Task):
    """Right is a response that equals the reference, ignoring case; "?" cannot be a reference."""

    name, reward_range = "echo", (0.0, 1.0)

    def batch(self, step, size):
        raise NotImplementedError

    def items(self, count):
        raise NotImplementedError

    def score(self, item, response):
        return float(self.answer(item, response).casefold() == item.answer.casefold())

    def answer(self, item, response):
        return response.removeprefix("It is ").strip() or None

    def relabel(self, item, answer):
        return None if answer == "?" else super().relabel(item, answer)


class Deaf(Echo):
    """A verifier that reads no reference."""

    def score(self, item, response):
        return float(response == "right")


def judge(task, items, texts):
    pairs = zip(items, texts, strict=True)
    return np.array([task.score(item, text) if text else 0.0 for item, text in pairs])


def initial(responses, task=None, answer="right", states=None):
    """A first policy that gives these responses: prompt -> texts."""
    task = task or Echo()
    items = [Item(prompt, answer) for prompt in responses]

    def respond(asked, samples):
        rows = [item for item in asked for _ in range(samples)]
        texts = [text for item in asked for text in responses[item.prompt][:samples]]
        clean = judge(task, rows, texts).astype(np.float32)
        found = None if states is None else lambda: states(rows, texts)
        lengths = np.ones(len(rows), np.float32)
        return Scored(0, 0, rows, texts, lengths, 8, clean, task.reward_range, found)

    def asked(items, texts):
        return judge(task, items, texts).astype(np.float32)

    return Initial(items, task, respond, asked)


def scored(first, pairs, states=None):
    """These (prompt, response) pairs as responses of an iteration."""
    known = {item.prompt: item for item in first.items}
    items, texts = [known[prompt] for prompt, _ in pairs], [text for _, text in pairs]
    clean = judge(first.task, items, texts).astype(np.float32)
    found = None if states is None else lambda: states
    lengths = np.ones(len(items), np.float32)
    return Scored(3, 0, items, texts, lengths, 8, clean, first.task.reward_range, found)
