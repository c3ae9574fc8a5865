"""What libraries print goes to a file, from Python and from below it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
from pathlib import Path
from blip3o_rl import terminal
try:
    with terminal.redirected() as output:
        print("bar")
        os.write(2, b"C++ warning\\n")
        output.to(Path(sys.argv[1]))
        print("INFO", file=sys.stderr)
        os.system("echo from a child process")
        print("for the user", file=output.terminal)
        raise ValueError("the reason")
finally:
    print("afterwards")
"""


def test_only_our_own_lines_and_tracebacks_reach_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    log.write_text("of an earlier run\n")
    done = subprocess.run([sys.executable, "-c", CODE, str(log)], capture_output=True, text=True)
    assert done.stdout == "for the user\nafterwards\n"
    assert done.stderr.rstrip().endswith("ValueError: the reason")
    assert "INFO" not in done.stderr and "C++" not in done.stderr
    lines = set(log.read_text().splitlines())
    assert lines == {"of an earlier run", "bar", "C++ warning", "INFO", "from a child process"}
