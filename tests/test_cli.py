"""The command line itself: its version, lists of nothing."""

import subprocess
import sys

import pytest

import marey
from marey.cli.run import recipes
from marey.errors import UsageError


def test_the_version_is_told_without_loading_torch():
    code = (
        "import sys; sys.argv = ['marey', '--version']\n"
        "import marey.cli\n"
        "try:\n    marey.cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"marey {marey.__version__}\n"), done.stderr


def test_a_pattern_that_no_recipe_matches_is_an_error_and_not_an_empty_list():
    with pytest.raises(UsageError, match=r"'\*tsm_r51\*' takes a part") as error:
        recipes("tsm_r51")
    assert error.value.code == "UNKNOWN_RECIPE"
