//! Printed forms of states: conversion where they enter, and what a cache holds of them.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use ebm_cache::{Cache, Identity};
use ebm_search::state_format::{
    Overlap, STATE_FORMAT_FIELD, StateFormat, StateFormatError, convert, overlap, source_format,
};
use serde_json::{Value, json};

const SAY_IT: &str = "hint: say it with --states-in lean, pantograph or burnqed";
const PREVIEW: usize = 60;

/// Which printed form the encoder takes, and which the states are in.
#[derive(Debug, Args)]
pub(crate) struct FormatArguments {
    /// Printed form of the states, part of the encoder's identity: as-given (texts as they are), lean,
    /// pantograph or burnqed. States are converted to it.
    #[arg(long, value_name = "FORMAT", default_value = StateFormat::default().option(), hide_default_value = true)]
    state_format: StateFormat,
    /// Printed form that the states are in, for --state-format; by default what the texts show, if it makes
    /// no difference what they do not show.
    #[arg(long, value_name = "FORMAT", requires = "state_format", value_parser = printed)]
    states_in: Option<StateFormat>,
}

/// A conversion of states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversion {
    from: StateFormat,
    to: StateFormat,
}

impl FormatArguments {
    /// What the encoder's option is; `None` for texts as they are.
    pub(crate) fn option(&self) -> Option<&'static str> {
        (self.state_format != StateFormat::AsGiven).then(|| self.state_format.option())
    }

    /// The form that the states are in, if it was said.
    pub(crate) const fn states_in(&self) -> Option<StateFormat> {
        self.states_in
    }

    /// The conversion of these states.
    pub(crate) fn conversion<'a>(
        &self,
        states: impl Iterator<Item = &'a str> + Clone,
    ) -> anyhow::Result<Conversion> {
        let to = self.state_format;
        if to == StateFormat::AsGiven && self.states_in.is_some() {
            bail!("--states-in has no meaning without --state-format");
        }
        match source_format(self.states_in, to, states) {
            Ok(from) => Ok(Conversion { from, to }),
            Err(error @ StateFormatError::Ambiguous { .. }) => bail!("{error}\n{SAY_IT}"),
            Err(error) => Err(error.into()),
        }
    }

    /// The conversion of states that are not known yet, so that what they show cannot be asked.
    pub(crate) fn conversion_unseen(&self) -> anyhow::Result<Conversion> {
        if self.state_format != StateFormat::AsGiven && self.states_in.is_none() {
            bail!(
                "--state-format {}: the states come one by one, so their form cannot be told from \
                 them\n{SAY_IT}",
                self.state_format.option()
            );
        }
        self.conversion(std::iter::empty())
    }
}

impl Conversion {
    /// A state in the encoder's form.
    pub(crate) fn apply(self, state: &mut String) -> anyhow::Result<()> {
        if self.to == StateFormat::AsGiven {
            return Ok(());
        }
        let converted = convert(state, self.from, self.to).with_context(|| {
            let preview: String = state.chars().take(PREVIEW).collect();
            format!("state {preview:?}: cannot be converted from {} to {}", self.from, self.to)
        })?;
        if converted != *state {
            *state = converted.into_owned();
        }
        Ok(())
    }
}

fn printed(name: &str) -> Result<StateFormat, String> {
    match name.parse() {
        Ok(StateFormat::AsGiven) | Err(_) => {
            Err(format!("{name:?}: expected lean, pantograph or burnqed"))
        }
        Ok(format) => Ok(format),
    }
}

/// The form that an identity says its states are in.
pub(crate) fn format_of(identity: Option<&Identity>) -> anyhow::Result<StateFormat> {
    let field = identity.and_then(|identity| identity.extra.get(STATE_FORMAT_FIELD));
    let name = field.map(|value| value.as_str().unwrap_or_default());
    Ok(name.map(str::parse).transpose()?.unwrap_or_default())
}

/// Lines that say how many of some states a cache holds, and what to do where converting finds more.
pub(crate) fn overlap_lines(
    states: &[&str],
    from: Option<StateFormat>,
    cache: &Cache,
) -> anyhow::Result<(Overlap, Vec<String>)> {
    let held = format_of(cache.identity())
        .with_context(|| format!("{}: its identity", cache.path().display()))?;
    let found = overlap(states, from, |state| cache.position(state).is_some());
    let mut lines = vec![found.to_string()];
    lines.extend(found.hint(&name(cache.path()), held));
    Ok((found, lines))
}

/// The counts of an overlap, as the commands with `--json` print them.
pub(crate) fn overlap_json(found: &Overlap) -> Value {
    json!({
        "states": found.states,
        "found": found.found,
        "converted_to": found.converted.map(|converted| converted.to.name()),
        "found_converted": found.converted.map(|converted| converted.found),
    })
}

fn name(path: &Path) -> String {
    path.display().to_string()
}
