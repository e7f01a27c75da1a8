//! Holds the borders that `ARCHITECTURE.md` draws: reads its import table, then every file under `src/`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    may_import: BTreeSet<String>,
    may_name_wgpu: bool,
}

type Table = BTreeMap<String, Row>;

#[test]
fn the_code_keeps_to_the_import_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = read_table(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    assert!(table.len() >= 15, "the table under `Who may import whom` could not be read: {table:?}");
    let mut violations = Vec::new();
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    assert!(files.len() > 5, "no files under src/");
    for path in files {
        let name = path.strip_prefix(root.join("src")).unwrap().to_string_lossy().replace('\\', "/");
        violations.extend(check_file(&name, &fs::read_to_string(&path).unwrap(), &table));
    }
    assert!(violations.is_empty(), "ARCHITECTURE.md forbids:\n{}", violations.join("\n"));
}

/// Options of the program are the program's: the library names settings ([`tierflow::error::Setting`]), and the program puts in the words.
#[test]
fn the_library_knows_no_option_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut named = Vec::new();
    for path in files {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        if !name.starts_with("cli") && name != "main.rs" {
            let options = options_in(&fs::read_to_string(&path).unwrap());
            named.extend(options.into_iter().map(|(line, text)| format!("src/{name}:{line}: {text}")));
        }
    }
    assert!(named.is_empty(), "these texts name options of the program:\n{}", named.join("\n"));
}

/// Options of other programs.
const OF_OTHERS: [&str; 1] = ["ulimit -"];

/// The texts of a file, by their lines, that name an option or a command of the program. Tests at its end are left out.
fn options_in(source: &str) -> Vec<(usize, String)> {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let is_start = |before: Option<char>| before.is_none_or(|before| " (`'".contains(before));
    let names_option = |text: &str| {
        let own = OF_OTHERS.iter().fold(text.to_owned(), |text, other| text.replace(other, ""));
        let long = own
            .match_indices("--")
            .any(|(at, _)| is_start(own[..at].chars().next_back()) && own[at + 2..].starts_with(|next: char| next.is_ascii_lowercase()));
        let short = own.match_indices('-').any(|(at, _)| {
            let letters = own[at + 1..].chars().take_while(char::is_ascii_alphabetic).count();
            let after = own[at + 1..].chars().nth(letters);
            let ends = after.is_none_or(|after| " ),;:`'".contains(after));
            is_start(own[..at].chars().next_back()) && (1..=3).contains(&letters) && ends
        });
        long || short || own.contains("`tierflow ")
    };
    texts_of(source).into_iter().filter(|(_, text)| names_option(text)).collect()
}

/// The text literals of a source, with the lines in which they begin.
fn texts_of(source: &str) -> Vec<(usize, String)> {
    let mut texts = Vec::new();
    let mut rest = source;
    let line_of = |rest: &str| source[..source.len() - rest.len()].matches('\n').count() + 1;
    while let Some(letter) = rest.chars().next() {
        let (_, after) = rest.split_at(letter.len_utf8());
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if let Some(after_char) = ["'\"'", "'\\\"'"].iter().find_map(|quote| rest.strip_prefix(quote)) {
            rest = after_char;
        } else if letter == 'r' && after.trim_start_matches('#').starts_with('"') {
            let hashes = &after[..after.len() - after.trim_start_matches('#').len()];
            let text = &after[hashes.len() + 1..];
            let end = text.find(&format!("\"{hashes}")).unwrap_or(text.len());
            texts.push((line_of(rest), text[..end].to_owned()));
            rest = text.get(end + 1 + hashes.len()..).unwrap_or_default();
        } else if letter == '"' {
            let mut escaped = false;
            let end = after.find(|letter: char| {
                let is_end = letter == '"' && !escaped;
                escaped = letter == '\\' && !escaped;
                is_end
            });
            let end = end.unwrap_or(after.len());
            texts.push((line_of(rest), after[..end].to_owned()));
            rest = after.get(end + 1..).unwrap_or_default();
        } else {
            rest = after;
        }
    }
    texts
}

/// Rows of the form `| `module` | … | `a` `b` | yes |`.
fn read_table(document: &str) -> Table {
    let section = document.split("## Who may import whom").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut table = Table::new();
    for line in section.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [module, _, imports, wgpu] = cells.as_slice() else { continue };
        let Some(module) = module.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else { continue };
        let may_import = imports.split_whitespace().map(|name| name.trim_matches('`').to_owned()).collect();
        table.insert(module.to_owned(), Row { may_import, may_name_wgpu: *wgpu == "yes" });
    }
    table
}

fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// What in the file `name` (below `src/`) the table forbids, as `src/file:line: what`.
fn check_file(name: &str, source: &str, table: &Table) -> Vec<String> {
    let code = code_of(source);
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let module = name.split(['/', '.']).next().unwrap_or_default();
    let mut violations = Vec::new();
    let mut report = |at: usize, what: String| violations.push(format!("src/{name}:{}: {what}", line_of(at)));
    if !matches!(module, "lib" | "main" | "platform")
        && !name.starts_with("host/simd/")
        && let Some((at, _)) = code.match_indices("target_").find(|(at, _)| code[line_start(&code, *at)..*at].contains("cfg"))
    {
        report(at, "cfg(target_…) outside src/platform/ and src/host/simd/".into());
    }
    if matches!(module, "lib" | "main") {
        return violations;
    }
    let Some(row) = table.get(module) else {
        report(0, format!("the module `{module}` has no row in the table"));
        return violations;
    };
    for (at, imported) in imports_of(&code) {
        if imported != module && table.contains_key(&imported) && !row.may_import.contains(&imported) {
            report(at, format!("`{module}` may not import `{imported}`"));
        }
    }
    if !row.may_name_wgpu {
        for (at, _) in code.match_indices("wgpu").filter(|(at, _)| is_path_start(&code, *at, "wgpu")) {
            report(at, format!("`{module}` may not name wgpu"));
        }
    }
    violations
}

