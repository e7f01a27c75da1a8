//! What README says of the code, held against the code.

use tierflow::model::families::FAMILIES;

#[test]
fn the_table_of_families_is_that_of_the_code() {
    let readme = include_str!("../../README.md");
    let (_, behind) = readme.split_once("| family | models | GGUF |\n|---|---|---|\n").expect("a table of families");
    let rows: Vec<&str> = behind.lines().take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<String> = FAMILIES
        .iter()
        .map(|family| {
            let gguf: Vec<String> = family.gguf.iter().map(|name| format!("`{name}`")).collect();
            let gguf = if gguf.is_empty() { "–".to_owned() } else { gguf.join(", ") };
            format!("| `{}` | {} | {gguf} |", family.name, family.models)
        })
        .collect();
    assert_eq!(rows, expected, "README's table should be:\n{}", expected.join("\n"));
}
