"""Autoregressive generation on the device: prefill, then a `while_loop` over slots that refill.

Each slot decodes one response at a time. At every step all slots write the same column of the
cache. After the prompt the columns form a ring with one column per token of the longest response,
so a slot can start its next response at any step: the columns of its old response become invalid,
and the ring reaches a column again only after the response that wrote it has ended.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from dfpo_jax.models import decode, lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.prefill import Prompts, groups_of, prefill
from dfpo_jax.rollout.sampling import SamplingConfig, draw, most_probable
from dfpo_jax.types import Array, ArrayTree, Generation

_FREE_SHARE = 8  # free slots are refilled when one in eight slots is free


@struct.dataclass
class _Slots:
    """The slots of G groups, and the responses they are decoding.

    Attributes:
      cache: rows G * S.
      row: [G, S] index, within the group, of the response that the slot decodes.
      token: [G, S] the token to read next; ignored where `valid` is False.
      valid: [G, S] bool.
      alive: [G, S] bool, whether the response is unfinished.
      start: [G, S] step at which the response began.
      count: [G, S] tokens in the response.
      ended: [G, S] bool, whether its last token ended it.
      met: [G, S] number of characters of the stop text that it ends with.
      tokens, log_probs: [G, S, R]; step t writes column t mod R.
      top_tokens, top_log_probs: [G, S, R, K], the same.
      states: [G, S, R, D], the same; of width 0 where they are not kept.
      queue: [G] index of the next response to start.
      step: [] number of steps so far.
    """

    cache: decode.KVCache
    row: Array
    token: Array
    valid: Array
    alive: Array
    start: Array
    count: Array
    ended: Array
    met: Array
    tokens: Array
    log_probs: Array
    top_tokens: Array
    top_log_probs: Array
    states: Array
    queue: Array
    step: Array


@struct.dataclass
class _Responses:
    """Finished responses: what `_Slots` has of them, in order of their B rows by group."""

    tokens: Array
    log_probs: Array
    top_tokens: Array
    top_log_probs: Array
    states: Array
    count: Array
    ended: Array


def generate(
    model: Transformer,
    params: ArrayTree,
    prompt_tokens: Array,
    prompt_mask: Array,
    key: Array,
    *,
    config: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
    num_samples: int = 1,
    stops: Array | None = None,
    wanted: Array | None = None,
    first: Array | int = 0,
    top: int = 0,
    keep_states: bool = False,
) -> Generation:
    """Sample responses. A pure function: jit it with every argument but the arrays static.

    A response ends with the first token in `eos_ids`, or with the first that completes a stop text;
    that token is part of the response. `pad_id` may be one of `eos_ids`, since masks come from
    lengths. The model reads each prompt once for all `num_samples` of its responses, and decoding
    stops when every response has ended. Each sampled token depends only on `key`, on its row and on
    its position in the response, so `config.slots` and the mesh change it only by rounding.

    Args:
      model: the policy.
      params: its parameters, with or without LoRA's updates.
      prompt_tokens: [N, P] int32, left-padded; the mesh's data axes must divide N.
      prompt_mask: [N, P], 1 on prompt tokens.
      key: typed PRNG key.
      config: length limit, sampling distribution, slots.
      eos_ids: token ids that end a response.
      pad_id: fills the columns after the end of a response.
      num_samples: responses per prompt; rows of one prompt are consecutive.
      stops: None, or the table of a stop text, see `stops.stop_table`.
      wanted: [N] bool, the prompts that get responses; those of the others stay empty and count as
        cut off. None for all.
      first: number of the first prompt among all that the key is for, where these are some of them.
      top: K, of how many of its most probable tokens every step gives log-probabilities.
      keep_states: whether the hidden states are returned too.

    Returns:
      A `Generation` with N * num_samples rows.

    Raises:
      ValueError: prompt and response together exceed the model's positions, or the data axes of
        the current mesh do not divide N.
    """
    chex.assert_rank([prompt_tokens, prompt_mask], 2)
    chex.assert_equal_shape([prompt_tokens, prompt_mask])
    groups = groups_of(prompt_tokens)
    rows, limit = len(prompt_tokens) * num_samples // groups, config.max_new_tokens
    slots = min(-(-config.slots // groups) or rows, rows)

    if not lora.split(params)[1]:  # the weights that LoRA started from have no updates
        model = Transformer(model.config.without_lora())
    gathered = decode.gather_params(model, params)
    wanted = jnp.ones(len(prompt_tokens), bool) if wanted is None else wanted
    prompts = prefill(model, params, prompt_tokens, prompt_mask, wanted, config, groups)

    def start(state):
        return _start(state, prompts, num_samples, rows, decode.columns_of_keys(model.config))

    def advance(state):
        number = first * num_samples + state.row + (rows * jnp.arange(groups))[:, None]
        return _advance(model, gathered, state, key, number, config, eos_ids, stops)

    width = model.config.d_model if keep_states else 0
    empty = functools.partial(_no_tokens, limit, top, width, model.config.dtype)
    state = start(_no_slots(model, prompt_tokens.shape[1], config, groups, slots, empty))
    responses = _decode(state, _no_responses(groups, rows, empty), start, advance)
    out = jax.tree.map(lambda x: x.reshape(groups * rows, *x.shape[2:]), responses)
    return _generation(out, prompts.states, pad_id, top, keep_states)


def _generation(
    out: _Responses, prompts: Array, pad_id: int, top: int, keep_states: bool
) -> Generation:
    """What `generate` returns of B responses in order, and of the hidden states at prompts."""
    inside = jnp.arange(out.tokens.shape[1])[None] < out.count[:, None]
    return Generation(
        tokens=jnp.where(inside, out.tokens, pad_id),
        mask=inside.astype(jnp.float32),
        log_probs=jnp.where(inside, out.log_probs, 0.0),
        truncated=~out.ended,
        top_tokens=jnp.where(inside[..., None], out.top_tokens, pad_id) if top else None,
        top_log_probs=jnp.where(inside[..., None], out.top_log_probs, 0.0) if top else None,
        states=_all_states(prompts, out, inside) if keep_states else None,
    )


def _all_states(prompts: Array, responses: _Responses, inside: Array) -> Array:
    """Hidden states [B, P + R, D] at prompts and responses."""
    count = len(inside) // len(prompts)
    found = jnp.where(inside[..., None], responses.states, 0.0)
    found = jnp.pad(found, ((0, 0), (0, 1), (0, 0)))  # nobody reads the last token
    return jnp.concatenate([jnp.repeat(prompts, count, axis=0), found], axis=1)


def _decode(state: _Slots, responses: _Responses, start, advance) -> _Responses:
    """Decodes until every response has ended; `start` fills free slots, `advance` adds a token."""
    slots, rows = state.row.shape[1], responses.count.shape[1]

    def refill(carry):
        state, responses = carry
        responses = _store(responses, state)
        return start(state), responses

    def body(carry):
        state, responses = carry
        if slots < rows:
            free = jnp.sum(~state.alive, axis=1)
            due = (free >= max(slots // _FREE_SHARE, 1)) & (state.queue < rows)
            state, responses = jax.lax.cond(jnp.any(due), refill, lambda x: x, carry)
        return advance(state), responses

    def going(carry):
        state, _ = carry
        return jnp.any(state.alive) | jnp.any(state.queue < rows)

    state, responses = jax.lax.while_loop(going, body, (state, responses))
    return _store(responses, state)


def _no_responses(groups: int, rows: int, empty: Callable[..., dict[str, Array]]) -> _Responses:
    """Empty arrays for the `rows` responses of each group."""
    return _Responses(
        **empty(groups, rows),
        count=jnp.zeros((groups, rows), jnp.int32),
        ended=jnp.zeros((groups, rows), bool),
    )


def _no_tokens(
    limit: int, top: int, width: int, dtype: str, groups: int, rows: int
) -> dict[str, Array]:
    """Tokens with their log-probabilities, those of the most probable ones, and hidden states."""
    shape = (groups, rows, limit)
    return {
        "tokens": jnp.zeros(shape, jnp.int32),
        "log_probs": jnp.zeros(shape, jnp.float32),
        "top_tokens": jnp.zeros((*shape, top), jnp.int32),
        "top_log_probs": jnp.zeros((*shape, top), jnp.float32),
        "states": jnp.zeros((*shape, width), dtype),
    }


def _no_slots(
    model,
    prefix: int,
    config: SamplingConfig,
    groups: int,
    slots: int,
    empty: Callable[..., dict[str, Array]],
) -> _Slots:
    """Free slots with empty caches: `prefix` columns for the prompt, then those of the response."""
    shape, columns = (groups, slots), prefix + config.max_new_tokens
    zeros, no = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return _Slots(
        cache=decode.init_cache(model.config, groups * slots, columns, config.cache_dtype),
        row=zeros,
        token=zeros,
        valid=no,
        alive=no,
        start=zeros,
        count=zeros,
        ended=no,
        met=zeros,
        **empty(groups, slots),
        queue=jnp.zeros(groups, jnp.int32),
        step=jnp.int32(0),
    )


def _start(state: _Slots, prompts: Prompts, num_samples: int, rows: int, columns: int) -> _Slots:
    """Gives free slots the next responses of their group; columns of keys lie along an axis."""
    free = ~state.alive
    row = state.queue[:, None] + jnp.cumsum(free, axis=1, dtype=jnp.int32) - 1
    begins = free & (row < rows)
    prompt = jnp.where(begins, row // num_samples, 0)
    take = jax.vmap(lambda x, index: x[index])  # indexes within each group
    flat = begins.reshape(-1)

    def renew(columns, old, first):
        """Copies the prompt's columns, `first`, to the first columns of rows that begin."""
        first = first.reshape(*prompt.shape[:1], -1, *first.shape[1:])
        new = take(first, prompt).reshape(len(flat), *first.shape[2:])
        old_part = jax.lax.slice_in_dim(old, 0, new.shape[columns], axis=columns)
        new = jnp.where(flat.reshape(-1, 1, 1, 1), new, old_part)
        return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=columns)

    cache = state.cache
    known = prompts.cache.valid.reshape(*prompt.shape[:1], -1, prompts.cache.valid.shape[1])
    known = take(known, prompt).reshape(len(flat), -1)
    known = jnp.pad(known, ((0, 0), (0, cache.valid.shape[1] - known.shape[1])))
    cache = decode.KVCache(
        keys=tuple(map(functools.partial(renew, columns), cache.keys, prompts.cache.keys)),
        values=tuple(map(functools.partial(renew, 2), cache.values, prompts.cache.values)),
        valid=jnp.where(flat[:, None], known, cache.valid),
        index=cache.index,
    )
    return state.replace(
        cache=cache,
        row=jnp.where(begins, row, jnp.where(state.alive, state.row, rows)),
        token=jnp.where(begins, take(prompts.token, prompt), state.token),
        valid=jnp.where(begins, take(prompts.valid, prompt), state.valid),
        alive=state.alive | (begins & take(prompts.wanted, prompt)),
        start=jnp.where(begins, state.step, state.start),
        count=jnp.where(begins, 0, state.count),
        ended=state.ended & ~begins,
        met=jnp.where(begins, 0, state.met),
        queue=state.queue + jnp.sum(begins, axis=1, dtype=jnp.int32),
    )


