//! What this process may use of its machine: the memory that its control group, or the machine, has.
//!
//! Invariant: what cannot be read is no limit; nothing here fails.

use std::fs;
use std::path::Path;

/// Bytes of memory that this process and its neighbours in the container may use together; `None` if it is not known.
#[must_use]
pub fn memory() -> Option<usize> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    memory_of(read)
}

fn memory_of(read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    // `HIERARCHY:CONTROLLERS:PATH`; version 2 has one line without controllers. In a container of its own namespace the
    // path is `/`, and the limit lies at the root of the mount.
    let of_groups = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // Each group above limits those below.
        Path::new(path)
            .ancestors()
            .filter_map(|group| {
                let group = group.strip_prefix("/").unwrap_or(group);
                read(&Path::new(root).join(group).join(file))?
                    .trim()
                    .parse()
                    .ok()
            })
            .min()
    });
    of_groups.chain(machine(&read)).min()
}

/// The memory of the machine: `MemTotal:  16384 kB`.
fn machine(read: &impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_with(files: &[(&str, &str)]) -> Option<usize> {
        memory_of(|path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    const MACHINE: (&str, &str) = ("/proc/meminfo", "MemTotal:       4 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_smallest_limit_of_the_groups_and_the_machine_counts() {
        let group = ("/proc/self/cgroup", "0::/pod/app\n");
        let app = ("/sys/fs/cgroup/pod/app/memory.max", "3000\n");
        let pod = ("/sys/fs/cgroup/pod/memory.max", "2000\n");
        let none = ("/sys/fs/cgroup/pod/app/memory.max", "max\n");
        assert_eq!(memory_with(&[MACHINE]), Some(4096));
        assert_eq!(memory_with(&[MACHINE, group, app]), Some(3000));
        assert_eq!(memory_with(&[MACHINE, group, app, pod]), Some(2000));
        assert_eq!(memory_with(&[MACHINE, group, none]), Some(4096));
    }

    #[test]
    fn limits_in_a_container_s_own_namespace_and_of_version_1_are_found() {
        let own = ("/proc/self/cgroup", "0::/\n");
        let root = ("/sys/fs/cgroup/memory.max", "1000\n");
        assert_eq!(memory_with(&[MACHINE, own, root]), Some(1000));
        let old = ("/proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/x\n");
        let limit = ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "500\n");
        assert_eq!(memory_with(&[MACHINE, old, limit]), Some(500));
    }

    #[test]
    fn what_cannot_be_read_is_no_limit() {
        assert_eq!(memory_with(&[]), None);
        let nonsense = ("/proc/meminfo", "MemTotal: lots\n");
        assert_eq!(memory_with(&[nonsense]), None);
    }
}
