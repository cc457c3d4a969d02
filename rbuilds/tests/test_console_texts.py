# SPDX-License-Identifier: Apache-2.0
"""Help texts and the reference page are made from the tables, and the page in docs/ is that page."""

from __future__ import annotations

from pathlib import Path

import pytest
from enclavekit_rbuilds.console import catalog
from enclavekit_rbuilds.console.flags import FLAGS
from enclavekit_rbuilds.console.reference import TABLES, fill_page
from enclavekit_rbuilds.console.texts import TEXTS

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/rbuilds-sh.md"


def test_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text()
    assert fill_page(text) == text, "python -m enclavekit_rbuilds.console.reference docs/reference/rbuilds-sh.md"
    assert all(f"<!-- table: {name} -->\n" in text for name in TABLES)


@pytest.mark.parametrize(
    "text", [TEXTS["info"](), TEXTS["help_ext_man"](), PAGE.read_text()], ids=["info", "help", "page"]
)
def test_whole_texts_name_everything(text) -> None:
    names = [*catalog.BY_NAME, *catalog.REPLACED_BY_NAME, *catalog.TEXT_NAMES, *catalog.TOGGLES, catalog.CHOICE]
    for word in [*names, *(alias for flag in FLAGS for alias in flag.aliases)]:
        assert word in text


def test_every_text_can_be_asked_for_by_flag_and_by_name() -> None:
    assert set(TEXTS) == set(catalog.TEXT_NAMES)
    assert len({text() for text in TEXTS.values()}) >= 5
    assert all(len(line) <= 132 for text in TEXTS.values() for line in text().splitlines())