def _advance(model, gathered, state: _Slots, key, number: Array, config, eos_ids, stops) -> _Slots:
    """Adds one token to every slot that is alive; `number` [G, S] is that of its response."""
    limit = config.max_new_tokens
    prefix = state.cache.valid.shape[1] - limit
    place = state.step % limit
    logits, hidden, cache = decode.step(
        model.config,
        gathered,
        state.token.reshape(-1),
        (state.valid & state.alive).reshape(-1),
        state.cache.replace(index=prefix + place),
        wide=0 < config.wide_rows <= state.token.size,
    )
    keys = jax.vmap(lambda n, count: jax.random.fold_in(jax.random.fold_in(key, n), count))(
        number.reshape(-1), state.count.reshape(-1)
    )
    token, log_prob = (x.reshape(state.row.shape) for x in draw(keys, logits, config))
    top = state.top_tokens.shape[-1]
    top_tokens, top_log_probs = (
        x.reshape(*state.row.shape, top) for x in most_probable(logits, config, top)
    )
    kept = hidden.reshape(*state.row.shape, -1)[..., : state.states.shape[-1]]
    count = jnp.where(state.alive, state.count + 1, state.count)
    ends = jnp.any(token[..., None] == jnp.asarray(eos_ids, jnp.int32).reshape(1, 1, -1), axis=-1)
    met = state.met
    if stops is not None:
        met = stops[met, token].astype(jnp.int32)
        ends |= met == len(stops) - 1
    return state.replace(
        cache=cache,
        token=token,
        valid=state.alive,
        alive=state.alive & ~ends & (count < limit),
        count=count,
        ended=jnp.where(state.alive, ends, state.ended),
        met=met,
        tokens=_column(state.tokens, token, place, state.alive),
        log_probs=_column(state.log_probs, log_prob, place, state.alive),
        top_tokens=_column(state.top_tokens, top_tokens, place, state.alive),
        top_log_probs=_column(state.top_log_probs, top_log_probs, place, state.alive),
        states=_column(state.states, kept, place, state.alive),
        step=state.step + 1,
    )


