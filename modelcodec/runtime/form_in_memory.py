"""A matrix of bf16 in memory in the fixed-length form, in the place of frames: from there it is multiplied, and decoded where its elements are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelcodec.runtime import fixed_length_cpu as cpu
from modelcodec.runtime.fixed_length import FixedLength
from modelcodec.runtime.frames_in_memory import Coding, WordsInMemory
from modelcodec.types import Array, TensorSpec

_FRAME_WORDS = 1 << 19
"""About; frames are whole rows."""


@dataclass(frozen=True, slots=True)
class FormInMemory(WordsInMemory):
    """`form` is on the CPU."""

    form: FixedLength

    @classmethod
    def of(cls, spec: TensorSpec, x: Array, coding: Coding) -> FormInMemory | None:
        """The words x of a tensor; None where there is no such form of it."""
        import torch

        if spec.dtype.name != "BF16" or len(spec.shape) != 2:
            return None
        words = torch.from_numpy(coding.rounded(x, spec.dtype.name).view("<i2"))
        form = FixedLength.of(words.view(torch.bfloat16).view(spec.shape))
        return None if form is None else cls(spec, max(_FRAME_WORDS // form.n_columns, 1) * form.n_columns, form)

    @property
    def n_bytes(self) -> int:
        return self.form.n_bytes

    def decode(self, numbers: Sequence[int], out: Array, threads: int = 1) -> None:
        step, n_columns = self.frame_words // self.form.n_columns, self.form.n_columns
        rows = [np.arange(number * step, number * step + self.words_of(number) // n_columns) for number in numbers]
        cpu.unpack(self.form.on_cpu(), np.concatenate([np.empty(0, np.int64), *rows]), out.reshape(-1, n_columns), threads)
