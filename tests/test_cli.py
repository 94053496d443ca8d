"""The command line itself: its version."""

import subprocess
import sys

import marey


def test_the_version_is_told_without_loading_torch():
    code = (
        "import sys; sys.argv = ['marey', '--version']\n"
        "import marey.cli\n"
        "try:\n    marey.cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"marey {marey.__version__}\n"), done.stderr
