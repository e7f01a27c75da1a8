//! Memory that control groups grant this process: what its own group, and every group above it, has left. Both versions of the
//! kernel's interface are read, through files that hold no secrets: where one is missing or cannot be parsed, that group limits
//! nothing. Systems without such files have no groups.
//!
//! Files and meanings: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the Linux kernel.

use std::path::{Path, PathBuf};

use super::HostMemory;
use crate::units::Bytes;

/// Version 1 writes "no limit" as the largest multiple of a page; no machine has as much as this.
const NO_LIMIT: u64 = 1 << 60;

/// The memory that all groups of this process allow together; `None` where none limits it.
pub(super) fn memory() -> Option<HostMemory> {
    memory_below(Path::new("/"))
}

/// The same, with the system's files under `root`.
fn memory_below(root: &Path) -> Option<HostMemory> {
    let read = |path: &str| std::fs::read(root.join(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let (own, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let folders = groups(&own, &mounts).into_iter().flat_map(|group| folders_of(root, group));
    folders.filter_map(|(version, folder)| granted(version, &folder)).reduce(HostMemory::and)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Where the folders of a group, and of those above it, are shown.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    mount_point: PathBuf,
    /// From there to the group; empty where the mount shows the group itself, as in a container.
    below: PathBuf,
}

/// The groups that `/proc/self/cgroup` and `/proc/self/mountinfo` name: one for each place where a hierarchy with memory is mounted.
fn groups(own: &str, mounts: &str) -> Vec<Group> {
    let mut found: Vec<Group> = Vec::new();
    for line in mounts.lines() {
        let Some((version, top, mount_point)) = mount(line) else { continue };
        // What is mounted over a mount hides it.
        found.retain(|group| group.mount_point != mount_point);
        let Some(path) = own_path(own, version) else { continue };
        // Where the mount shows another part of the hierarchy, as a container's may, it shows the container's own group.
        let below = path.strip_prefix(&top).map(Path::to_owned).unwrap_or_default();
        found.push(Group { version, mount_point, below });
    }
    found
}

/// Version, root within its hierarchy, and mount point of a hierarchy with memory.
fn mount(line: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (top, mount_point) = (unescaped(place.next()?), unescaped(place.next()?));
    let mut kind = kind.split(' ');
    let version = match (kind.next()?, kind.nth(1)) {
        ("cgroup2", _) => Version::V2,
        ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::V1,
        _ => return None,
    };
    Some((version, top.into(), mount_point.into()))
}

/// The path of the process's own group in a hierarchy of this version.
fn own_path(own: &str, version: Version) -> Option<PathBuf> {
    let mut lines = own.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let is_it = |controllers: &str| match version {
        Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
        Version::V2 => controllers.is_empty(),
    };
    lines.find(|(controllers, _)| is_it(controllers)).map(|(_, path)| path.into())
}

/// mountinfo writes blanks and the like as a backslash and three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code =
            after.get(..3).filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The folders of a group and of all above it that the mount shows; those that are not there are left out.
fn folders_of(root: &Path, group: Group) -> Vec<(Version, PathBuf)> {
    let top = root.join(group.mount_point.strip_prefix("/").unwrap_or(&group.mount_point));
    // A path with ".." leads out of what the mount shows.
    let is_plain = group.below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let below = if is_plain { group.below } else { PathBuf::new() };
    let folders = below.ancestors().map(|part| top.join(part)).filter(|folder| folder.is_dir());
    folders.map(|folder| (group.version, folder)).collect()
}

/// The memory that one group allows: its limit, and how much of that is free if its page cache is dropped.
fn granted(version: Version, folder: &Path) -> Option<HostMemory> {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let number = |name: &str| text(name).trim().parse::<u64>().ok().filter(|value| *value < NO_LIMIT);
    let stat = text("memory.stat");
    let counted = |name: &str| field(&stat, name);
    let (limits, used) = match version {
        // The last is the least limit of all groups above, which a container does not see.
        Version::V1 => {
            let above = counted("hierarchical_memory_limit").filter(|value| *value < NO_LIMIT);
            ([number("memory.limit_in_bytes"), above], number("memory.usage_in_bytes"))
        }
        Version::V2 => ([number("memory.max"), number("memory.high")], number("memory.current")),
    };
    let limit = limits.into_iter().flatten().min()?;
    // Version 1 counts a group's own pages, and beside them those of the groups below as well.
    let cached = |kind: &str| counted(&format!("total_{kind}_file")).or_else(|| counted(&format!("{kind}_file"))).unwrap_or(0);
    let held = used.unwrap_or(0).saturating_sub(cached("inactive").saturating_add(cached("active")));
    Some(HostMemory { total: Bytes(limit), available: Bytes(limit.saturating_sub(held)) })
}

/// The value of `name` in a table of names and values.
fn field(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_MOUNT: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
    const V2_MOUNT: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    /// The memory that is allowed where these files (paths and texts) are the only ones.
    fn with_files(files: &[(&str, &str)]) -> Option<HostMemory> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        memory_below(root.path())
    }

    fn mib(total: u64, available: u64) -> Option<HostMemory> {
        Some(HostMemory { total: Bytes::mib(total), available: Bytes::mib(available) })
    }

    fn text_of(mib: u64) -> String {
        format!("{}\n", mib << 20)
    }

    #[test]
    fn the_least_of_nested_groups_counts_and_page_cache_is_free() {
        let cache = format!("cache 1\ninactive_file 5\ntotal_inactive_file {}\ntotal_active_file {}\n", 40 << 20, 10 << 20);
        let nested = [
            ("proc/self/cgroup", "5:cpu:/\n4:memory:/job/step\n0::/\n"),
            ("proc/self/mountinfo", V1_MOUNT),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", &text_of(9000)),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", &text_of(200)),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", &text_of(150)),
            ("sys/fs/cgroup/memory/job/memory.stat", &cache),
            ("sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", &text_of(120)),
            ("sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", &text_of(10)),
        ];
        assert_eq!(with_files(&nested), mib(120, 100), "the limit of the inner group, and what the outer has left");
        assert_eq!(with_files(&nested[..4]), None, "no group limits anything");
    }

    #[test]
    fn version_2_reads_max_and_high_and_its_own_names() {
        let stat = format!("anon 5\nactive_file {}\ninactive_file {}\n", 100 << 20, 300 << 20);
        let files = [
            ("proc/self/cgroup", "0::/user.slice/run.scope\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.high", &text_of(800)),
            ("sys/fs/cgroup/user.slice/memory.current", &text_of(700)),
            ("sys/fs/cgroup/user.slice/run.scope/memory.max", &text_of(1000)),
            ("sys/fs/cgroup/user.slice/run.scope/memory.high", "max\n"),
            ("sys/fs/cgroup/user.slice/run.scope/memory.current", &text_of(700)),
            ("sys/fs/cgroup/user.slice/run.scope/memory.stat", &stat),
        ];
        assert_eq!(with_files(&files), mib(800, 100));
        assert_eq!(with_files(&files[..3]), None);
        let inner: Vec<_> = files.iter().filter(|(path, _)| !path.contains("user.slice/memory")).copied().collect();
        assert_eq!(with_files(&inner), mib(1000, 700));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let own = "4:memory:/docker/abc\n0::/\n";
        let bound = V1_MOUNT.replace(" / /sys", " /docker/abc /sys");
        let stat = format!("hierarchical_memory_limit {}\n", 600 << 20);
        let limits = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", text_of(1000)),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", text_of(100)),
            ("sys/fs/cgroup/memory/memory.stat", stat),
        ];
        // Bound by itself, over the whole hierarchy, and into a container whose path is reported differently.
        for (own, mounts) in [
            (own, bound.clone()),
            (own, format!("{V1_MOUNT}{bound}")),
            (own, V1_MOUNT.to_owned()),
            ("4:memory:/../../elsewhere\n", V1_MOUNT.to_owned()),
            ("4:memory:/other/name\n", bound),
        ] {
            let mut files = vec![("proc/self/cgroup", own), ("proc/self/mountinfo", &*mounts)];
            files.extend(limits.iter().map(|(path, text)| (*path, &**text)));
            assert_eq!(with_files(&files), mib(600, 500), "{own} {mounts}");
        }
    }

    #[test]
    fn both_versions_at_once_and_odd_files_are_read() {
        let files = [
            ("proc/self/cgroup", "4:hugetlb,memory:/a b\n0::/c\nnonsense\n"),
            (
                "proc/self/mountinfo",
                "x\n35 31 0:32 / /sys/m\\040v1 rw - cgroup cgroup rw,memory\n36 31 0:33 / /sys/v2 rw - cgroup2 none rw\n",
            ),
            ("sys/m v1/a b/memory.limit_in_bytes", &text_of(300)),
            ("sys/m v1/a b/memory.usage_in_bytes", "many"),
            ("sys/v2/c/memory.max", &text_of(200)),
            ("sys/v2/c/memory.current", &text_of(500)),
        ];
        assert_eq!(with_files(&files), mib(200, 0), "more is used than is granted");
        assert_eq!(with_files(&files[..4]), mib(300, 300));
        assert_eq!(with_files(&[]), None);
    }
}
