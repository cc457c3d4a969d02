# SPDX-License-Identifier: Apache-2.0
"""The one promise: whatever several programs do to a tree, and whatever fails meanwhile, after it is quiet the bus has
the hash of each file, and nothing else. The model is a fresh hash of the tree.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from .conftest import short_event_queues

CHURN = os.path.join(os.path.dirname(__file__), "churn.py")


class Run:
    """Rounds of churn; between any two of its steps something may be done."""

    def __init__(self, tree, outside, seed):
        outside.mkdir()
        self.tree, self.outside, self.seed, self.rounds = tree, outside, seed, 0

    def churn(self, writers, count, disturb=None, disturbances=0):
        """Let `writers` processes do `count` things each; `disturb()` is called at random times in between."""
        chosen = random.Random(self.seed + self.rounds)
        at = {chosen.randrange(writers * count) for _ in range(disturbances)}
        turn, done = threading.Lock(), 0

        def follow(process):
            nonlocal done
            for _ in process.stdout:
                with turn:
                    done += 1
                    if done in at:
                        disturb()

        with contextlib.ExitStack() as stack:
            followers = []
            for _ in range(writers):
                self.rounds += 1
                argv = [sys.executable, CHURN, self.tree, self.outside, str(self.seed + self.rounds), str(count)]
                process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
                followers.append((process, threading.Thread(target=follow, args=(process,))))
                followers[-1][1].start()
            for process, follower in followers:
                follower.join()
                assert process.wait() == 0


@pytest.fixture
def run(tree, tmp_path):
    return lambda seed: Run(tree, tmp_path / "outside", seed)


def restart_nats(nats):
    nats.process.kill()
    nats.process.wait()
    nats.start()


def check(run, nats, start_monitor, fault, *, seed, rounds, writers, count):
    made = run(seed)
    monitors = []

    def start():
        with short_event_queues() if fault in ("overflow", "all") else contextlib.nullcontext():
            monitors.append(start_monitor())
            monitors[-1].until_answers()

    def restart_monitor():
        monitors[-1].stop(signal.SIGKILL)
        start()

    disturbances = {
        "none": [],
        "overflow": [],
        "bus": [lambda: restart_nats(nats)],
        "killed": [restart_monitor],
        "all": [lambda: restart_nats(nats), restart_monitor],
    }[fault]
    chosen = random.Random(seed)
    start()
    for _ in range(rounds):
        made.churn(*(writers, count, lambda: chosen.choice(disturbances)()), disturbances=3 if disturbances else 0)
        monitors[-1].agrees()


@pytest.mark.parametrize("fault", ["none", "all"])
def test_short(run, nats, start_monitor, fault):
    check(run, nats, start_monitor, fault, seed=1, rounds=2, writers=3, count=60)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", ["none", "overflow", "bus", "killed", "all"])
def test_long(run, nats, start_monitor, fault, seed):
    """Some 1500 steps of four processes in each of these."""
    check(run, nats, start_monitor, fault, seed=1000 * seed, rounds=6, writers=4, count=60)
