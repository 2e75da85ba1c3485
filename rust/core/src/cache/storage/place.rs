//! Paths and URLs told apart.

use std::path::{Path, PathBuf};

use url::Url;

use super::objects::Object;
use crate::cache::error::{CacheError, CacheResult};

/// Where a path leads.
#[derive(Debug)]
pub(in crate::cache) enum Place {
    /// To this machine.
    Local(PathBuf),
    /// To an object store.
    Object(Object),
}

/// Tells where a path leads.
///
/// # Errors
/// [`CacheError::Argument`] for a URL of another scheme, or one without a bucket.
pub(in crate::cache) fn place_of(path: &Path) -> CacheResult<Place> {
    let Some((scheme, _)) = path.to_str().and_then(|text| text.split_once(':')) else {
        return Ok(Place::Local(path.to_owned()));
    };
    let refuse = |why: &str| CacheError::Argument(format!("{}: {why}", path.display()));
    let text = path.to_string_lossy();
    if !text[scheme.len()..].starts_with("://") {
        // What pathlib makes of a URL.
        if matches!(scheme, "s3" | "gs") && text[scheme.len()..].starts_with(":/") {
            return Err(refuse("a URL has two slashes; give it as a str, not as a Path"));
        }
        return Ok(Place::Local(path.to_owned()));
    }
    match scheme {
        // Keys are taken as they are, `%`, `#` and spaces too, as by the stores' own tools.
        "s3" | "gs" => {
            let rest = &text[scheme.len() + 3..];
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            Ok(Place::Object(Object::at(path, scheme, bucket, key)?))
        }
        "file" => {
            let url = Url::parse(&text).map_err(|error| refuse(&format!("not a URL: {error}")))?;
            let local = url.to_file_path();
            local.map(Place::Local).map_err(|()| refuse("not the URL of a file of this machine"))
        }
        _ => Err(refuse("expected a path, or a URL of s3://, gs:// or file://")),
    }
}

/// The path of a file on this machine, and URLs of objects as they are; without slashes at the end.
///
/// # Errors
/// [`CacheError::Argument`] for a bucket: beside it there is no room for what an output has beside it.
pub(in crate::cache) fn output_path(path: &Path) -> CacheResult<PathBuf> {
    match place_of(path)? {
        Place::Local(local) => Ok(local),
        Place::Object(object) if object.is_bucket() => {
            let message = "is a bucket; name a file or a folder in it";
            Err(CacheError::Argument(format!("{}: {message}", path.display())))
        }
        Place::Object(_) => {
            Ok(PathBuf::from(path.to_string_lossy().trim_end_matches('/').to_owned()))
        }
    }
}
