//! What the files say: schema, identity, footer; and the types that all else shares.

pub(crate) mod bad_row;
pub(crate) mod error;
pub(crate) mod footer;
pub(crate) mod identity;
pub(crate) mod options;
pub(crate) mod runs;
pub(crate) mod same_identity;
pub(crate) mod same_tokens;
pub(crate) mod schema;
