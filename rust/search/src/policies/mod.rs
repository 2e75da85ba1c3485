//! Policies: what proposes tactics.
