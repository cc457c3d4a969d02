# SPDX-License-Identifier: Apache-2.0
"""What to do about a clock that differs from the NSM's time. Pure.

The parent may steer the clock of its enclave; the NSM's timestamp is the hypervisor's. The check is made before any
service has started, so that setting the clock then disturbs nobody's intervals; what is small is slewed, at the rate
that the kernel allows (500 ppm), and never jumps.
"""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE_S = 0.1  # the NSM counts milliseconds, and its answer takes some
MAX_SLEW_S = 0.5  # what adjtimex(2) slews at most; at 500 ppm it takes 1000 s
MAX_ANSWER_S = 5.0  # an answer that took longer says nothing about the time
MAX_DISAGREEMENT_S = 1.0  # between the hypervisor's PTP clock and the NSM


@dataclass(frozen=True, slots=True)
class Correction:
    step_s: float = 0.0
    slew_s: float = 0.0
    notes: tuple[str, ...] = ()


def decide_correction(before_s: float, nsm_s: float, after_s: float, ptp_offset_s: float | None) -> Correction:
    """Return how to correct the clock.

    Args:
        before_s, after_s: our clock around the NSM's answer, Unix seconds. nsm_s: the time in that answer.
        ptp_offset_s: the PTP clock less ours; None where there is none.
    Raises: ValueError if the answer took too long to say anything.
    """
    if not 0 <= after_s - before_s <= MAX_ANSWER_S:
        raise ValueError(f"its answer took {after_s - before_s:.1f} s, which says nothing about the time")
    # anywhere between the two readings counts as right
    offset = nsm_s - min(max(nsm_s, before_s), after_s)
    notes = []
    if ptp_offset_s is not None and abs(ptp_offset_s - offset) > MAX_DISAGREEMENT_S:
        notes.append(f"the PTP clock is {ptp_offset_s - offset:+.3f} s from the NSM's time, which is followed")
    if abs(offset) <= TOLERANCE_S:
        return Correction(notes=tuple(notes))
    if abs(offset) <= MAX_SLEW_S:
        return Correction(slew_s=offset, notes=(*notes, f"{offset:+.3f} s from the NSM's time: slewed"))
    return Correction(step_s=offset, notes=(*notes, f"{offset:+.3f} s from the NSM's time: set"))
