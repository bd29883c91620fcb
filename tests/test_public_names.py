"""docs/reference.md lists exactly the public names of sdft, each with its module."""

import re
import subprocess
import sys

import pytest

import sdft
from tests.conftest import REPOSITORY

ROW = re.compile(r"^\| `(\w+)` \| `([\w.]+)` \| .+ \|$", re.MULTILINE)


def documented():
    text = (REPOSITORY / "docs" / "reference.md").read_text("utf-8")
    return dict(ROW.findall(text.partition("## Public names")[2]))


def test_the_page_lists_the_public_names_with_their_modules():
    assert documented() == {name: getattr(sdft, name).__module__ for name in sdft.__all__}


@pytest.mark.parametrize("name", sdft.__all__)
def test_every_public_name_says_what_it_is(name):
    assert getattr(sdft, name).__doc__
    assert name in dir(sdft)


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sdft.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, sdft; assert 'torch' not in sys.modules; sdft.Message"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
