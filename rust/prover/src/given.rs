//! Which options stand on the command line.

use std::collections::BTreeSet;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// The options that were given, and not filled in by their defaults.
#[derive(Debug, Default)]
pub(crate) struct Given(BTreeSet<String>);

impl Given {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let ids = matches.ids().map(clap::Id::as_str).filter(given);
        Self(ids.map(|id| format!("--{}", id.replace('_', "-"))).collect())
    }

    /// Whether an option was given: `--max-length`.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.0.contains(option)
    }
}
