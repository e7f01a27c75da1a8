//! Maps with as few entries as possible (`clean_device_map`).

use crate::accelerate::{DeviceKey, DeviceMap};

/// Modules with a common prefix, while a map is cleaned.
struct Group<'a> {
    /// The prefix, without its last dot.
    name: &'a str,
    /// The entry of exactly that name, by its place in the map.
    own: Option<usize>,
    /// The entries below it, by their place in the map.
    below: Vec<usize>,
}

/// Writes all entries below a prefix as one where there are two or more and they share a device; a whole model on one device becomes
/// `{"": device}`. A lone entry keeps its name. Where a prefix has an entry of its own beside those below it, these decide, as upstream.
///
/// The order is that of the first entries that were merged; upstream's differs from run to run.
pub fn clean_device_map(map: &DeviceMap) -> DeviceMap {
    let entries: Vec<(&str, DeviceKey)> = map.iter().collect();
    let mut cleaned: Vec<Option<(&str, DeviceKey)>> = entries.iter().copied().map(Some).collect();
    let mut groups = vec![Group { name: "", own: None, below: (0..entries.len()).collect() }];
    while let Some(group) = groups.pop() {
        match common_device(&entries, &group.below) {
            Some((first, device)) => {
                group.below.iter().for_each(|index| cleaned[*index] = None);
                cleaned[group.own.unwrap_or(first)] = Some((group.name, device));
            }
            None => groups.extend(children(&entries, &group)),
        }
    }
    cleaned.into_iter().flatten().map(|(name, device)| (name.to_owned(), device)).collect()
}

/// The first of the entries and the device of all, where there are two or more and they share it.
fn common_device(entries: &[(&str, DeviceKey)], below: &[usize]) -> Option<(usize, DeviceKey)> {
    let (first, others) = below.split_first()?;
    let device = entries[*first].1;
    (!others.is_empty() && others.iter().all(|index| entries[*index].1 == device)).then_some((*first, device))
}

/// The groups one component further down.
fn children<'a>(entries: &[(&'a str, DeviceKey)], group: &Group<'_>) -> Vec<Group<'a>> {
    let start = if group.name.is_empty() { 0 } else { group.name.len() + 1 };
    let mut places = std::collections::HashMap::new();
    let mut children: Vec<Group<'a>> = Vec::new();
    for index in &group.below {
        let name = entries[*index].0;
        let end = name[start..].find('.').map_or(name.len(), |length| start + length);
        // The empty name is in no group, and neither is one that begins with a dot: upstream never ends there.
        if end == 0 {
            continue;
        }
        let place = *places.entry(&name[..end]).or_insert_with(|| {
            children.push(Group { name: &name[..end], own: None, below: Vec::new() });
            children.len() - 1
        });
        let child = &mut children[place];
        if end == name.len() {
            child.own = Some(*index);
        } else {
            child.below.push(*index);
        }
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_begin_with_a_dot_stay_as_they_are() {
        let json = r#"{".a": 0, ".b": 0, "c.d": "cpu", "c.e": "cpu"}"#;
        let cleaned = clean_device_map(&DeviceMap::from_json(json, "").unwrap());
        assert_eq!(cleaned, DeviceMap::from_json(r#"{".a": 0, ".b": 0, "c": "cpu"}"#, "").unwrap());
    }
}
