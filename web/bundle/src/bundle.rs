//! From compiled wasm and sources to one folder that any static host can serve.

use std::fs;
use std::path::Path;

use wasm_bindgen_cli_support::Bindgen;

use crate::shared;

/// Leads from the folder's own address to the page, on any host.
const TO_THE_PAGE: &str = r#"<!doctype html>
<html lang="en">
  <meta charset="utf-8" />
  <meta http-equiv="refresh" content="0; url=page/" />
  <title>tierflow</title>
  <a href="page/">tierflow</a>
</html>
"#;

/// The licences, which whoever passes the package on must pass on, too.
const LICENCES: [&str; 2] = ["LICENSE-MIT", "LICENSE-APACHE"];

/// The script that opens the page without a network. It lies above all files that it keeps, since it is only asked for those below it.
const SERVICE_WORKER: &str = "sw.js";

/// The wasm for several threads.
const SHARED: &str = "tierflow_threads_bg.wasm";

/// Writes `web/dist` anew: `wasm/` with the bindings, the files of `web/src` beside it, those of `web/page` in `page/`,
/// a file that leads there, the page's service worker with the list of them all, and the licences.
///
/// # Errors
/// In words: a file that cannot be read or written, or wasm that these bindings do not fit.
pub fn bundle(wasm: &Path, web: &Path) -> Result<(), String> {
    let dist = web.join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).map_err(|error| format!("cannot empty {}: {error}", dist.display()))?;
    }
    for (from, to) in [(web.join("src"), dist.clone()), (web.join("page"), dist.join("page"))] {
        if from.exists() {
            copy_folder(&from, &to)?;
        }
    }
    for licence in LICENCES {
        let from = web.join("..").join(licence);
        fs::copy(&from, dist.join(licence)).map_err(|error| format!("cannot copy {}: {error}", from.display()))?;
    }
    let root = dist.join("index.html");
    fs::write(&root, TO_THE_PAGE).map_err(|error| format!("cannot write {}: {error}", root.display()))?;
    let mut bindgen = Bindgen::new();
    bindgen.input_path(wasm).out_name("tierflow").typescript(true).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    write_wasm(&mut bindgen, &dist.join("wasm")).map_err(|error| format!("cannot bind {}: {error}", wasm.display()))?;
    finish_service_worker(&dist)
}

/// Writes the bindings, the wasm for one thread, and that for several.
fn write_wasm(bindgen: &mut Bindgen, folder: &Path) -> Result<(), String> {
    let mut output = bindgen.web(true).and_then(Bindgen::generate_output).map_err(|error| format!("{error:#}"))?;
    output.emit(folder).map_err(|error| format!("{error:#}"))?;
    let n_pages = shared::share_memory(output.wasm_mut())?;
    let bindings = folder.join("tierflow.js");
    let text = fs::read_to_string(&bindings).map_err(|error| error.to_string())?;
    fs::write(&bindings, shared::bindings_for_both(&text, n_pages)?).map_err(|error| error.to_string())?;
    fs::write(folder.join(SHARED), output.wasm_mut().emit_wasm()).map_err(|error| error.to_string())
}

/// Puts the service worker in its place, below a list of all files that the page may ask for.
fn finish_service_worker(dist: &Path) -> Result<(), String> {
    let (from, to) = (dist.join("page").join(SERVICE_WORKER), dist.join(SERVICE_WORKER));
    if !from.exists() {
        return Ok(());
    }
    let script = fs::read_to_string(&from).map_err(|error| format!("cannot read {}: {error}", from.display()))?;
    fs::remove_file(&from).map_err(|error| format!("cannot remove {}: {error}", from.display()))?;
    let mut files = vec!["./".to_owned(), "page/".to_owned()];
    list_files(dist, "", &mut files)?;
    files.retain(|file| !file.ends_with(".d.ts") && !LICENCES.contains(&file.as_str()));
    files.sort();
    let list: Vec<String> = files.iter().map(|file| format!("  '{file}',\n")).collect();
    fs::write(&to, format!("const FILES = [\n{}];\n\n{script}", list.concat()))
        .map_err(|error| format!("cannot write {}: {error}", to.display()))
}

/// Adds the paths of all files in `folder`, as addresses below it.
fn list_files(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot list {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            list_files(&path, &format!("{name}/"), files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot copy {} to {}: {error}", from.display(), to.display());
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(failed)?;
        }
    }
    Ok(())
}