def _column(x: Array, new: Array, place: Array, alive: Array) -> Array:
    """Writes `new` at `place` in slots that are alive; the others keep theirs until stored."""
    old = jax.lax.dynamic_index_in_dim(x, place, axis=2, keepdims=False)
    alive = alive.reshape(*alive.shape, *(1,) * (new.ndim - alive.ndim))
    new = jnp.expand_dims(jnp.where(alive, new, old), 2)
    return jax.lax.dynamic_update_slice_in_dim(x, new, place, axis=2)


def _store(responses: _Responses, state: _Slots) -> _Responses:
    """Stores the responses of slots that are not alive; a slot without one stores nothing."""
    limit = state.tokens.shape[2]
    order = (state.start[..., None] + jnp.arange(limit)[None, None]) % limit
    row = jnp.where(state.alive, responses.count.shape[1], state.row)

    def ordered(x):
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 3)), axis=2)

    found = _Responses(
        tokens=ordered(state.tokens),
        log_probs=ordered(state.log_probs),
        top_tokens=ordered(state.top_tokens),
        top_log_probs=ordered(state.top_log_probs),
        states=ordered(state.states),
        count=state.count,
        ended=state.ended,
    )
    put = jax.vmap(lambda all_, row, new: all_.at[row].set(new, mode="drop"))
    return jax.tree.map(lambda all_, new: put(all_, row, new), responses, found)