fn line_start(code: &str, at: usize) -> usize {
    code[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Whether `name` at `at` is the crate: `wgpu::…`, `use wgpu;`, not `my_wgpu::` nor `wgpu_limits`.
fn is_path_start(code: &str, at: usize, name: &str) -> bool {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let before = code[..at].chars().next_back();
    let after = &code[at + name.len()..];
    let is_used = code[..at].ends_with("use ") && after.starts_with([';', ' ']);
    !before.is_some_and(is_name) && !code[..at].ends_with("crate::") && (after.starts_with("::") || is_used)
}

/// The modules after each `crate::`, also in groups over several lines.
fn imports_of(code: &str) -> Vec<(usize, String)> {
    let mut imports = Vec::new();
    for (at, matched) in code.match_indices("crate::") {
        let rest = &code[at + matched.len()..];
        if !rest.starts_with('{') {
            imports.push((at, leading_name(rest)));
            continue;
        }
        let mut depth = 0;
        let mut expects_name = false;
        for (offset, letter) in rest.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (letter == ',' || letter == '{') {
                expects_name = true;
            } else if expects_name && !letter.is_whitespace() {
                imports.push((at + matched.len() + offset, leading_name(&rest[offset..])));
                expects_name = false;
            }
        }
    }
    imports
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The file without comments, texts, and the tests at its end; lines keep their numbers.
fn code_of(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut code = String::with_capacity(source.len());
    for line in source.lines() {
        let (mut in_text, mut escaped) = (false, false);
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            if !in_text && letter == '/' && letters.peek() == Some(&'/') {
                break;
            }
            if !in_text && letter == '\'' && letters.peek() == Some(&'"') {
                // The character '"' opens no text.
                letters.next();
                continue;
            }
            if letter == '"' && !escaped {
                in_text = !in_text;
            } else if !in_text {
                code.push(letter);
            }
            escaped = in_text && letter == '\\' && !escaped;
        }
        code.push('\n');
    }
    code
}

mod checker {
    use super::*;

    fn check(name: &str, source: &str) -> Vec<String> {
        let document = "## Who may import whom\n\n| module | holds | may import | wgpu |\n|---|---|---|---|\n\
                        | `plan` | x | `units` `weights` | no |\n| `gpu` | x | `units` | yes |\n\
                        | `weights` | x | | no |\n| `units` | x | | no |\n\n## Next\n| `cli` | x | | no |\n";
        check_file(name, source, &read_table(document))
    }

    #[test]
    fn planted_imports_are_reported_with_file_and_line() {
        let source =
            "//! crate::gpu\nuse crate::units::Bytes;\nuse crate::{\n    units,\n    gpu::{Gpu, Other},\n};\nfn f() { crate::gpu::g() }\n";
        assert_eq!(
            check("plan/place.rs", source),
            ["src/plan/place.rs:5: `plan` may not import `gpu`", "src/plan/place.rs:7: `plan` may not import `gpu`"]
        );
        assert!(check("gpu/mod.rs", "use crate::gpu::x;\nuse crate::units::Bytes;").is_empty());
    }

    #[test]
    fn texts_comments_and_tests_are_not_code() {
        let source = "// use crate::gpu;\nlet a = \"crate::gpu // \\\" wgpu::\";\nlet b = '\"'; /// wgpu::Device\n#[cfg(test)]\nmod tests { use crate::gpu; }";
        assert!(check("plan.rs", source).is_empty());
    }

    #[test]
    fn wgpu_and_target_switches_are_kept_in_their_places() {
        assert_eq!(check("plan.rs", "\nfn f(device: &wgpu::Device) {}"), ["src/plan.rs:2: `plan` may not name wgpu"]);
        assert_eq!(check("plan.rs", "use wgpu;"), ["src/plan.rs:1: `plan` may not name wgpu"]);
        assert!(check("gpu.rs", "use wgpu::Device;").is_empty());
        assert_eq!(
            check("gpu.rs", "#[cfg(not(target_arch = \"wasm32\"))]"),
            ["src/gpu.rs:1: cfg(target_…) outside src/platform/ and src/host/simd/"]
        );
        assert!(check("lib.rs", "#[cfg(target_arch = \"wasm32\")]\nuse crate::gpu;").is_empty());
    }

    #[test]
    fn options_in_texts_are_found_and_nothing_else() {
        let source = "// use --no\nlet a = \"use --io\n pread\";\nlet b = '\"'; let c = r#\"lower \"-c\" (-ub)\"#;\n\
                      let d = \"x \\\" -ngl\"; let e = \"`tierflow devices`\";\nlet ok = [\"a-b --- 1 -2\", \"ulimit -u\", \"non-zero\"];\n\
                      #[cfg(test)]\nmod tests { let f = \"--io\"; }";
        let lines: Vec<usize> = options_in(source).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 4, 5, 5]);
    }

    #[test]
    fn a_module_without_a_row_is_reported() {
        assert_eq!(check("cli/mod.rs", ""), ["src/cli/mod.rs:1: the module `cli` has no row in the table"]);
    }
}
