"""The same examples in every run of CI; other runs look for new ones. No test fetches weights."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
os.environ["MAREY_OFFLINE"] = "1"
if os.environ.get("CI"):
    settings.load_profile("ci")
