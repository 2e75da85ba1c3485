"""Kills iterations at random moments, some number of times, and checks what becomes of them.

    python tests/iterations/random_kills.py [KILLS] [SEED]

Each command is killed after a random time, now and then together with all other processes ("the
machine starts again"); the next one resumes. After half of the kills `--recover` must bring the
server back. An iteration that gets to its end must be as if nothing had interrupted it, and another
one begins. Prints what happened.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from iterations.play import STEPS, Play, kill

_LONGEST = 9.0
_SLOW = {"STEP_SECONDS": "2"}


def main(kills: int, seed: int) -> int:
    chance, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        play = Play(Path(folder).resolve())
        try:
            while counts["killed"] < kills:
                once(play, chance, counts)
            code, printed = play.run()
            assert code == 0, printed
            end(play)
        finally:
            play.close()
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return 0


def once(play: Play, chance: random.Random, counts: Counter) -> None:
    """A command that is killed, unless it ends before."""
    process = play.start(environment=_SLOW)
    try:
        printed = process.communicate(timeout=chance.uniform(0.2, _LONGEST))[0]
    except subprocess.TimeoutExpired:
        pass
    else:
        assert process.returncode == 0, printed
        counts["iterations that ended"] += 1
        end(play)
        play.next()
        return
    stopped, inside = play.intent.exists(), (play.work / "running.json").exists()
    kill(process)
    counts["killed"] += 1
    counts["in a step" if inside else "between steps"] += 1
    counts["while the server was stopped"] += stopped
    if chance.random() < 0.2:
        counts["with all other processes"] += 1
        play.reboot()
    made = any(play.folder.glob("work/*/records/export.json"))
    if made and chance.random() < 0.5:
        code, printed = play.run("--recover")
        assert code == 0, printed
        play.require_server()
        counts["recovered by --recover"] += 1


def end(play: Play) -> None:
    """What must be true of an iteration that ended."""
    play.require_end()
    runs = {step: play.runs().count(step) for step in STEPS}
    print(f"{time.strftime('%H:%M:%S')} iteration {play.number}: whole; runs {runs}", flush=True)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else 200, given[1] if len(given) > 1 else 0))
