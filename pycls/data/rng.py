"""Random numbers as pure functions of (seed, epoch, id, stream): nothing is drawn, so nothing has to be remembered.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) used
by counter: number ``i`` of the stream with key ``k`` is ``mix(k + (i + 1) * GOLDEN)`` modulo 2^64. It is integer
arithmetic alone, so the numbers are the same on every machine, device, and version of PyTorch; tests hold them to known
values.

Tensors of 64-bit words are int64 (PyTorch has no full uint64): the same bits, read as signed.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

# The streams: one for each use, so that no two uses see the same numbers. A number, once given out, keeps its meaning.
ORDER, TOP, LEFT, FLIP, SPLIT, MIX, PAIRS, BOX, TAIL, NOISE, NOISE_CLASS, NEGATIVES = range(12)


def _signed(word: int) -> int:
    """The unsigned 64-bit ``word`` as the signed integer with the same bits."""
    return word - (1 << 64) if word >> 63 else word


def _mix_word(word: int) -> int:
    for shift, factor in _STEPS:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word ^ (word >> 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own would drag the sign bit along."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def key(seed: int, epoch: int, stream: int) -> int:
    """The key of a stream: an unsigned 64-bit integer in which each argument has been mixed with those before it."""
    word = _mix_word((seed + GOLDEN) & _MASK)
    for part in (epoch, stream):
        word = _mix_word((word + (part + 1) * GOLDEN) & _MASK)
    return word


def hash_word(seed: int, epoch: int, index: int, stream: int) -> int:
    """One number of :func:`hash64`, as an unsigned 64-bit Python integer: for code that handles single samples."""
    return _mix_word((key(seed, epoch, stream) + (index + 1) * GOLDEN) & _MASK)


def uniform_one(seed: int, epoch: int, index: int, stream: int) -> float:
    """One number of :func:`uniform` in float64."""
    return (hash_word(seed, epoch, index, stream) >> 11) * 2.0**-53


def hash64(seed: int, epoch: int, ids: Tensor, stream: int) -> Tensor:
    """64 random bits for each id.

    Args:
        seed: any integer; taken modulo 2^64.
        epoch: any integer.
        ids: int64 tensor of any shape; the result lies on its device.
        stream: what the numbers are for (``ORDER``, ``FLIP``, ...).

    Returns:
        int64 tensor of the shape of ``ids``, uniform over all 2^64 values.
    """
    words = (ids + 1).mul_(_signed(GOLDEN)).add_(_signed(key(seed, epoch, stream)))
    for shift, factor in _STEPS:
        words.bitwise_xor_(_shift_right(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shift_right(words, 31))


def uniform(seed: int, epoch: int, ids: Tensor, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A number in [0, 1) for each id, a multiple of 2^-24 (float32) or 2^-53 (float64), so that 1 is never reached."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"uniform numbers are float32 or float64, not {dtype}")
    bits = 24 if dtype == torch.float32 else 53
    return _shift_right(hash64(seed, epoch, ids, stream), 64 - bits).to(dtype).mul_(2.0**-bits)


def integers(seed: int, epoch: int, ids: Tensor, stream: int, bound: int) -> Tensor:
    """An integer in 0..bound-1 for each id, int64, for 1 <= bound <= 2^31; uneven by less than bound / 2^32."""
    if not 1 <= bound <= 1 << 31:
        raise ValueError(f"the bound of random integers must be in 1..2^31, not {bound}")
    return _shift_right(hash64(seed, epoch, ids, stream), 32).mul_(bound) >> 32


def permutation(n: int, seed: int, epoch: int, stream: int = ORDER) -> Tensor:
    """The ids 0..n-1 in the order of their hashes: int64 ``[n]`` on the CPU; equal hashes leave ids in order."""
    return hash64(seed, epoch, torch.arange(n), stream).argsort(stable=True)
