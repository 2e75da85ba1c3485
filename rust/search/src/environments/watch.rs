//! Ends child processes, and what they started, when this process is killed.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;

/// A shell that is told which groups run, and kills those that are left when it hears no more: the system closes
/// the pipe of a process that is killed. Signals for the terminal's processes are not for it.
const SCRIPT: &str = "trap '' HUP INT QUIT TERM; groups=' '
while read -r sign group; do
    case $sign in
        +) groups=\"$groups$group \" ;;
        -) case $groups in *\" $group \"*) groups=\"${groups%% $group *} ${groups#* $group }\" ;; esac ;;
    esac
done
for group in $groups; do kill -9 -\"$group\"; done";

/// This process's watcher, and the groups that it watches.
static WATCHER: Mutex<Watcher> = Mutex::new(Watcher { pipe: None, groups: BTreeSet::new() });

struct Watcher {
    pipe: Option<ChildStdin>,
    groups: BTreeSet<i32>,
}

/// Has a process group killed when this process ends before [`forget`].
pub(super) fn watch(group: Pid) -> io::Result<()> {
    let group = group.as_raw_nonzero().get();
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    watcher.groups.insert(group);
    if watcher.tell(&format!("+ {group}\n")).is_ok() {
        return Ok(());
    }
    // There is none yet, or somebody has ended it.
    watcher.pipe = Some(start()?);
    let groups = watcher.groups.clone();
    groups.iter().try_for_each(|group| watcher.tell(&format!("+ {group}\n")))
}

/// Leaves a group alone from now on. It must not be waited for yet: its number could be another group's.
pub(super) fn forget(group: Pid) {
    let group = group.as_raw_nonzero().get();
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    watcher.groups.remove(&group);
    // A watcher that somebody has ended kills nobody.
    let _ = watcher.tell(&format!("- {group}\n"));
}

impl Watcher {
    fn tell(&mut self, lines: &str) -> io::Result<()> {
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        pipe.write_all(lines.as_bytes())
    }
}

fn start() -> io::Result<ChildStdin> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", SCRIPT]).process_group(0).current_dir("/");
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let pipe = shell.spawn()?.stdin.take();
    pipe.ok_or_else(|| io::Error::other("the watcher of processes has no pipe"))
}
