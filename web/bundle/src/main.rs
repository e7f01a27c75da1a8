//! What stands between tierflow's wasm and a page: `bundle` makes the wasm loadable and puts it beside the package and the
//! page, `serve` shows the result to a browser. Started by `cargo xtask web`.

mod bundle;
mod range;
mod serve;
mod shared;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: web-bundle bundle WASM WEB_FOLDER
       web-bundle serve FOLDER PORT [NAME=FILE]...

  bundle   write WEB_FOLDER/dist: bindings and wasm, the package of WEB_FOLDER/src, the page of WEB_FOLDER/page
  serve    serve FOLDER at 127.0.0.1:PORT (0: any), and each FILE at /models/NAME
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["bundle", wasm, web] => bundle::bundle(wasm.as_ref(), web.as_ref()),
        ["serve", folder, port, models @ ..] => match (port.parse(), models.iter().map(|word| named(word)).collect()) {
            (Ok(port), Some(models)) => serve::serve(folder.as_ref(), port, models),
            _ => return usage(),
        },
        _ => return usage(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web-bundle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(2)
}

fn named(word: &str) -> Option<(String, PathBuf)> {
    word.split_once('=').map(|(name, file)| (name.to_owned(), file.into()))
}
