# SPDX-License-Identifier: Apache-2.0
"""However many requests arrive at once, a few begin in each turn of the loop, in order, and all get in."""

import asyncio

from enclavekit_ra_web_srv.turnstile import Turnstile


async def begin_all(turnstile, count, begun):
    async def begin(number):
        await turnstile.enter()
        begun.append(number)

    return [asyncio.ensure_future(begin(number)) for number in range(count)]


async def test_few_begin_in_each_turn():
    turnstile, begun = Turnstile(4), []
    waiting = await begin_all(turnstile, 50, begun)
    turns, before = 0, 0
    while len(begun) < 50:
        await asyncio.sleep(0)  # one turn of the loop
        # what entered in one turn and what was let in by the next may show at once
        assert len(begun) - before <= 2 * 4
        before, turns = len(begun), turns + 1
        assert turns < 100
    assert turns >= 50 / (2 * 4)
    assert begun == list(range(50))
    await asyncio.gather(*waiting)


async def test_who_has_gone_takes_no_place():
    turnstile, begun = Turnstile(1), []
    waiting = await begin_all(turnstile, 20, begun)
    await asyncio.sleep(0)
    for task in waiting[2:19]:
        task.cancel()
    await asyncio.wait_for(waiting[19], 10)
    assert begun[-1] == 19
    assert len(begun) <= 4


async def test_it_rests_when_nobody_comes():
    turnstile = Turnstile(2)
    await turnstile.enter()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not turnstile._is_turning
    for _ in range(3):
        await asyncio.wait_for(turnstile.enter(), 10)
