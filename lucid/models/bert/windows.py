"""Texts longer than the position table: the part of one that is read around its masks."""

from __future__ import annotations

from collections.abc import Sequence

Window = tuple[int, int]
"""The tokens begin to end - 1 of a text, counted without [CLS] and [SEP]."""


def window_around(n_tokens: int, begin: int, end: int, room: int) -> Window:
    """Return the `room` tokens of a text that hold begin to end - 1 in their middle, as far as the text's ends allow.

    Parameters
    ----------
    n_tokens : int. Of the text.
    begin, end : int, 0 <= begin < end <= n_tokens and end - begin <= room
    room : int
    """
    if n_tokens <= room:
        return 0, n_tokens
    first = begin - (room - (end - begin)) // 2
    first = min(max(first, 0), n_tokens - room)
    return first, first + room


def share_windows(places: Sequence[int], n_tokens: int, room: int) -> list[list[int]]:
    """Cut the numbers of a text's masks into groups that are read in one window.

    Parameters
    ----------
    places : rising token numbers of the masks
    n_tokens : int. Of the text.
    room : int. Tokens of a window.

    Returns
    -------
    groups : list of lists of numbers of masks, all of them in order

    Notes
    -----
    A group spans at most half a window, so every mask keeps at least a quarter of it as context on either side,
    where the text has that much. Masks further apart are read in windows of their own.
    """
    if n_tokens <= room:
        return [list(range(len(places)))] if places else []
    groups: list[list[int]] = []
    for mask, place in enumerate(places):
        if groups and place - places[groups[-1][0]] < max(1, room // 2):
            groups[-1].append(mask)
        else:
            groups.append([mask])
    return groups
