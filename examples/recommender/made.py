"""Ratings that are made up: few items are known to everybody, and users rate what suits them."""

from __future__ import annotations

import numpy as np

from atoll.data import Ratings

TASTES = 3
"""Numbers that a taste has."""


def made(seed: int, users: int = 300, items: int = 200) -> Ratings:
    """Ratings from 1 to 5 in halves, by users with latent tastes.

    An item's popularity falls with its number (number^-0.8), and a user comes upon one by popularity and taste
    together. So the popular is a good guess for everybody, and a taste tells more. The number of ratings of a user has
    a long tail, from 12 up. Ratings are liking and noise: the same item may be met and not liked.
    """
    rng = np.random.default_rng(seed)
    tastes, kinds = rng.normal(size=(users, TASTES)), rng.normal(size=(items, TASTES))
    suits = tastes @ kinds.T / TASTES**0.5
    good, mild = rng.normal(0, 0.4, items), rng.normal(0, 0.3, users)
    known = -0.8 * np.log(np.arange(1, items + 1))
    counts = np.clip(12 + 10 * rng.pareto(1.5, users), 12, items // 3).astype(int)
    user, item, value = [], [], []
    for one, count in enumerate(counts):
        chances = np.exp(known + 1.2 * suits[one])
        met = rng.choice(items, count, replace=False, p=chances / chances.sum())
        liking = 3.3 + mild[one] + good[met] + 0.9 * suits[one, met] + rng.normal(0, 0.4, count)
        user += [one] * count
        item += met.tolist()
        value += np.clip(np.round(2 * liking) / 2, 1, 5).tolist()
    return Ratings(
        "made ratings",
        [f"user {one}" for one in range(users)],
        [f"item {one}" for one in range(items)],
        np.array(user),
        np.array(item),
        np.array(value, np.float32),
    )
