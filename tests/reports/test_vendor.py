"""What the page embeds of others is what their release holds, and its licence lies beside it."""

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "reports" / "vendor"


def test_every_embedded_file_has_the_hash_and_the_licence_that_the_table_says():
    table = (VENDOR / "VENDOR.md").read_text()
    told = dict(re.findall(r"^\| `([\w.-]+)` \|.*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    assert told == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in VENDOR.glob("*.js")}
    assert all((VENDOR / f"{name.removesuffix('.min.js')}.LICENSE.txt").exists() for name in told)


def test_no_embedded_file_can_end_its_own_script_element():
    for file in VENDOR.glob("*.js"):
        assert not re.search(r"</script|<script", file.read_text(), re.IGNORECASE), file.name
