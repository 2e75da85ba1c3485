//! Ctrl-C stays the host's.

use std::mem::MaybeUninit;
use std::ptr;

/// What the process did about Ctrl-C at some moment.
///
/// Python's `signal` module takes the signal over on its first import where nobody handles it, even
/// in an interpreter that was told not to handle signals.
pub(crate) struct Interrupts {
    former: Option<libc::sigaction>,
}

impl Interrupts {
    /// Notes what is done now.
    pub(crate) fn note() -> Self {
        let mut former = MaybeUninit::uninit();
        // SAFETY: with no new action the call only writes the present one, of which it is given
        // room for one; it is read only if the call says that it was written.
        #[expect(unsafe_code, reason = "the standard library has no signals")]
        let former = unsafe {
            (libc::sigaction(libc::SIGINT, ptr::null(), former.as_mut_ptr()) == 0)
                .then(|| former.assume_init())
        };
        Self { former }
    }

    /// Makes it so again.
    pub(crate) fn restore(&self) {
        let Some(former) = &self.former else { return };
        // SAFETY: the action is one that the system gave, for the same signal, and whoever set it
        // then saw to it that its handler may be called at any time.
        #[expect(unsafe_code, reason = "the standard library has no signals")]
        unsafe {
            libc::sigaction(libc::SIGINT, former, ptr::null_mut());
        }
    }
}
