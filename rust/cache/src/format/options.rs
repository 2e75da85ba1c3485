//! How a cache is opened.

/// Whether opening a cache checks its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checks {
    /// Bad rows are an error.
    #[default]
    Strict,
    /// Rows are taken as they are; of one state's embeddings the newest wins.
    Lenient,
}

/// Whether the checksums of pages are verified when they are read.
///
/// Without, a flipped bit can come out as another value, or as a damaged file where it hits a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums {
    /// A page that is not what was written is an error.
    #[default]
    Verify,
    /// Taken as they are: for files that were verified before, or that a file system verifies.
    Trust,
}

/// How a cache is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Whether rows are checked.
    pub checks: Checks,
    /// Whether checksums of embeddings are verified.
    pub checksums: Checksums,
}

impl OpenOptions {
    /// Sets whether rows are checked.
    #[must_use]
    pub fn with_checks(self, checks: Checks) -> Self {
        Self { checks, ..self }
    }

    /// Sets whether checksums of embeddings are verified.
    #[must_use]
    pub fn with_checksums(self, checksums: Checksums) -> Self {
        Self { checksums, ..self }
    }
}

impl From<Checks> for OpenOptions {
    fn from(checks: Checks) -> Self {
        Self { checks, ..Self::default() }
    }
}

/// Where a cache's rows are to be while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OpenMode {
    /// In memory if they take at most half of what is free, or if that cannot be told; else mapped.
    #[default]
    Auto,
    /// In one buffer of this process: rows are lent as `&[f32]`.
    InMemory,
    /// In the files, shared with other processes: rows are copied out.
    Mapped,
}
