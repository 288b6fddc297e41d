//! What the host is and has: its name, processors, memory, and the labels that follow from them.

use std::path::{Path, PathBuf};

use packrun_protocol::control::{Capacity, Slots};
use packrun_protocol::limit;
use packrun_protocol::name::Name;

/// Where an agent's state lies if its user may write there.
const STATE_SYSTEM: &str = "/var/lib/packrun-agent";

/// Where the kernel says how much memory there is.
const MEMINFO: &str = "/proc/meminfo";

/// Where it says how much of it this group of processes may have, in cgroups of version 2 and 1.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The host's name made into one that an agent can have.
///
/// # Errors
/// When nothing of it is left.
pub fn name() -> Result<Name, packrun_protocol::name::NameError> {
    let system = rustix::system::uname();
    name_of(&system.nodename().to_string_lossy())
}

fn name_of(host: &str) -> Result<Name, packrun_protocol::name::NameError> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.chars().map(plain).collect();
    let name: String = name.trim_matches('-').chars().take(limit::NAME_BYTES_MAX).collect();
    if name.is_empty() { "agent".parse() } else { name.parse() }
}

/// What this process may use: processors as the scheduler and the cgroup allow, memory likewise.
#[must_use]
pub fn capacity() -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).clamp(1, limit::SLOTS_MAX);
    let total = std::fs::read_to_string(MEMINFO).ok().and_then(|text| total_memory(&text));
    let limits =
        MEMORY_LIMITS.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    let memory_bytes = total.into_iter().chain(limits).min().unwrap_or(0);
    Capacity { slots: slots(cpus), cpu_millis: cpus.saturating_mul(1000), memory_bytes }
}

/// So many slots, moved into the range.
fn slots(count: u32) -> Slots {
    let within = count.clamp(1, limit::SLOTS_MAX);
    // Within the range nothing is refused, and one slot is.
    Slots::try_from(within).unwrap_or_else(|_| slots(1))
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The labels of every agent on such a host.
#[must_use]
pub fn labels() -> [(String, String); 2] {
    [("os", std::env::consts::OS), ("arch", std::env::consts::ARCH)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// Where an agent of this user keeps its state.
#[must_use]
pub fn state_dir() -> PathBuf {
    let system = Path::new(STATE_SYSTEM);
    if may_write(system) {
        return system.to_owned();
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    data.map_or_else(|| system.to_owned(), |data| data.join("packrun-agent"))
}

/// Whether this user may write into the folder, or make it if it isn't there. Nothing is made: that is for whoever
/// uses it.
fn may_write(folder: &Path) -> bool {
    let access = |path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    let nearest = folder.ancestors().map(access).find(|access| *access != Err(rustix::io::Errno::NOENT));
    nearest.is_some_and(|access| access.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hosts_name_becomes_one_of_an_agent() {
        for (host, name) in [
            ("build-1", "build-1"),
            ("Build.Example.COM", "build-example-com"),
            ("--x--", "x"),
            ("häuser_9", "h-user-9"),
            ("", "agent"),
            ("...", "agent"),
        ] {
            assert_eq!(name_of(host).unwrap().as_str(), name);
        }
        assert_eq!(name_of(&"a".repeat(300)).unwrap().as_str().len(), 63);
    }

    #[test]
    fn a_folder_that_could_be_made_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("a/b");
        assert!(may_write(&wanted) && may_write(folder.path()));
        assert!(!folder.path().join("a").exists());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(!may_write(&folder.path().join("file/b")));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total_memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        let capacity = capacity();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory_bytes > 0);
    }
}
