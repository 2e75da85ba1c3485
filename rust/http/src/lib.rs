//! Requests to one HTTP server, sent again where that may help.
//!
//! ```
//! use ebm_http::{Client, Options, RequestThread, base_url};
//!
//! # #[cfg(feature = "test-util")] {
//! # use ebm_http::test_util::{Reply, Server};
//! # let server = Server::start(|_| Reply::json(200, &serde_json::json!({"status": "ready"})));
//! # let url = server.url();
//! let client = Client::new(base_url(&url, "http://127.0.0.1:8000", "use a header")?, None, Options::default())?;
//! let thread = RequestThread::start("requests").map_err(|error| error.to_string())?;
//! let url = client.url("health");
//! let reply = thread.handle().ok_or("forked")?.block_on(async {
//!     client.send(&url, || client.get(&url), 1 << 20).await
//! });
//! assert_eq!(reply.map_err(|failure| format!("{failure:?}"))?.body, b"{\"status\":\"ready\"}");
//! # }
//! # Ok::<(), String>(())
//! ```

mod address;
mod client;
mod failure;
mod options;
#[cfg(feature = "test-util")]
pub mod test_util;
mod thread;

pub use self::address::{base_url, bearer};
pub use self::client::{Client, Reply};
pub use self::failure::{Failure, message_of};
pub use self::options::Options;
pub use self::thread::RequestThread;
pub use reqwest;
