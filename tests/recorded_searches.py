"""Searches made up for tests, whose embeddings tell how far each state is from a proof."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("theorem_name", pa.string()),
        ("state_id", pa.uint64()),
        ("state_pp", pa.string()),
        ("tactic_applied", pa.string()),
        ("parent_state_id", pa.uint64()),
        ("label", pa.string()),
        ("remaining_depth", pa.int32()),
        ("llm_log_prob", pa.float64()),
        ("is_proof_complete", pa.bool_()),
    ]
)


def row(theorem, state_id, state, parent=None, *, finished=False, label="unknown", **more):
    """One row of a trajectory file."""
    return {
        "theorem_name": theorem,
        "state_id": state_id,
        "state_pp": state,
        "tactic_applied": "" if parent is None else f"tactic {state_id}",
        "parent_state_id": parent,
        "label": label,
        "remaining_depth": -1,
        "llm_log_prob": 0.0,
        "is_proof_complete": finished,
    } | more


def write_rows(path, rows):
    """Writes a trajectory file."""
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def search(theorem, random, *, nodes=24, depth=6, solved=True):
    """Rows of one search: a proof of `depth` steps in a random tree, and dead ends around it."""
    rows = [row(theorem, 0, f"{theorem} root\n⊢ goal")]
    spine = [0]
    for step in range(1, depth):
        rows.append(row(theorem, step, f"{theorem} spine {step}\n⊢ goal", spine[-1]))
        spine.append(step)
    number = depth
    if solved:
        rows.append(row(theorem, number, "", spine[-1], finished=True, label="positive"))
        number += 1
    dead: list[int] = []
    for place in range(nodes):  # first one beside each step of the proof, then anywhere
        parent = spine[place] if place < depth - 1 else int(random.choice([*spine, *dead]))
        rows.append(row(theorem, number, f"{theorem} dead {number}\n⊢ goal", parent))
        dead.append(number)
        number += 1
    for one in rows:
        one["llm_log_prob"] = float(-random.random())
    return rows


def searches(count=12, seed=0, **changes):
    """Rows of some searches."""
    random = np.random.default_rng(seed)
    return [r for n in range(count) for r in search(f"t{n}", random, **changes)]


def embeddings(rows, dim=8, seed=0, noise=0.3):
    """Distinct states, and rows whose first value falls towards the proof: float32 `[n, dim]`.

    States of the spine have low first values, the lower the nearer to the proof; dead ends high
    ones. Everything else is noise.
    """
    states = [*dict.fromkeys(r["state_pp"] for r in rows if r["state_pp"])]
    random = np.random.default_rng(seed)
    made = random.standard_normal((len(states), dim)).astype(np.float32)
    for number, state in enumerate(states):
        words = state.split()
        target = 5.0 if "root" in words else 5.0 - int(words[2]) if "spine" in words else 6.0
        made[number, 0] = target + noise * made[number, 0] + 5.0
    return states, made
