//! Where a server is, and who asks.

use reqwest::Url;
use reqwest::header::HeaderValue;

/// A server's address without a slash at its end.
///
/// # Arguments
/// * `given`: What the user gave.
/// * `example`: Such an address, for the hint.
/// * `secret`: How a secret is given instead, for the hint.
///
/// # Errors
/// What is wrong with it: it is no URL of HTTP, holds a password, which messages would show, or has
/// something behind its path.
pub fn base_url(given: &str, example: &str, secret: &str) -> Result<String, String> {
    // It may not parse because of what is behind a password.
    let shown = if given.contains('@') { "it".to_owned() } else { format!("{given:?}") };
    let url = Url::parse(given)
        .map_err(|error| format!("{shown} is no URL ({error})\nhint: such as {example}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "holds a user or a password, which messages would show";
        return Err(format!("{reason}\nhint: {secret}"));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{shown} is no http:// or https:// URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{shown} has something behind its path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The header with a bearer token, which says of itself that it is secret. Space around the token does
/// not count.
///
/// # Errors
/// What is wrong with the token; the message does not show it.
pub fn bearer(token: &str) -> Result<HeaderValue, &'static str> {
    let token = token.trim();
    if token.is_empty() {
        return Err("is empty");
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| "has characters that no header may have")?;
    value.set_sensitive(true);
    Ok(value)
}
