# SPDX-License-Identifier: Apache-2.0
"""What differs between the two builds of `rbuilds reproduce`, and what had to be left the same and why. Pure.

The first build runs as it would for the user. The second runs elsewhere, as somebody else, at another time: this says
in which environment and behind which programs. What a machine cannot change is named, never passed over.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CLOCK_SHIFT = "+31h"
"""Another day of the week and hour. Not years: apt refuses package lists that are too old, TLS its certificates."""
TIME_ZONE = "<+1345>-13:45"
"""POSIX form, so that no time zone data is needed; the odd quarter of an hour shows in any time that is printed."""
UMASKS = (0o077, 0o022)
HASH_SEEDS = ("1", "4242")
OTHER_UID = 54321
"""Has no account anywhere, hence no home and no name."""
PREFERRED_LOCALES = ("tr_TR.utf8", "et_EE.utf8", "de_DE.utf8", "fr_FR.utf8", "C.utf8", "C.UTF-8", "C", "POSIX")
"""Turkish first: its dotless i breaks more code than any other; then whatever sorts in another order than C."""

UserChange = Literal["account", "namespace"]
OrderChange = Literal["disorderfs", "copy"]


@dataclass(frozen=True, slots=True)
class Host:
    """What the machine offers for changing things."""

    umask: int
    locale: str
    """The one in force; `C` where none is set."""
    locales: tuple[str, ...]
    cpus: tuple[int, ...]
    """Numbers of those that we may run on."""
    faketime: str | None
    """libfaketime, a library to preload."""
    user: UserChange | None
    user_obstacle: str = ""
    order: OrderChange | None = "copy"
    order_obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the second build happens."""

    work: str
    """Its working directory."""
    home: str
    cache: str
    temporary: str


@dataclass(frozen=True, slots=True)
class Change:
    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How the second build is run."""

    prefix: tuple[str, ...]
    """Words before the arguments of `rbuilds`."""
    environment: dict[str, str]
    changed: list[Change] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def plan_surroundings(
    host: Host, places: Places, environment: Mapping[str, str], *, with_engine: bool, uid: int
) -> Surroundings:
    """Return the second build's surroundings.

    Args:
        environment: that of the first build.
        with_engine: a container engine builds the app; its store of images belongs to the user and their home.
        uid: of the user who calls.
    """
    plan = Surroundings((), {**environment, "PYTHONHASHSEED": HASH_SEEDS[1]})
    plan.changed.append(Change("hash seed", HASH_SEEDS[0], HASH_SEEDS[1]))
    launch: list[str] = []
    prefix: list[str] = []
    _change_clock(plan, host, launch)
    plan.environment["TZ"] = TIME_ZONE
    plan.changed.append(Change("time zone", environment.get("TZ", "the machine's"), TIME_ZONE))
    _change_locale(plan, host)
    umask = next(mask for mask in UMASKS if mask != host.umask)
    launch += ["--umask", f"{umask:03o}"]
    plan.changed.append(Change("umask", f"{host.umask:03o}", f"{umask:03o}"))
    if len(host.cpus) > 1:
        launch += ["--cpu", str(host.cpus[-1])]
        plan.changed.append(Change("CPUs", str(len(host.cpus)), "1"))
    else:
        plan.left_out.append(LeftOut("CPUs", "there is only one"))
    _change_user(plan, host, launch, prefix, with_engine=with_engine, uid=uid)
    plan.environment.update({"XDG_CACHE_HOME": places.cache, "TMPDIR": places.temporary})
    plan.changed.append(Change("paths", "as called", f"working, cache and temporary directory in {places.work}"))
    if with_engine:
        plan.left_out.append(LeftOut("home", "the container engine keeps its images and settings there"))
    else:
        plan.environment["HOME"] = places.home
        plan.changed.append(Change("home", environment.get("HOME", "none"), places.home))
    if host.order is None:
        plan.left_out.append(LeftOut("directory order", host.order_obstacle))
    else:
        how = "shuffled by disorderfs" if host.order == "disorderfs" else "a copy made in another order"
        plan.changed.append(Change("directory order", "as it is", how))
    launcher = [sys.executable, "-P", "-m", "enclavekit_rbuilds.evidence.launch", *launch, "--"]
    module = "enclavekit_rbuilds.cli" if host.faketime is None else "enclavekit_rbuilds.evidence.shifted"
    program = [sys.executable, "-P", "-m", module]
    return Surroundings((*prefix, *launcher, *program), plan.environment, plan.changed, plan.left_out)


def _change_clock(plan: Surroundings, host: Host, launch: list[str]) -> None:
    if host.faketime is None:
        plan.left_out.append(LeftOut("clock", "libfaketime is not installed (Debian: apt-get install faketime)"))
        return
    before = plan.environment.get("LD_PRELOAD", "")
    variables = {
        "LD_PRELOAD": f"{before}:{host.faketime}" if before else host.faketime,
        "FAKETIME": CLOCK_SHIFT,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # else time-outs of what we run come at once or never
    }
    # set by the launcher: the library makes a semaphore for its process, which another user could not open afterwards
    for name, value in variables.items():
        launch += ["--env", f"{name}={value}"]
    plan.changed.append(Change("clock", "the machine's", CLOCK_SHIFT.replace("h", " h")))


def _change_locale(plan: Surroundings, host: Host) -> None:
    same = _canonical(host.locale)
    found = next((name for name in PREFERRED_LOCALES if name in host.locales and _canonical(name) != same), None)
    if found is None:
        plan.left_out.append(LeftOut("locale", f"{host.locale} is the only one installed"))
        return
    for name in [name for name in plan.environment if name.startswith("LC_")]:
        del plan.environment[name]
    plan.environment.update({"LC_ALL": found, "LANG": found, "LANGUAGE": found.partition(".")[0]})
    plan.changed.append(Change("locale", host.locale, found))


def _change_user(
    plan: Surroundings, host: Host, launch: list[str], prefix: list[str], *, with_engine: bool, uid: int
) -> None:
    if with_engine:
        plan.left_out.append(LeftOut("user", "the container engine works for this one"))
        return
    if host.user is None:
        plan.left_out.append(LeftOut("user", host.user_obstacle))
        return
    if host.user == "account":
        launch += ["--user", str(OTHER_UID)]
        second = str(OTHER_UID)
    else:
        prefix += ["unshare", "--user", f"--map-user={OTHER_UID}", f"--map-group={OTHER_UID}"]
        second = f"{OTHER_UID} (in a user namespace)"
    plan.changed.append(Change("user", str(uid), second))


def _canonical(locale: str) -> str:
    """Return a locale's name so that two spellings of one are equal."""
    name = locale.lower().replace("-", "")
    return "c" if name == "posix" else name
