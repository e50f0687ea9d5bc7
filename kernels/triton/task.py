"""What the kernel of `frames` is told of a group of a frame, and what it tells back; without Triton, for those who lay frames out."""

from __future__ import annotations

from dataclasses import dataclass

LANES = 64
RANKS = 256
"""Values of a table, or of each class's table."""
ESCAPE = 1 << 15
"""A table's value for the escape; symbols have at most 15 bits."""
UNITS, STATES, SYMBOL = 1, 2, 4
"""Flags of a result: units are left or missing, a lane does not end in its final state, a symbol is out of range."""


@dataclass(frozen=True, slots=True)
class Task:
    """One group of one frame, as a row of i8 in the order of these fields.

    Places are those of parts in the staged bytes, counted in elements of the part, and 16-byte aligned. Of a part that is not there any place will do.
    """

    units: int
    """i4, two units each"""
    n_units: int
    states: int
    """i4, one a lane"""
    entries: int
    """i4 by class and slot: frequency in bits 0-11, distance from the symbol's first slot in bits 12-23, rank in bits 24-31"""
    values: int
    """i2 by class and rank: symbols, or ESCAPE"""
    bits: int
    low_bits: int
    planes_8: int
    """u1, as the next three: the bit planes of the frame's rest"""
    planes_4: int
    planes_2: int
    planes_1: int
    low: int
    """i2, what the frame's words have below their top 16 bits"""
    escaped: int
    """i2, the group's first escaped word; or, for the second group, the end of the frame's, of which the group has the last ones"""
    n_escapes: int
    """escaped words of the frame"""
    second: int
    """1 for the second group"""
    positions: int
    """in the scratch, room for n_escapes"""
    out: int
    """the frame's first word in the output"""
    n: int
    """words of the frame"""
    first: int
    """the group's first word in the frame, a multiple of 64"""
    end: int
    """the word of the frame after the group's last one"""
    at: int = 0
    """from here on with classes only: the frame's first word in its group of frames"""
    columns: int = 1
    row_scales: int = 0
    """u1, as the next two"""
    column_scales: int = 0
    class_of: int = 0
    """by the sum of two scales"""
