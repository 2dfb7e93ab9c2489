"""Runs a luthier command under an audit hook and writes what it did with pickles, processes and sockets as JSON.

python -m tests.jobs.audited EVENTS_FILE VERB ...   (sys.addaudithook: https://docs.python.org/3/library/audit_events.html)
"""

import json
import sys
from pathlib import Path

WATCHED = (
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "socket.connect", "socket.bind", "socket.sendto",
)  # fmt: skip
events: set[tuple[str, str, str]] = set()


def watch(event, arguments):
    """Keeps (event, its arguments, the files on the stack) of everything watched."""
    if event not in WATCHED:
        return
    files, frame = [], sys._getframe(1)
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    told = arguments[1:] if event.startswith("socket.") else arguments
    events.add((event, repr(told), "\n".join(dict.fromkeys(files))))


if __name__ == "__main__":
    sys.addaudithook(watch)
    out = Path(sys.argv.pop(1))
    from luthier.cli import main

    try:
        main()
    finally:
        out.write_text(json.dumps(sorted(events)))
