//! The printed forms of a proof state.
//!
//! One goal has several texts: Lean's own printer merges variables of one type (`a b : ℕ`), PyPantograph
//! prints each on its own line, and others drop the names of goals and the values of variables. Embeddings
//! belong to texts, so a cache made from one form misses in a search that prints another. A [`StateFormat`]
//! other than [`StateFormat::AsGiven`] is part of an encoder's identity.
//!
//! ```
//! use ebm_search::state_format::{StateFormat, convert, detect};
//!
//! let printed = "case succ\na b : ℕ\nc : ℕ := a + b\n⊢ a + b = c";
//! assert_eq!(detect(printed), [StateFormat::Lean]);
//! let pantograph = convert(printed, StateFormat::Lean, StateFormat::Pantograph)?;
//! assert_eq!(pantograph, "case succ\na : ℕ\nb : ℕ\nc : ℕ := a + b\n⊢ a + b = c");
//! let burnqed = convert(&pantograph, StateFormat::Pantograph, StateFormat::Burnqed)?;
//! assert_eq!(burnqed, "a : ℕ\nb : ℕ\nc : ℕ\n⊢ a + b = c");
//! // What was dropped is not made up.
//! assert!(convert(&burnqed, StateFormat::Burnqed, StateFormat::Lean).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod convert;
mod goals;
mod overlap;
mod source;
mod values;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use convert::{convert, detect};
pub use overlap::{Converted, Overlap, overlap};
pub use source::source_format;

/// The field of an encoder's identity that holds the format; absent for [`StateFormat::AsGiven`].
pub const STATE_FORMAT_FIELD: &str = "state_format";

/// A printed form of proof states, with its version.
///
/// In JSON and in an identity it is its name with the version, such as `lean-1`; parsed, it may also be
/// without. A change of what a format prints raises its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum StateFormat {
    /// Texts are taken as they are, and are of no known form.
    #[default]
    AsGiven,
    /// Lean's own printer: neighbours of one type share a line (`a b : T`), `case NAME`, values.
    Lean,
    /// PyPantograph's: `case NAME`, one line for each variable (`name : type := value`), the target.
    Pantograph,
    /// BurnQED's rebuild: as PyPantograph's without `case NAME` and without values.
    Burnqed,
}

impl StateFormat {
    /// The forms that states are printed in: all but [`StateFormat::AsGiven`].
    pub const PRINTED: [Self; 3] = [Self::Lean, Self::Pantograph, Self::Burnqed];

    /// The name with the version, as in an identity.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsGiven => "as-given",
            Self::Lean => "lean-1",
            Self::Pantograph => "pantograph-1",
            Self::Burnqed => "burnqed-1",
        }
    }

    /// The name without the version, as options take it.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::AsGiven => "as-given",
            Self::Lean => "lean",
            Self::Pantograph => "pantograph",
            Self::Burnqed => "burnqed",
        }
    }
}

impl fmt::Display for StateFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for StateFormat {
    type Err = StateFormatError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::AsGiven]
            .into_iter()
            .chain(Self::PRINTED)
            .find(|format| name == format.name() || name == format.option())
            .ok_or_else(|| StateFormatError::Unknown { name: name.to_owned() })
    }
}

impl TryFrom<String> for StateFormat {
    type Error = StateFormatError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<StateFormat> for String {
    fn from(format: StateFormat) -> Self {
        format.name().to_owned()
    }
}

/// Why a state cannot be converted. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateFormatError {
    /// There is no format of this name, or not in this version.
    #[error("state format {name:?}: expected as-given, lean, pantograph or burnqed")]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The text is no proof state: `no goals`, a term, prose. Goals of `conv` mode count as such too.
    #[error("not a proof state: no line begins with ⊢")]
    NoGoal,
    /// Variables or a `case` line without a target.
    #[error("line {line}: a goal begins here that has no line with ⊢")]
    NoTarget {
        /// Where the goal begins.
        line: usize,
    },
    /// A line that belongs to no variable and no target.
    #[error("line {line}: neither a variable nor a target")]
    Stray {
        /// The line.
        line: usize,
    },
    /// A goal that follows another without an empty line between them.
    #[error(
        "line {line}: a goal begins here without an empty line before it\nhint: goals of a state are separated by an empty line"
    )]
    Unseparated {
        /// The line.
        line: usize,
    },
    /// Where a variable's type ends and its value begins cannot be told.
    #[error("line {line}: cannot tell where the variable's type ends and its value begins")]
    UnclearValue {
        /// Where the variable begins.
        line: usize,
    },
    /// The text has what the format that it is said to be in does not print.
    #[error("line {line}: has {what}, which {format} does not print")]
    NotIn {
        /// The format that the text was said to be in.
        format: StateFormat,
        /// The line.
        line: usize,
        /// What it has.
        what: &'static str,
    },
    /// The format that the text is in has dropped what the wanted one prints.
    #[error("{from} holds neither names of goals nor values, which {to} prints")]
    Dropped {
        /// The format that the text is in.
        from: StateFormat,
        /// The wanted one.
        to: StateFormat,
    },
    /// A format that says nothing about the text, as the one to convert from.
    #[error("as-given does not say which form the states are in, so they cannot be converted")]
    NoSource,
    /// The texts may be in several formats, from which they would be converted differently.
    #[error(
        "cannot tell which form the states are in, and to {to} it makes a difference: {state:?} may be {formats}"
    )]
    Ambiguous {
        /// The wanted format.
        to: StateFormat,
        /// A state that shows it, shortened.
        state: String,
        /// The formats that it may be in.
        formats: String,
    },
    /// One line each for very many variables of a very long type.
    #[error("would be longer than {limit} bytes: too many variables share a long type")]
    TooLong {
        /// The most that is allowed for a text of this length.
        limit: usize,
    },
}
