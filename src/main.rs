//! The program: runs the command line, prints its error, sets its exit code.

use std::process::ExitCode;

use tierflow::Error;

fn main() -> ExitCode {
    quieten_drivers();
    match tierflow::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::Interrupted) {
                tierflow::cli::tell_error(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Mesa's device selection asks libwayland for a display, which complains on stderr where the session has none.
/// With a folder that does not exist it finds none silently, and finds none that another user laid out for it.
fn quieten_drivers() {
    if cfg!(unix) && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the first statement of the program; no other thread exists that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", "/nonexistent") };
    }
}
