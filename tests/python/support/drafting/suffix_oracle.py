"""What a suffix store must answer, by scanning all texts."""

from __future__ import annotations

import heapq

from kvctl.draft import SuffixStore

#: Places that are counted.
OCCURRENCES = 24


def matches(texts, context):
    """Return the length of the longest match, and what follows each place that has it."""
    best, following = 0, []
    for age, text in enumerate(texts):
        for end in range(1, len(text)):
            length = 0
            most = min(end, len(context), SuffixStore.MAX_MATCH)
            while length < most and text[end - 1 - length] == context[-1 - length]:
                length += 1
            if length > best:
                best, following = length, []
            if length == best and best > 0:
                following.append(((age, end), text[end:]))
    return best, following


def grow(following, max_nodes, max_depth):
    """Return tokens, parents and shares of the drafted nodes, the best first."""
    tokens, parents, shares = [], [], []
    offers = []

    def offer(parent, depth, share, members):
        if depth >= max_depth:
            return
        groups = {}
        for age, text in members:
            if len(text) > depth:
                groups.setdefault(text[depth], []).append((age, text))
        total = sum(map(len, groups.values()))
        for token, group in groups.items():
            mine = share * len(group) / total
            newest = max(age for age, _ in group)
            heapq.heappush(
                offers,
                (-mine, tuple(-part for part in newest), depth, parent, token, group),
            )

    offer(0, 0, 1.0, following)
    while offers and len(tokens) < max_nodes:
        share, _, depth, parent, token, group = heapq.heappop(offers)
        tokens.append(token)
        parents.append(parent)
        shares.append(-share)
        offer(len(tokens), depth + 1, -share, group)
    return tokens, parents, shares
