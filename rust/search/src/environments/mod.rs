//! Environments: what applies tactics.
