"""Clients that teach much in little time, and some that nobody knows yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atoll.tensors import Record

from .contract import Ask, Bools, Choice, Chosen, Floats, Ints, Learned, chosen
from .drawing import changed, first, race

__all__ = ["Oort"]

DECAY, LEAST = 0.98, 0.3
"""The share of a cohort that is explored falls by this factor every round, and no lower."""
CLIP = 0.9
"""The quantile of utilities above which a larger one counts for no more."""
CUTOFF = 0.05
"""Clients compete for a place down to this share of the score of the first that would get none."""
WINDOW, FLAT, STEP = 20, 0.1, 5.0
"""Every so many rounds: where the sum of utilities changed by less than this share, slower clients are welcome."""
CONFIDENCE = 0.1
"""How much a score grows for clients that were not asked for long."""
BARRED = 0.3
"""The largest share of all clients that may be left out for having been asked too often."""


@dataclass(frozen=True)
class Oort(Choice):
    """Utility of the data times a penalty for being slow.   Lai et al., OSDI 2021, Algorithm 1

    The utility of client i (section 4.2) is U_i = |B_i| sqrt(mean over B_i of loss^2), with the training losses of
    the last round that it answered. Of those explored (their utility is known), the score in round R (4.3, 4.4) is

        (min(U_i, clip) - U_min) / (U_max - U_min) + sqrt(0.1 ln R / L_i)      L_i: the last round it was answered in
        times (T / t_i)^alpha where its seconds t_i are more than T

    and a cohort's share 1 - e of places goes to them, in proportion to scores, down to a cut-off. The share e goes
    to clients of unknown utility, in proportion to their expected speed 1 / t_i; it falls from `exploration`. T is a
    percentile of everybody's seconds, and a pacer raises that when utilities get flat. What the paper leaves open
    (norms, cut-off, windows) and all constants are as in FedScale, which its authors keep. FedScale explores by size as
    well, and lowers the percentile after a jump of utilities; Algorithm 1 does neither, nor does this.

    Places are rounded by chance, so that draws of a single client (an asynchronous run) explore and exploit as well. If
    places are left, anybody who is there gets them with the same chance, those asked too often last.

    Args:
        exploration: share of the places for clients of unknown utility, to begin with.
        alpha: how much slow clients are penalised; 0 not at all.
        threshold: percentile of seconds up to which nobody is slow, to begin with; 100 makes nobody slow.
        blacklist: rounds; whoever was asked more often is left out (at most 30 % of all, the most often asked).
    """

    exploration: float = 0.9
    alpha: float = 2.0
    threshold: float = 30.0
    blacklist: int | None = None

    name = "oort"

    def begin(self, clients: int) -> Record:
        """Utilities and seconds (nan: unknown), the last round that taught a utility, how often each was asked."""
        unknown = torch.full((clients,), torch.nan, dtype=torch.float64)
        never = torch.zeros(clients, dtype=torch.int64)
        return Record(
            utility=unknown,
            seconds=unknown,
            seen=never,
            asked=never,
            gained=torch.zeros(2 * WINDOW, dtype=torch.float64),
            threshold=float(self.threshold),
            rounds=0,
        )

    def draw(self, state: Record, ask: Ask) -> Chosen:
        """Expected seconds are looked at once for each client, and known from then on."""
        state = _timed(state, ask)
        rng, utility, seconds = ask.rng(), state.utility.numpy(), state.seconds.numpy()
        barred = self.barred(state)
        open_ = np.setdiff1d(ask.everyone(), barred, assume_unique=True) if len(barred) else ask.everyone()
        known = open_[~np.isnan(utility[open_])]
        known = known[ask.there(known)]
        fresh = open_[np.isnan(utility[open_])]

        places = ask.count * (1 - self.explored(ask.number))
        places = int(places) + int(rng.random() < places % 1)
        speed = 1 / np.maximum(seconds[fresh], 1e-4)
        new = race(rng, fresh, speed, ask.count - min(places, len(known)), ask.there)
        places = min(ask.count - len(new), len(known))
        score = self.scores(state, known, ask.number)
        wins = admitted(score, places)
        old = race(rng, known[wins], score[wins], places, lambda clients: np.ones(len(clients), bool))
        found = np.concatenate([new, old])
        if len(found) < ask.count:
            left = np.setdiff1d(ask.everyone(), found)
            keys = rng.random(len(left)) + np.isin(left, barred)
            found = np.concatenate([found, first(left, keys, ask.count - len(found), ask.there)])
        return chosen(found, state)

    def explored(self, number: int) -> float:
        """Which share of the places in this round is for clients of unknown utility."""
        return max(self.exploration * DECAY**number, min(LEAST, self.exploration))

    def barred(self, state: Record) -> Ints:
        """Clients that were asked too often, a whole number of them."""
        if self.blacklist is None:
            return np.empty(0, np.int64)
        asked = state.asked.numpy()
        often = np.flatnonzero(asked > self.blacklist)
        return often[np.argsort(-asked[often], kind="stable")][: int(BARRED * len(asked))]

    def scores(self, state: Record, clients: Ints, number: int) -> Floats:
        """Of clients whose utility is known; above 0."""
        utility, seconds = state.utility.numpy()[clients], state.seconds.numpy()[clients]
        if not len(clients):
            return np.empty(0)
        clip, least = at_share(utility, CLIP), 0.999 * utility.min()
        score = (np.minimum(utility, clip) - least) / max(utility.max() - least, 1e-4)
        score += np.sqrt(CONFIDENCE * np.log(number) / state.seen.numpy()[clients])
        limit = self.limit(state)
        slow = seconds > limit
        score[slow] *= (limit / seconds[slow]) ** self.alpha
        return np.asarray(np.maximum(score, 1e-9))

    def limit(self, state: Record) -> float:
        """T: the seconds up to which nobody is slow."""
        seconds = state.seconds.numpy()
        seconds = seconds[~np.isnan(seconds)]
        return np.inf if state.threshold >= 100 else at_share(seconds, state.threshold / 100)

    def learn(self, state: Record, learned: Learned) -> Record:
        """Utilities, seconds and counts; every 20 rounds the pacer looks at what utilities have come to."""
        told, clients = learned.told, learned.clients
        teachers = clients[told]
        squares = np.where(np.isnan(learned.squares), learned.loss**2, learned.squares)[told]
        utility = learned.samples[told] * np.sqrt(squares)
        again = ~np.isnan(state.utility.numpy()[teachers])  # these were exploited, the others explored
        gained = np.append(state.gained.numpy()[1:], utility[again].mean() if again.any() else 0.0)
        timed = np.isfinite(learned.seconds)
        rounds = state.rounds + 1
        return Record(
            utility=changed(state.utility, teachers, utility),
            seconds=changed(state.seconds, clients[timed], learned.seconds[timed]),
            seen=changed(state.seen, teachers, learned.number),
            asked=state.asked + torch.from_numpy(np.bincount(clients, minlength=len(state.asked))),
            gained=torch.from_numpy(gained),
            threshold=paced(state.threshold, gained, rounds),
            rounds=rounds,
        )


def paced(threshold: float, gained: Floats, rounds: int) -> float:
    """The percentile for the rounds to come: a step up where a window brought about as much as the one before."""
    if rounds < 2 * WINDOW or rounds % WINDOW:
        return threshold
    before, now = float(gained[:WINDOW].sum()), float(gained[WINDOW:].sum())
    return min(100.0, threshold + STEP) if abs(now - before) <= FLAT * before else threshold


def admitted(score: Floats, places: int) -> Bools:
    """Who competes for this many places: all with more than a share of the score of the first that would get none.

    Where there is a place for everybody, nobody would get none, and the last one counts.
    """
    if not places:
        return np.zeros(len(score), bool)
    cut = -np.sort(-score)[min(places, len(score) - 1)]
    found: Bools = score >= CUTOFF * cut
    return found


def at_share(values: Floats, share: float) -> float:
    """The value that this share of them lies below."""
    place = min(int(len(values) * share), len(values) - 1)
    return float(np.partition(values, place)[place])


def _timed(state: Record, ask: Ask) -> Record:
    """The state with the expected seconds of everybody who may take part."""
    clients = ask.everyone()
    clients = clients[np.isnan(state.seconds.numpy()[clients])]
    if not len(clients):
        return state
    return state.replace(seconds=changed(state.seconds, clients, ask.seconds(clients)))
