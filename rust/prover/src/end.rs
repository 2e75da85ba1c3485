//! The end of a process in which Python runs.

use signal_hook::low_level;

/// Ends the process without the clean-up of C++ libraries.
///
/// torch's threads live for as long as the process and would be pulled down under it; a run that had
/// done its work well once ended by an abort of the allocator. What is to be kept has to be written
/// out before.
pub(crate) fn at_once(code: u8) -> ! {
    low_level::exit(code.into())
}
