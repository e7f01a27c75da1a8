//! From compiled wasm and sources to one folder that any static host can serve.

use std::fs;
use std::path::Path;

use wasm_bindgen_cli_support::Bindgen;

/// Leads from the folder's own address to the page, on any host.
const TO_THE_PAGE: &str = r#"<!doctype html>
<html lang="en">
  <meta charset="utf-8" />
  <meta http-equiv="refresh" content="0; url=page/" />
  <title>tierflow</title>
  <a href="page/">tierflow</a>
</html>
"#;

/// Writes `web/dist` anew: `wasm/` with the bindings, the files of `web/src` beside it, those of `web/page` in `page/`, and
/// a file that leads there.
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
    let root = dist.join("index.html");
    fs::write(&root, TO_THE_PAGE).map_err(|error| format!("cannot write {}: {error}", root.display()))?;
    let mut bindgen = Bindgen::new();
    bindgen.input_path(wasm).out_name("tierflow").typescript(true).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    let made = bindgen.web(true).and_then(|bindgen| bindgen.generate(dist.join("wasm")));
    made.map_err(|error| format!("cannot bind {}: {error:#}", wasm.display()))
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
