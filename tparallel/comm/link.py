"""A slow network, simulated: what a cluster's links do to a program that runs on one laptop.

Every rank has one link.  A message of b bytes leaves it after b/β seconds, behind the messages
that were posted before it, and arrives α seconds later; a collective is over when the last rank's
bytes have arrived, α once per round.  The data itself moves as always; ``wait`` then sleeps until
the simulated arrival.  A sleeping rank leaves its core alone, so work done between post and wait
is hidden behind the transfer as it is on a real network card.

The clocks of processes on one machine agree (CLOCK_MONOTONIC); across machines they do not, so
this is for one machine.  Source: the α-β model of Thakur, Rabenseifner, Gropp 2005, section 3.
"""

import re
import time
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ..errors import ConfigError

BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass
class Link:
    """One rank's link: ``latency`` α in seconds, ``bandwidth`` β in bytes per second."""

    latency: float
    bandwidth: float
    free_at: float = 0.0

    @staticmethod
    def parse(text: str) -> "Link":
        """``"1gbit,1ms"`` -> Link: bandwidth in kbit, mbit or gbit per second, latency."""
        match = re.fullmatch(r"([\d.]+)([kmg])bit,([\d.]+)(us|ms|s)", text.strip().lower())
        if not match:
            raise ConfigError(
                f"a simulated link is BANDWIDTH,LATENCY: {text!r} is not one. Example: 1gbit,1ms"
            )
        rate, unit, delay, scale = match.groups()
        return Link(float(delay) * SECONDS[scale], float(rate) * BITS[unit] / 8)

    def transmit(self, size: int) -> float:
        """Queue ``size`` bytes; the time at which the last of them has left."""
        self.free_at = max(time.monotonic(), self.free_at) + size / self.bandwidth
        return self.free_at


class Stamps:
    """Tells the other ranks of one communicator when this rank's bytes have left its link."""

    def __init__(self, comm, link: Link):
        self.comm, self.link = comm.Dup(), link

    def collective(self, size: int, rounds: int):
        """Post ``size`` bytes of a collective; returns what sleeps until it is over everywhere."""
        mine, latest = np.array([self.link.transmit(size)]), np.empty(1)
        request = self.comm.Iallreduce(mine, latest, op=MPI.MAX)

        def arrive():
            request.Wait()
            _sleep_until(latest[0] + rounds * self.link.latency)

        return arrive

    def send(self, size: int, to: int, tag: int):
        """Announce a message to ``to``; returns what waits until the announcement is gone."""
        stamp = np.array([self.link.transmit(size)])
        return self.comm.Isend(stamp, to, tag).Wait

    def receive(self, source: int, tag: int) -> None:
        """Sleep until the message with this tag has arrived."""
        stamp = np.empty(1)
        self.comm.Recv(stamp, source, tag)
        _sleep_until(stamp[0] + self.link.latency)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
